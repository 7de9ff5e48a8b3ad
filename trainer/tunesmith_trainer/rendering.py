"""Owns turning a row into token ids and a mask of the tokens to learn, with the template that serving uses.
Must not know packing, models' weights or the control plane."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from tunesmith_trainer.data import Message, Row
from tunesmith_trainer.errors import Problem


@dataclass(frozen=True, slots=True)
class Example:
    """A rendered row: `token_ids` int32 (T,); `labelled` bool (T,) marks the tokens that are to be predicted."""

    row: int
    token_ids: NDArray[np.int32]
    labelled: NDArray[np.bool_]

    @property
    def prompt_token_ids(self) -> list[int]:
        """What the model is given before the first token that it is to predict."""
        return [int(token) for token in self.token_ids[: int(self.labelled.argmax())]]


class Tokenizer(Protocol):
    """What rendering uses of a transformers tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: str | None
    all_special_tokens: list[str]

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]: ...
    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> str: ...


class CannotRender(Exception):
    """A row that has no rendering to train on."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def load_tokenizer(folder: Path) -> Tokenizer:
    """Reads the tokenizer of a model folder; runs none of the folder's code."""
    from transformers import AutoTokenizer  # here because it takes seconds to import

    return cast("Tokenizer", AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


class Renderer:
    """Renders rows for one tokenizer. `stop_ids` are the tokens that end an answer when serving."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = np.array(sorted(stop_ids), dtype=np.int32)

    def render(self, row: Row) -> Example:
        """Tokenises the row once and finds what is to be learnt in it. Raises CannotRender.

        Prompt and completion become a user's and an assistant's message where the base has a chat template, since
        that is how the model will be asked; a base without one sees the raw texts and its end-of-text token.
        """
        if self._tokenizer.chat_template is None:
            return self._render_text(row)
        return self._render_chat(row)

    def special_tokens_in(self, row: Row) -> list[str]:
        """Special tokens spelled out inside the row's texts: they would act as control tokens."""
        texts = [message.content for message in row.messages]
        return [token for token in self._tokenizer.all_special_tokens if any(token in text for text in texts)]

    def _render_chat(self, row: Row) -> Example:
        text = self._template(row, len(row.messages), asks=False)
        token_ids = self._tokenize(text)
        labelled = np.zeros(len(token_ids), dtype=np.bool_)
        for index, message in enumerate(row.messages):
            if message.role != "assistant" or message.weight == 0:
                continue
            start = self._agreed_prefix(row, token_ids, text, self._template(row, index, asks=True))
            is_last = index + 1 == len(row.messages)
            through = text if is_last else self._template(row, index + 1, asks=False)
            stop = len(token_ids) if is_last else self._agreed_prefix(row, token_ids, text, through)
            labelled[start : start + self._answer_length(row, token_ids[start:stop])] = True
        self._check_start(row, token_ids)
        return Example(row.number, token_ids, labelled)

    def _render_text(self, row: Row) -> Example:
        roles = [message.role for message in row.messages]
        if roles != ["user", "assistant"]:
            raise _problem(row, "no_chat_template", "has chat messages, but the base model has no chat template")
        prompt, completion = row.messages
        end = self._tokenizer.eos_token_id
        bos = [] if self._tokenizer.bos_token_id is None else [self._tokenizer.bos_token_id]
        text = prompt.content + completion.content
        token_ids = np.array([*bos, *self._tokenize(text), *([] if end is None else [end])], dtype=np.int32)
        labelled = np.zeros(len(token_ids), dtype=np.bool_)
        labelled[len(bos) + self._agreed_prefix(row, token_ids[len(bos) :], text, prompt.content) :] = True
        self._answer_length(row, token_ids[labelled])
        return Example(row.number, token_ids, labelled)

    def _template(self, row: Row, count: int, *, asks: bool) -> str:
        messages = [message.wire() for message in row.messages[:count]]
        try:
            return self._tokenizer.apply_chat_template(
                messages, tools=row.tools, tokenize=False, add_generation_prompt=asks
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise _problem(row, "template_refused_row", "does not fit the base model's chat template") from error

    def _tokenize(self, text: str) -> NDArray[np.int32]:
        return np.array(self._tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)

    def _agreed_prefix(self, row: Row, token_ids: NDArray[np.int32], text: str, prefix: str) -> int:
        """Tokens of `prefix`, which must be the row's first tokens exactly as a server would make them."""
        own = self._tokenize(prefix)
        if not text.startswith(prefix) or not np.array_equal(token_ids[: len(own)], own):
            raise _problem(
                row,
                "label_boundary_split",
                "has an answer whose first characters merge with the prompt when tokenised; "
                "remove white space at the start of the answer",
            )
        return len(own)

    def _answer_length(self, row: Row, answer: NDArray[np.int32]) -> int:
        """Tokens up to and with the stop token; what the template adds behind it is not generated when serving."""
        (stops,) = np.nonzero(np.isin(answer, self._stop_ids))
        if len(stops) == 0:
            raise _problem(
                row,
                "stop_token_missing",
                "would not teach the model to stop: the chat template puts no stop token after the answer",
            )
        return int(stops[-1]) + 1

    def _check_start(self, row: Row, token_ids: NDArray[np.int32]) -> None:
        bos = self._tokenizer.bos_token_id
        if len(token_ids) > 1 and bos is not None and token_ids[0] == bos and token_ids[1] == bos:
            raise _problem(row, "double_bos", "starts with two begin-of-text tokens; remove the one in the text")


def _problem(row: Row, code: str, what: str) -> CannotRender:
    return CannotRender(Problem(code, f"Row {row.number} {what}.", row.param, row.number))


__all__ = ["CannotRender", "Example", "Message", "Renderer", "Tokenizer", "load_tokenizer"]
