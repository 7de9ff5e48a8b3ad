"""Draws one fine-tune as a self-contained HTML page: the loss, the scores, rows before and after.

It knows nothing of clients or processes: all it shows is handed in. Every text is escaped; the page loads nothing.
"""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from examples.scoring import Comparison, is_exact
from tunesmith.types import Evaluation, FineTune

_TEMPLATE = Path(__file__).with_name("report_template.html")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1000, 320, 52, 14, 12, 40  # of the chart, in its own units
_LONGEST_ANSWER = 300  # characters shown
_ALIKE = 0.6  # below this likeness (0 to 1) of answer and expectation, marks would cover everything


@dataclass(frozen=True)
class CurvePoint:
    """One optimizer step; losses in nats per labelled token, `valid_loss` only where it was measured."""

    step: int
    train_loss: float
    valid_loss: float | None = None


@dataclass(frozen=True)
class Setting:
    """A hyperparameter as it was used, and why it has this value."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    job: FineTune
    training_rows: int
    curve: Sequence[CurvePoint]
    settings: Sequence[Setting]
    comparisons: Sequence[Comparison]
    served_base: float
    """Exact match of the base model's served answers, 0 to 1."""
    served_tuned: float
    timings: Sequence[tuple[str, float]]
    """Stage and seconds, in order."""
    home: str
    """The platform's home folder, as the reader would type it."""


