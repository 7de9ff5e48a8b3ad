"""Owns the way of one file's rows to examples: every row is looked at, and what is wrong with it is noted.
Must not know configurations, memory or the control plane."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from tunesmith_trainer.config import LongRows
from tunesmith_trainer.data import Message, Row, RowKind, count_lines, read_rows
from tunesmith_trainer.errors import Problem
from tunesmith_trainer.example import Example
from tunesmith_trainer.findings import Findings
from tunesmith_trainer.pairs import conversations, render_pairs
from tunesmith_trainer.rendering import Renderer
from tunesmith_trainer.texts import render_text
from tunesmith_trainer.tokenizer import Tokenizer

Watch = Callable[[int, int], None]
"""Called now and then with the rows read so far and all rows of the file; may raise to stop."""

_ROWS_AT_ONCE = 250
_CHARACTERS_AT_ONCE = 1_000_000  # the tokenizer holds a hundred bytes and more for each token that it makes at once
_APART = (
    "is learnt answer by answer, with more tokens in all: the chat template or the tokenizer writes an answer in "
    "another way once the conversation goes on, so each is rendered as it will be when it is asked for"
)


@dataclass(slots=True)
class FileRows:
    """What a file holds: `examples` can be trained on, `lengths` are the tokens of every rendered row before any cut.

    `completions` of its rows are a prompt and its completion. `seen` leads from the content of an example to its first
    row; `findings` are about this file's rows.
    """

    param: str
    rows: int = 0
    completions: int = 0
    examples: list[Example] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    seen: dict[bytes, int] = field(default_factory=dict)
    duplicates: int = 0
    findings: Findings = field(default_factory=Findings)

    def keep(self, example: Example) -> int:
        """Takes an example in. Returns the first row with its content, which may be its own."""
        content = blake2b(example.token_ids.tobytes(), digest_size=16).digest()
        first = self.seen.setdefault(content, example.row)
        self.duplicates += first != example.row
        self.examples.append(example)
        return first


class RowReader:
    """Reads files of rows of one kind into examples, documents of at most `limit` tokens, and notes what is wrong."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        renderer: Renderer,
        kind: RowKind,
        limit: int,
        long_rows: LongRows,
        watch: Watch,
        vocabulary: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._kind = kind
        self._limit = limit
        self._long_rows = long_rows
        self._watch = watch
        self._vocabulary = vocabulary
        self._shows_tools = renderer.mentions("tools")
        self._writes_calls = renderer.mentions("tool_calls")
        self._shows_speakers = renderer.shows_speakers

    def read(self, path: Path, param: str) -> FileRows:
        """Looks at every row of a file."""
        found = FileRows(param)
        lines = count_lines(path)
        for rows in _batches(read_rows(path, param, self._kind)):
            self._watch(found.rows, max(lines, found.rows))
            found.rows += len(rows)
            found.completions += sum(isinstance(row, Row) and row.is_completion for row in rows)
            checked = [self._checked(row, found) if isinstance(row, Row) else row for row in rows]
            rendered = iter(self._rendered([row for row in checked if isinstance(row, Row)]))
            for row in checked:
                outcome = next(rendered) if isinstance(row, Row) else row
                if isinstance(outcome, Problem):
                    found.findings.reject(outcome, "refused")
                else:
                    for example in outcome:
                        self._take(example, found)
        return found

    def _rendered(self, rows: Sequence[Row]) -> list[list[Example] | Problem]:
        if self._kind == "text":
            return [render_text(self._tokenizer, row, self._limit) for row in rows]
        if self._kind == "preference":
            return render_pairs(self._renderer, rows)
        rendered = self._renderer.render_all(rows)
        return [one if isinstance(one, Problem) else [one] for one in rendered]

    def _checked(self, row: Row, found: FileRows) -> Row | Problem:
        """The row, unless something in it would not reach the model as it is meant."""
        answers = conversations(row)
        tokens = [token for one in answers for token in self._renderer.special_tokens_in(one)]
        if tokens:
            tokens = list(dict.fromkeys(tokens))
            what = (
                f"spells out {', '.join(tokens[:5])}, which the model reads as control and not as text; an answer ends"
            )
            what += " for it at the first stop token"
            found.findings.add(_problem(row, "special_tokens_in_text", what), "warning")
        if self._renderer.has_chat_template:
            if row.tools and not self._shows_tools:
                what = "has tools, which the chat template of this base model does not show to it; remove them"
                return _problem(row, "tools_unsupported", what)
            calls = any(message.extra.get("tool_calls") for one in answers for message in one.messages)
            if calls and not self._writes_calls:
                what = "has tool calls, which the chat template of this base model does not write; remove them"
                return _problem(row, "tools_unsupported", what)
            self._check_conversation(answers[0], found)
        if any(_is_empty_answer(message) for one in answers for message in one.messages):
            return _problem(row, "empty_answer", "has an empty answer; write one, or give it weight 0")
        return row

    def _check_conversation(self, row: Row, found: FileRows) -> None:
        """Notes what the model will not learn or see, though the row may be meant so."""
        first = row.messages[0]
        if first.role == "assistant" and first.weight and self._kind == "chat":
            what = "begins with an assistant message, which nothing asks for: it is read, but not learnt"
            found.findings.add(_problem(row, "answer_without_question", what), "warning")
        has_names = any(message.extra.get("name") and message.role != "tool" for message in row.messages)
        if has_names and not self._shows_speakers:
            what = "has names on messages, which the chat template of this base model does not show to it; write them "
            what += "into the content if they matter"
            found.findings.add(_problem(row, "names_not_shown", what), "warning")

    def _take(self, example: Example, found: FileRows) -> None:
        length, row = max(example.documents), example.row
        found.lengths.append(length)
        if example.token_ids.max(initial=0) >= self._vocabulary:
            message = f"Row {row} spells out a token that the base model has no weights for. Take it out."
            found.findings.reject(Problem("token_unknown", message, found.param, row), "refused")
            return
        if not example.teaches:
            why = "it is too short" if self._kind == "text" else "no assistant message with weight 1"
            message = f"Row {row} has nothing to learn: {why}."
            found.findings.reject(Problem("no_labelled_tokens", message, found.param, row), "refused")
            return
        if example.splits and self._kind == "chat":
            found.findings.add(Problem("answers_rendered_apart", f"Row {row} {_APART}.", found.param, row), "warning")
        if length > self._limit:
            fitted = self._fitted(example, found)
            if fitted is None:
                return
            example = fitted
        first = found.keep(example)
        if first != row:
            message = f"Row {row} repeats row {first}."
            found.findings.add(Problem("duplicate_row", message, found.param, row), "warning")

    def _fitted(self, example: Example, found: FileRows) -> Example | None:
        """A row over the limit, made to fit as the job wants; None where it is not to be used."""
        row, param = example.row, found.param
        told = f"Row {row} has {max(example.documents)} tokens; the context length is {self._limit}"
        if self._long_rows == "fail":
            message = f"{told}. Shorten or split it, or set training.long_rows to cut or drop."
            found.findings.reject(Problem("row_too_long", message, param, row), "refused")
            return None
        if self._long_rows == "drop":
            found.findings.reject(Problem("row_dropped", f"{told}, so it is left out.", param, row), "dropped")
            return None
        cut = example.cut(self._limit)
        if self._kind == "chat":  # its documents are learnt one by one, those of a pair together
            cut = cut.taught()
        if not cut.teaches or (self._kind == "preference" and _is_pair_of_same(cut)):
            message = f"{told}: nothing to learn is left of it once it is cut, so it is left out."
            found.findings.reject(Problem("row_dropped", message, param, row), "dropped")
            return None
        is_whole = cut.labelled.sum() == example.labelled.sum()
        loss = "" if is_whole else ", and its last answer does not teach where to stop"
        message = f"{told}: what comes after is cut off{loss}."
        found.findings.reject(Problem("row_cut", message, param, row), "cut")
        return cut


def _batches(rows: Iterator[Row | Problem]) -> Iterator[list[Row | Problem]]:
    """Rows to render at once: a batch ends with the row that makes it full in rows or in characters."""
    batch: list[Row | Problem] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(message.content) for message in row.messages) if isinstance(row, Row) else 0
        if len(batch) == _ROWS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _is_empty_answer(message: Message) -> bool:
    is_learnt = message.role == "assistant" and message.weight == 1
    return is_learnt and not message.content.strip() and not message.extra.get("tool_calls")


def _is_pair_of_same(example: Example) -> bool:
    preferred, other = np.split(example.token_ids, example.splits)
    return np.array_equal(preferred, other)


def _problem(row: Row, code: str, what: str) -> Problem:
    return Problem(code, f"Row {row.number} {what}.", row.param, row.number)
