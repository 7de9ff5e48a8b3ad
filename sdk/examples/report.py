"""Adds to a job's report what only its client can tell: the served answers, where the time went, how to go on.

It knows nothing of clients or processes: the page and all that is added are handed in. Every text is escaped and
nothing is loaded. Cards, figures and tables look as those of the page do; other style is brought along.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from examples.scoring import Comparison, is_exact

_LONGEST_ANSWER = 300  # characters shown
_ALIKE = 0.6  # below this likeness (0 to 1) of answer and expectation, marks would cover everything
_STYLE = """
:root { --good: #12733d; --good-soft: #dff3e6; --bad: #b3261e; --bad-soft: #fbe3e1; }
@media (prefers-color-scheme: dark) {
  :root { --good: #6fd398; --good-soft: #173624; --bad: #ff938a; --bad-soft: #45201d; }
}
.answers { table-layout: fixed; min-width: 860px; }
.answers th:first-child { width: 23%; }
.right { color: var(--good); }
.wrong mark { background: var(--bad-soft); color: var(--bad); border-radius: 3px; padding: 0 1px; }
.badge { display: inline-block; border-radius: 99px; padding: 0 8px; font: 500 12px/20px system-ui, sans-serif; }
.badge.yes { background: var(--good-soft); color: var(--good); }
.badge.no { background: var(--bad-soft); color: var(--bad); }
pre { font: 12.5px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 14px; }
"""


@dataclass(frozen=True)
class Served:
    """What is added to the report."""

    model: str
    """The tuned model's name."""
    comparisons: Sequence[Comparison]
    base: float
    """Exact match of the base model's served answers, 0 to 1."""
    tuned: float
    timings: Sequence[tuple[str, float]]
    """Stage and seconds, in order."""
    home: str
    """The platform's home folder, as the reader would type it."""


def with_served(page: str, served: Served) -> str:
    """The job's report, as the server gave it, with everything in `served` at its end."""
    timings = [(escape(stage), f"{seconds:.0f}") for stage, seconds in served.timings]
    sections = (
        ("Before and after, as served", _before_and_after(served)),
        ("Where the time went", _table(("stage", "seconds"), timings)),
        ("Go on from here", _next_steps(served)),
    )
    added = "".join(f'<section class="card"><h2>{title}</h2>{content}</section>\n' for title, content in sections)
    styled = page.replace("</head>", f"<style>{_STYLE}</style>\n</head>", 1)
    return styled.replace("</main>", f"{added}</main>", 1)


def _before_and_after(served: Served) -> str:
    note = (
        f"{len(served.comparisons)} held-out rows, asked through the served endpoint at temperature 0. "
        "None of their products, names or numbers occurs in training; what differs from the expected answer is marked."
    )
    change = f'<b><span class="from">{served.base:.0%} →</span> {served.tuned:.0%}</b>'
    figure = f'<div class="figure">{change}<span class="soft">exact match, served answers</span></div>'
    return (
        f'<div class="figures">{figure}</div>'
        f'<p class="soft">{note}</p><div class="wide">{_answers(served.comparisons)}</div>'
    )


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


def _next_steps(served: Served) -> str:
    home, model = served.home, served.model
    prompt = "Extract the ticket as JSON."
    message = served.comparisons[0].message if served.comparisons else "Where is my kettle? Order a-1042"
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
