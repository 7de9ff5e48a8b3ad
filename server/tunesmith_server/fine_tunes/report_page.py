"""Owns a job's report as one HTML page that loads nothing. Pure; every text is escaped.

It must not know where jobs, numbers and rows are stored.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from tunesmith_server.fine_tunes import report_curve
from tunesmith_server.fine_tunes.history_schemas import MetricsObject
from tunesmith_server.fine_tunes.schemas import Evaluation, FineTuneObject, Forgetting, Score

_TEMPLATE = Template(Path(__file__).with_name("report_template.html").read_text(encoding="utf-8"))
_STYLE = Path(__file__).with_name("report_style.css").read_text(encoding="utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_MAX_TEXT = 600  # characters of a row

POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
"""The Content-Security-Policy under which the page is shown: its own style and nothing else."""

_SCORES = (
    ("loss", "loss, nats per token"),
    ("perplexity", "perplexity"),
    ("token_accuracy", "token accuracy"),
    ("exact_match", "exact match"),
    ("preference_accuracy", "preferred answer likelier"),
    ("preference_margin", "margin of the preferred answer, nats"),
)
_SHARES = frozenset({"token_accuracy", "exact_match", "preference_accuracy"})


@dataclass(frozen=True, slots=True)
class Report:
    """What the page shows. `texts` are rows of the user's file by line, as far as they may be shown."""

    job: FineTuneObject
    steps: Sequence[MetricsObject]
    """Of the `stored_steps` enough for a curve, the last among them."""
    stored_steps: int
    settings: Sequence[Mapping[str, Any]]
    """name, value and reason of every number."""
    texts: Mapping[int, str] = field(default_factory=dict)


def render(report: Report) -> str:
    """The whole page."""
    job = report.job
    return _TEMPLATE.substitute(
        style=_STYLE,
        title=escape(f"{job.model}: {job.fine_tuned_model or job.status}"),
        subtitle=_subtitle(job),
        figures=_figures(job.evaluation),
        curve=_curve(report.steps, report.stored_steps),
        scores=_evaluation(job.evaluation) + _chosen(job.evaluation, report.steps),
        forgetting=_forgetting(job.evaluation.forgetting if job.evaluation else None),
        flips=_flips(job.evaluation, report.texts),
        settings=_settings(report.settings),
        findings=_findings(job),
    )


def _subtitle(job: FineTuneObject) -> str:
    said = f"Fine-tune <code>{escape(job.id)}</code>, {escape(job.method.type)}, {escape(job.status)}"
    if job.trained_tokens is not None:
        said += f", {job.trained_tokens:,} tokens trained"
    return f"{said}. {escape(job.error.message)}" if job.error else f"{said}."


def _figures(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return ""
    return "".join(
        f'<div class="figure"><b><span class="from">{before} →</span> {after}</b>'
        f'<span class="soft">{escape(label)}</span></div>'
        for label, before, after in _side_by_side(evaluation.base, evaluation.tuned)
    )


def _curve(steps: Sequence[MetricsObject], stored: int) -> str:
    train = [(each.step, each.train_loss) for each in steps if each.train_loss is not None]
    # Glances at a few rows and losses over all of them are no one line.
    glances = [(each.step, each.valid_loss) for each in steps if each.valid_loss is not None]
    whole = [(each.step, each.full_valid_loss) for each in steps if each.full_valid_loss is not None]
    return report_curve.draw(train, whole if len(whole) > 1 or not glances else glances, stored)


def _evaluation(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "<p>The job has not been evaluated: it has not succeeded.</p>"
    whose = "held out from the training file" if evaluation.held_out_from_training else "of the validation file"
    note = (
        f"{evaluation.rows} rows {whose}. {evaluation.flipped_to_right} turned right, "
        f"{evaluation.flipped_to_wrong} turned wrong."
    )
    return _scores(evaluation.base, evaluation.tuned) + f'<p class="soft">{note}</p>'


def _chosen(evaluation: Evaluation | None, steps: Sequence[MetricsObject]) -> str:
    """Says so where the model is not that of the last step."""
    if evaluation is None or evaluation.step is None or not steps or evaluation.step == steps[-1].step:
        return ""
    return (
        f'<p class="soft">The model is that of step {evaluation.step}, where the validation loss was lowest; '
        f"training went on to step {steps[-1].step}.</p>"
    )


def _forgetting(forgetting: Forgetting | None) -> str:
    if forgetting is None:
        return "<p>Not measured.</p>"
    note = (
        f"{forgetting.items} questions that come with the trainer and are in no file of yours. "
        "A loss that rises here is what the model forgot."
    )
    flipped = [(escape(each.topic), escape(each.prompt), each.before, each.after) for each in forgetting.flips]
    table = _table(("topic", "question", "base", "tuned"), flipped) if flipped else ""
    return f'<p class="soft">{note}</p>' + _scores(forgetting.base, forgetting.tuned) + table


def _flips(evaluation: Evaluation | None, texts: Mapping[int, str]) -> str:
    if evaluation is None or not evaluation.flips:
        return "<p>None.</p>"
    rows = [
        (str(flip.row), flip.before, flip.after, f'<div class="answer">{escape(_short(texts.get(flip.row, "")))}</div>')
        for flip in evaluation.flips
    ]
    return _table(("line", "base", "tuned", "row"), rows)


def _settings(settings: Sequence[Mapping[str, Any]]) -> str:
    if not settings:
        return "<p>Not resolved: the files have not been validated.</p>"
    cells = [tuple(escape(str(each.get(name, ""))) for name in ("name", "value", "reason")) for each in settings]
    return _table(("name", "value", "why"), cells)


def _findings(job: FineTuneObject) -> str:
    if job.preflight is None:
        return "<p>Nothing yet: the files have not been validated.</p>"
    found = job.preflight.findings
    if not found:
        return "<p>Nothing to complain about.</p>"
    rows = [
        (
            escape(str(each.get("severity", ""))),
            escape(str(each.get("message", ""))),
            escape(", ".join(str(row) for row in each.get("rows") or [])),
        )
        for each in found
    ]
    return _table(("", "what", "lines"), rows)


def _scores(base: Score, tuned: Score) -> str:
    return _table(("", "base", "tuned"), _side_by_side(base, tuned))


def _side_by_side(base: Score, tuned: Score) -> list[tuple[str, str, str]]:
    """Label, base and tuned of every score that both have."""
    labels = dict(_SCORES) | ({} if base.preference_accuracy is None else {"loss": "loss, nats per pair"})
    values = [(name, label, getattr(base, name), getattr(tuned, name)) for name, label in labels.items()]
    return [
        (label, _number(name, before), _number(name, after))
        for name, label, before, after in values
        if before is not None and after is not None
    ]


def _number(name: str, value: float) -> str:
    return f"{value:.0%}" if name in _SHARES else f"{value:.4g}"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
