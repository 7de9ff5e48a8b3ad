"""Owns the way of one file's rows to examples: every row is looked at, and what is wrong with it is noted.
Must not know configurations, memory or the control plane."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from tunesmith_trainer.config import LongRows
from tunesmith_trainer.data import Message, Row, count_lines, read_rows
from tunesmith_trainer.errors import Problem
from tunesmith_trainer.findings import Findings
from tunesmith_trainer.rendering import Example, Renderer

Watch = Callable[[int, int], None]
"""Called now and then with the rows read so far and all rows of the file; may raise to stop."""

_ROWS_AT_ONCE = 250


@dataclass(slots=True)
class FileRows:
    """What a file holds: `examples` can be trained on, `lengths` are the tokens of every rendered row before any cut.

    `seen` leads from the content of an example to its first row.
    """

    param: str
    rows: int = 0
    examples: list[Example] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    seen: dict[bytes, int] = field(default_factory=dict)
    duplicates: int = 0


class RowReader:
    """Reads files into examples of at most `limit` tokens, and notes in `findings` what is wrong."""

    def __init__(self, renderer: Renderer, limit: int, long_rows: LongRows, findings: Findings, watch: Watch) -> None:
        self._renderer = renderer
        self._limit = limit
        self._long_rows = long_rows
        self._findings = findings
        self._watch = watch
        self._shows_tools = renderer.mentions("tools")
        self._writes_calls = renderer.mentions("tool_calls")

    def read(self, path: Path, param: str) -> FileRows:
        """Looks at every row of a file."""
        found = FileRows(param)
        lines = count_lines(path)
        for rows in _batches(read_rows(path, param)):
            self._watch(found.rows, max(lines, found.rows))
            found.rows += len(rows)
            checked = [self._checked(row) if isinstance(row, Row) else row for row in rows]
            rendered = iter(self._renderer.render_all([row for row in checked if isinstance(row, Row)]))
            for row in checked:
                outcome = next(rendered) if isinstance(row, Row) else row
                if isinstance(outcome, Problem):
                    self._findings.reject(outcome, "refused")
                else:
                    self._take(outcome, found)
        return found

    def _checked(self, row: Row) -> Row | Problem:
        """The row, unless something in it would not reach the model as it is meant."""
        tokens = self._renderer.special_tokens_in(row)
        if tokens:
            what = f"spells out {', '.join(tokens[:5])}, which the model reads as control and not as text"
            self._findings.add(_problem(row, "special_tokens_in_text", what), "warning")
        if self._renderer.has_chat_template:
            if row.tools and not self._shows_tools:
                what = "has tools, which the chat template of this base model does not show to it; remove them"
                return _problem(row, "tools_unsupported", what)
            if any(message.extra.get("tool_calls") for message in row.messages) and not self._writes_calls:
                what = "has tool calls, which the chat template of this base model does not write; remove them"
                return _problem(row, "tools_unsupported", what)
        if any(_is_empty_answer(message) for message in row.messages):
            return _problem(row, "empty_answer", "has an empty answer; write one, or give it weight 0")
        return row

    def _take(self, example: Example, found: FileRows) -> None:
        length, row = len(example.token_ids), example.row
        found.lengths.append(length)
        if not example.labelled.any():
            message = f"Row {row} has nothing to learn: no assistant message with weight 1."
            self._findings.reject(Problem("no_labelled_tokens", message, found.param, row), "refused")
            return
        if length > self._limit:
            fitted = self._fitted(example, found.param)
            if fitted is None:
                return
            example = fitted
        content = blake2b(example.token_ids.tobytes(), digest_size=16).digest()
        first = found.seen.setdefault(content, row)
        if first != row:
            found.duplicates += 1
            message = f"Row {row} repeats row {first}."
            self._findings.add(Problem("duplicate_row", message, found.param, row), "warning")
        found.examples.append(example)

    def _fitted(self, example: Example, param: str) -> Example | None:
        """A row over the limit, made to fit as the job wants; None where it is not to be used."""
        row = example.row
        told = f"Row {row} has {len(example.token_ids)} tokens; the context length is {self._limit}"
        if self._long_rows == "fail":
            message = f"{told}. Shorten or split it, or set training.long_rows to cut or drop."
            self._findings.reject(Problem("row_too_long", message, param, row), "refused")
            return None
        if self._long_rows == "drop":
            self._findings.reject(Problem("row_dropped", f"{told}, so it is left out.", param, row), "dropped")
            return None
        cut = example.cut(self._limit)
        if not cut.labelled.any():
            message = f"{told}: nothing to learn is left of it once it is cut, so it is left out."
            self._findings.reject(Problem("row_dropped", message, param, row), "dropped")
            return None
        is_whole = cut.labelled.sum() == example.labelled.sum()
        loss = "" if is_whole else ", and its last answer does not teach where to stop"
        message = f"{told}: what comes after is cut off{loss}."
        self._findings.reject(Problem("row_cut", message, param, row), "cut")
        return cut


def _batches(rows: Iterator[Row | Problem]) -> Iterator[list[Row | Problem]]:
    while batch := list(islice(rows, _ROWS_AT_ONCE)):
        yield batch


def _is_empty_answer(message: Message) -> bool:
    is_learnt = message.role == "assistant" and message.weight == 1
    return is_learnt and not message.content.strip() and not message.extra.get("tool_calls")


def _problem(row: Row, code: str, what: str) -> Problem:
    return Problem(code, f"Row {row.number} {what}.", row.param, row.number)