def write_report(report: Report, path: Path) -> None:
    """Writes the page, replacing an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """The whole page as HTML."""
    job = report.job
    page = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return page.substitute(
        title=escape(f"{job.model}, before and after {report.training_rows} rows"),
        subtitle=f"Served as <code>{escape(job.fine_tuned_model or '')}</code>. Fine-tune "
        f"<code>{escape(job.id)}</code>, {job.trained_tokens or 0:,} tokens trained.",
        figures=_figures(report),
        curve=_curve(report.curve),
        metrics=_metrics(report),
        timings=_table(("stage", "seconds"), [(escape(stage), f"{seconds:.0f}") for stage, seconds in report.timings]),
        hyperparameters=_table(
            ("name", "value", "why"), [(escape(s.name), escape(s.value), escape(s.reason)) for s in report.settings]
        ),
        answers_note=f"{len(report.comparisons)} held-out rows, asked through the served endpoint at temperature 0. "
        "None of their products, names or numbers occurs in training; what differs from the expected answer is marked.",
        answers=_answers(report.comparisons),
        next_steps=_next_steps(report),
    )


def _figures(report: Report) -> str:
    figures = [("exact match, served answers", _percent(report.served_base), _percent(report.served_tuned))]
    evaluation = report.job.evaluation
    if evaluation is not None:
        base, tuned = evaluation.base, evaluation.tuned
        figures.append(("held-out loss", _number(base.loss), _number(tuned.loss)))
        figures.append(("token accuracy", _percent(base.token_accuracy), _percent(tuned.token_accuracy)))
    return "".join(
        f'<div class="figure"><b><span class="from">{before} →</span> {after}</b><span class="soft">{name}</span></div>'
        for name, before, after in figures
    )


def _metrics(report: Report) -> str:
    served = f"exact match, served ({len(report.comparisons)} rows)"
    rows = [(served, _percent(report.served_base), _percent(report.served_tuned))]
    evaluation = report.job.evaluation
    if evaluation is None:
        return _table(("", "base", "tuned"), rows)
    base, tuned = evaluation.base, evaluation.tuned
    rows += [
        (f"exact match, in the job ({evaluation.rows} rows)", _percent(base.exact_match), _percent(tuned.exact_match)),
        ("token accuracy", _percent(base.token_accuracy), _percent(tuned.token_accuracy)),
        ("loss, nats per token", _number(base.loss), _number(tuned.loss)),
    ]
    return _table(("", "base", "tuned"), rows) + _flips(evaluation)


def _flips(evaluation: Evaluation) -> str:
    return (
        f'<p class="soft" style="margin-top:12px">{evaluation.flipped_to_right} rows turned right, '
        f"{evaluation.flipped_to_wrong} turned wrong.</p>"
    )


def _curve(points: Sequence[CurvePoint]) -> str:
    """Loss over steps: each training step, its running mean, and the validation measurements."""
    if not points:
        return "<p>The job reported no steps.</p>"
    valid = [(p.step, p.valid_loss) for p in points if p.valid_loss is not None]
    train = [(p.step, p.train_loss) for p in points]
    top = max(loss for _, loss in [*train, *valid]) * 1.05 or 1.0
    last = max(points[-1].step, 2)

    def at(step: float, loss: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - 1) / (last - 1)
        return x, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - loss / top)

    def line(series: Sequence[tuple[int, float]], name: str) -> str:
        corners = " ".join("{:.1f},{:.1f}".format(*at(step, loss)) for step, loss in series)
        return f'<polyline class="{name}" points="{corners}"/>'

    dots = "".join(
        '<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4"><title>step {}: validation {:.3f}</title></circle>'.format(
            *at(step, loss), step, loss
        )
        for step, loss in valid
    )
    lines = line(train, "train") + line(_running_mean(train), "trend") + line(valid, "valid")
    drawing = _grid(top, last) + lines + dots
    keys = (("train", "each training step"), ("trend", "running mean"), ("valid", "validation"))
    legend = "".join(f'<span class="key" style="background:var(--{key})"></span>{name}' for key, name in keys)
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="loss over steps">{drawing}</svg>'
        f"<figcaption>{legend}</figcaption></figure>"
    )


def _grid(top: float, last: int) -> str:
    """Lines and labels of both axes."""
    bottom = _HEIGHT - _BOTTOM
    parts = []
    spacing = _round_spacing(top / 5)
    for i in range(int(top / spacing) + 1):
        y = _TOP + (bottom - _TOP) * (1 - i * spacing / top)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{i * spacing:g}</text>')
    every = max(1, int(_round_spacing(last / 8)))
    for step in [1, *range(every, last + 1, every)]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - 1) / (last - 1)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">optimizer step</text>')
    return "".join(parts)


def _round_spacing(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten, so that the labels of an axis are round."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * 0.999)


def _running_mean(series: Sequence[tuple[int, float]], window: int = 7) -> list[tuple[int, float]]:
    means = []
    for i, (step, _) in enumerate(series):
        near = [loss for _, loss in series[max(0, i - window // 2) : i + window // 2 + 1]]
        means.append((step, sum(near) / len(near)))
    return means


def _answers(comparisons: Sequence[Comparison]) -> str:
    rows = [
        (
            escape(c.message),
            f'<div class="answer">{_breakable(c.expected)}</div>',
            _verdict(c.base, c.expected),
            _verdict(c.tuned, c.expected),
        )
        for c in comparisons
    ]
    return _table(("message", "expected", "base", "tuned"), rows, "answers")


def _verdict(answer: str, expected: str) -> str:
    if is_exact(answer, expected):
        return f'<span class="badge yes">exact</span><div class="answer right">{_breakable(answer.strip())}</div>'
    return f'<span class="badge no">differs</span><div class="answer wrong">{_marked(answer.strip(), expected)}</div>'


def _marked(answer: str, expected: str) -> str:
    """The answer with its differing parts marked, or plain where hardly anything agrees."""
    shown = answer if len(answer) <= _LONGEST_ANSWER else answer[:_LONGEST_ANSWER] + "…"
    wanted, words = _words(expected), _words(shown)
    matcher = difflib.SequenceMatcher(None, wanted, words, autojunk=False)
    if matcher.ratio() < _ALIKE:
        return _breakable(shown) or "(empty)"
    parts = []
    for tag, _, _, start, end in matcher.get_opcodes():
        text = _breakable("".join(words[start:end]))
        if tag == "delete":
            parts.append("<mark>‸</mark>")  # something is missing here
        else:
            parts.append(text if tag == "equal" else f"<mark>{text}</mark>")
    return "".join(parts)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\W", text)


def _breakable(text: str) -> str:
    """Escaped text that a narrow column breaks after a comma rather than inside a word."""
    return escape(text).replace(",", ",<wbr>")


def _next_steps(report: Report) -> str:
    home, model = report.home, report.job.fine_tuned_model or ""
    prompt = "Extract the ticket as JSON."
    message = report.comparisons[0].message if report.comparisons else "Where is my kettle? Order a-1042"
    start = (
        f".venv/bin/tunesmithd up --home {home} --port 8000 --grpc-port 8001 &\n"
        f"export TUNESMITH_API_KEY=$(cat {home}/api_key)"
    )
    curl = (
        "curl http://127.0.0.1:8000/v1/chat/completions \\\n"
        '  -H "Authorization: Bearer $TUNESMITH_API_KEY" -H "Content-Type: application/json" \\\n'
        f'  -d \'{{"model": "{model}", "temperature": 0, "messages": [\n'
        f'       {{"role": "system", "content": "{prompt}"}},\n'
        '       {"role": "user", "content": "Where is my kettle? Order a-1042"}]}\''
    )
    python = (
        "import os\nfrom openai import OpenAI\n\n"
        'client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=os.environ["TUNESMITH_API_KEY"])\n'
        "answer = client.chat.completions.create(\n"
        f"    model={model!r},\n    temperature=0,\n"
        f'    messages=[{{"role": "system", "content": {prompt!r}}},\n'
        f'              {{"role": "user", "content": {message!r}}}],\n)\n'
        "print(answer.choices[0].message.content)"
    )
    steps = (
        ("Start the platform again; the tuned model is still there.", start),
        ("Ask it with curl.", curl),
        ("Or with the official openai client.", python),
    )
    return "".join(f"<p>{intro}</p><pre>{escape(code)}</pre>" for intro, code in steps)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str = "") -> str:
    """A table of cells that are HTML already."""
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{name}"><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>'


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
