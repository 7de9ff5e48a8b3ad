"""Owns turning rows into token ids and a mask of the tokens to learn, with the template that serving uses.
Must not know packing, models' weights or the control plane."""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from tunesmith_trainer.conversation import as_served, messages_as_served, tools_as_served
from tunesmith_trainer.data import Row, completion_row
from tunesmith_trainer.errors import Problem
from tunesmith_trainer.example import Example, joined
from tunesmith_trainer.tokenizer import Tokenizer, begin_of_text, has_half_character

_MAX_REMEMBERED = 4096
_MAX_REMEMBERED_CHARACTERS = 256  # of one text; longer ones hold what a message says, and seldom come again
_PROBE, _ANSWER = "what is asked", "what is answered"
_ANSWERS_NOTHING = "has nothing but an assistant message at its beginning; put a message before it"
_MERGES = (
    "has an answer whose first characters merge with the prompt when tokenised; "
    "remove white space at the start of the answer"
)
_REWRITES = (
    "cannot be learnt as it would be asked: with the answer behind it, the base model's chat template writes the "
    "prompt in another way; shorten the conversation, or choose another base model"
)
_HALF = "has half of a character (a lone surrogate) in one of its texts; write the whole character, or leave it out"
_SPEAKER = re.compile(r"""\bmessages?(?:\[[^\]]*\])?(?:\.name\b|\[['"]name['"]\])""")

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


class CannotRender(Exception):
    """A row that has no rendering to train on."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Renderer:
    """Renders rows for one tokenizer. `stop_ids` are the tokens that end an answer when serving."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stops = _table(stop_ids)
        added = tokenizer.added_tokens_decoder
        special = {number: token.content for number, token in added.items() if token.special}
        self._specials = _table(special)
        self._special = _any_of(special.values())
        # Markers for filling in code act like special tokens, though some tokenizers do not call them so.
        markers = [token.content for token in added.values() if "fim_" in token.content]
        self._controlling = _any_of([*special.values(), *tokenizer.all_special_tokens, *markers])
        self._knows_developer = any(f"{quote}developer{quote}" in self._templates for quote in "'\"")
        self._begin = begin_of_text(tokenizer)
        self._remembered: dict[str, NDArray[np.int32]] = {}

    @property
    def has_chat_template(self) -> bool:
        """Whether the base was made for conversations."""
        return self._tokenizer.chat_template is not None

    def completion_frame(self) -> dict[str, Any] | None:
        """What stands around a prompt that is asked as a user's message: `before`, `after`, and if it is `trimmed`.

        `after` goes on to the answer where the template begins that one with an empty thought. None where the base has
        no chat template, or one that does more to a prompt.
        """
        if not self.has_chat_template:
            return None
        try:
            spaced, plain, other = (self._asked(text) for text in (f" {_PROBE} ", _PROBE, "other"))
            row = completion_row(0, "", _PROBE, _ANSWER)
            answered = self._template(row, [as_served(message) for message in row.messages], asks=False)
        except CannotRender:
            return None
        before, _, after = plain.partition(_PROBE)
        trimmed = spaced == plain
        if other != f"{before}other{after}" or (not trimmed and spaced != f"{before} {_PROBE} {after}"):
            return None
        thought, found, _ = answered.removeprefix(plain).partition(_ANSWER)
        thinks = answered.startswith(plain) and found and thought.strip()
        return {"before": before, "after": after + thought if thinks else after, "trimmed": trimmed}

    def mentions(self, word: str) -> bool:
        """Whether the chat template knows of `word`, for example `tools`."""
        return re.search(rf"\b{word}\b", self._templates) is not None

    def render(self, row: Row) -> Example:
        """Tokenises the row once and finds what is to be learnt in it. Raises CannotRender.

        Prompt and completion become a user's and an assistant's message where the base has a chat template, since
        that is how the model will be asked; a base without one sees the raw texts and its end-of-text token.
        """
        (rendered,) = self.render_all([row])
        if isinstance(rendered, Problem):
            raise CannotRender(rendered)
        return rendered

    def render_all(self, rows: Sequence[Row]) -> list[Example | Problem]:
        """Like `render`, much faster for many rows; where a row cannot be rendered, its problem stands instead."""
        drafts = [_attempt(self._draft, row) for row in rows]
        good = [draft for of_row in drafts if not isinstance(of_row, Problem) for draft in of_row]
        for draft, token_ids in zip(good, self._tokenize([draft.text for draft in good]), strict=True):
            draft.token_ids = token_ids
        self._remember(draft.end_of(place) for draft in good for answer in draft.answers for place in answer if place)
        return [of_row if isinstance(of_row, Problem) else _attempt(self._finish_all, of_row) for of_row in drafts]

    @property
    def shows_speakers(self) -> bool:
        """Whether the chat template writes the names that messages have."""
        return _SPEAKER.search(self._templates) is not None

    def special_tokens_in(self, row: Row) -> list[str]:
        """Special tokens spelled out inside the row's texts, calls and tools: they would act as control tokens."""
        calls = [message.extra["tool_calls"] for message in row.messages if message.extra.get("tool_calls")]
        structures = [json.dumps(one, ensure_ascii=False) for one in (*calls, row.tools) if one]
        texts = [*(message.content for message in row.messages), *structures]
        return list(dict.fromkeys(token for text in texts for token in self._controlling.findall(text)))

    @property
    def _templates(self) -> str:
        """The chat template, or all of them where there are several; empty where there is none."""
        templates = self._tokenizer.chat_template or ""
        return templates if isinstance(templates, str) else "\n".join(templates.values())

    def _draft(self, row: Row) -> list["_Draft"]:
        """The row's documents: one, or one for each answer where the template writes an answer in another way once
        the conversation goes on (Qwen3 takes its thoughts out). Each is then as it will be when serving asks for it.
        """
        drafts = self._draft_chat(row) if self.has_chat_template else self._draft_plain(row)
        if any(has_half_character(draft.text) for draft in drafts):
            raise _problem(row, "invalid_file_format", _HALF)
        return drafts

    def _draft_plain(self, row: Row) -> list["_Draft"]:
        if [message.role for message in row.messages] != ["user", "assistant"]:
            raise _problem(row, "no_chat_template", "has chat messages, but the base model has no chat template")
        prompt, completion = row.messages
        draft = self._new_draft(row, prompt.content + completion.content, is_plain=True)
        draft.answers.append((self._place(draft, prompt.content), self._place_at(draft, len(draft.text))))
        return [draft]

    def _draft_chat(self, row: Row) -> list["_Draft"]:
        served = [as_served(message) for message in row.messages]
        draft = self._new_draft(row, self._template(row, served, asks=False))
        learnt = [i for i, message in enumerate(row.messages) if message.role == "assistant" and message.weight]
        if learnt == [0]:
            raise _problem(row, "answer_without_question", _ANSWERS_NOTHING)
        asked = [index for index in learnt if index > 0]  # nothing asks for the first message
        for index in asked:
            # The texts of long conversations are let go one by one: all of them are many times the conversation.
            before, through = (self._place(draft, text) for text in self._around(row, served, index, draft.text))
            if through is None or before is None:
                return [self._draft_apart(row, served, index, draft.text) for index in asked]
            draft.answers.append((before, through))
        return [draft]

    def _draft_apart(self, row: Row, served: Sequence[dict[str, Any]], index: int, whole: str) -> "_Draft":
        before, through = self._around(row, served, index, whole)
        draft = self._new_draft(row, through)
        draft.answers.append((self._place(draft, before), self._place_at(draft, len(draft.text))))
        return draft

    def _around(self, row: Row, served: Sequence[dict[str, Any]], index: int, whole: str) -> tuple[str, str]:
        """The texts before the answer at `index` and through its end, in a conversation whose text is `whole`."""
        before = self._template(row, served[:index], asks=True)
        through = whole if index + 1 == len(served) else self._template(row, served[: index + 1], asks=False)
        if not whole.startswith(through):
            shorter = through.removesuffix(self._tokenizer.eos_token or "")  # which some put after the last message
            through = shorter if whole.startswith(shorter) else through
        return before, through

    def _finish_all(self, drafts: Sequence["_Draft"]) -> Example:
        return joined([document for draft in drafts for document in self._finish(draft)])

    def _finish(self, draft: "_Draft") -> list[Example]:
        """The draft as a document, and one for each answer whose first characters merge with the prompt."""
        token_ids = draft.token_ids
        labelled = np.zeros(len(token_ids), dtype=np.bool_)
        special = _places(token_ids, self._specials)
        draft.special = special if len(special) == len(draft.spans) else None
        apart = []
        for before, through in draft.answers:
            if before is None:
                raise _problem(draft.row, "template_rewrites_prompt", _REWRITES)
            start = self._agreed_prefix(draft, before)
            stop = len(token_ids) if through.length == len(draft.text) else self._agreed_prefix(draft, through)
            if start is None or stop is None:
                apart.append(self._finish_apart(draft, before, through))
            else:
                labelled[start : start + self._learnt(draft, token_ids[start:stop])] = True
        if apart and len(apart) == len(draft.answers):
            return apart
        return [self._document(draft, token_ids, labelled), *apart]

    def _finish_apart(self, draft: "_Draft", before: "_Place", through: "_Place") -> Example:
        """An answer as it will be made: the prompt's tokens are there before the answer's first is chosen."""
        asked, text = draft.text[: before.length], draft.text[: through.length]
        prompt, answer, whole = self._tokenize([asked, text.removeprefix(asked), text])
        token_ids = np.concatenate([prompt, answer])
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        if self._tokenizer.decode(token_ids.tolist(), **options) != self._tokenizer.decode(whole.tolist(), **options):
            raise _problem(draft.row, "label_boundary_split", _MERGES)
        labelled = np.arange(len(token_ids)) >= len(prompt)
        labelled[len(prompt) + self._learnt(draft, answer) :] = False
        return self._document(draft, token_ids, labelled)

    def _learnt(self, draft: "_Draft", answer: NDArray[np.int32]) -> int:
        return len(answer) if draft.is_plain else self._answer_length(draft.row, answer)

    def _document(self, draft: "_Draft", token_ids: NDArray[np.int32], labelled: NDArray[np.bool_]) -> Example:
        if draft.is_plain:
            token_ids, labelled = self._framed(draft.row, token_ids, labelled)
        labelled[:1] = False  # nothing comes before it that it could follow from
        self._check_start(draft.row, token_ids)
        return Example(draft.row.number, token_ids, labelled)

    def _framed(
        self, row: Row, token_ids: NDArray[np.int32], labelled: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Plain text between the tokens that begin and end a text; the end is learnt."""
        last = self._tokenizer.eos_token_id
        bos = np.array(self._begin, dtype=np.int32)
        eos = np.array([] if last is None else [last], dtype=np.int32)
        framed = np.concatenate([bos, token_ids, eos])
        marks = np.concatenate([np.zeros(len(bos), np.bool_), labelled, np.ones(len(eos), np.bool_)])
        self._answer_length(row, framed[marks])
        return framed, marks

    def _template(self, row: Row, served: Sequence[dict[str, Any]], *, asks: bool) -> str:
        messages = messages_as_served(served, knows_developer=self._knows_developer)
        tools = tools_as_served(row.tools)
        try:
            return self._tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=asks
            )
        except TemplateError as error:
            what = f"does not fit the base model's chat template, which says: {str(error)[:200]}"
            raise _problem(row, "template_refused_row", what) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise _problem(row, "template_refused_row", "does not fit the base model's chat template") from error

    def _asked(self, prompt: str) -> str:
        row = completion_row(0, "", prompt, _ANSWER)
        return self._template(row, [as_served(row.messages[0])], asks=True)

    def _tokenize(self, texts: list[str]) -> list[NDArray[np.int32]]:
        if not texts:
            return []
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        return [np.array(token_ids, dtype=np.int32) for token_ids in encoded["input_ids"]]

    def _new_draft(self, row: Row, text: str, *, is_plain: bool = False) -> "_Draft":
        return _Draft(row, text, [match.span() for match in self._special.finditer(text)], is_plain)

    def _place(self, draft: "_Draft", before: str) -> "_Place | None":
        """The place of the draft that has this text before it; None where the draft begins in another way."""
        return self._place_at(draft, len(before)) if draft.text.startswith(before) else None

    def _place_at(self, draft: "_Draft", length: int) -> "_Place":
        spans = draft.spans
        count = bisect_right(spans, length, key=lambda span: span[1])
        if count < len(spans) and spans[count][0] < length:  # it cuts a special token, and there may be another in it
            spans = [match.span() for match in self._special.finditer(draft.text, 0, length)]
            count = len(spans)
        return _Place(length, count, spans[count - 1][0] if count else 0)

    def _remember(self, ends: Iterable[str]) -> None:
        if len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.clear()
        short = (end for end in ends if len(end) <= _MAX_REMEMBERED_CHARACTERS)
        new = list(dict.fromkeys(end for end in short if end not in self._remembered))
        self._remembered.update(zip(new, self._tokenize(new), strict=True))

    def _agreed_prefix(self, draft: "_Draft", place: "_Place") -> int | None:
        """Tokens of the text before `place`, if the row's first tokens are those that a server would make of it.

        Tokenizers cut a text at its special tokens before anything else, so only what follows the last of them can
        come out otherwise; where tokenizer and text disagree on their number, the whole text is compared.
        """
        text, start = draft.end_of(place), 0
        if place.specials and draft.special is not None:
            start = int(draft.special[place.specials - 1])
        elif place.specials:
            text = draft.text[: place.length]
        own = self._remembered.get(text)
        if own is None:
            (own,) = self._tokenize([text])
        agrees = np.array_equal(draft.token_ids[start : start + len(own)], own)
        return start + len(own) if agrees else None

    def _answer_length(self, row: Row, answer: NDArray[np.int32]) -> int:
        """Tokens up to and with the first stop token; what comes behind it is not generated when serving."""
        stops = _places(answer, self._stops)
        if len(stops) == 0:
            raise _problem(
                row,
                "stop_token_missing",
                "would not teach the model to stop: the chat template puts no stop token after the answer",
            )
        return int(stops[0]) + 1

    def _check_start(self, row: Row, token_ids: NDArray[np.int32]) -> None:
        bos = self._tokenizer.bos_token_id
        if len(token_ids) > 1 and bos is not None and token_ids[0] == bos and token_ids[1] == bos:
            raise _problem(row, "double_bos", "starts with two begin-of-text tokens; remove the one in the text")


@dataclass(frozen=True, slots=True)
class _Place:
    """A place in a draft's text: characters before it, special tokens among them, and where the last of those begins.

    `last` is 0 where there is none.
    """

    length: int
    specials: int
    last: int


@dataclass(slots=True)
class _Draft:
    """A row whose text is known, with the `spans` of special tokens in it.

    `answers` are the places where what is to be learnt begins and ends; None where the prompt's text is not what the
    text begins with. `special` are the places of special tokens among `token_ids`, None where tokenizer and text
    disagree on them.
    """

    row: Row
    text: str
    spans: list[tuple[int, int]]
    is_plain: bool
    answers: list[tuple[_Place | None, _Place]] = field(default_factory=list)
    token_ids: NDArray[np.int32] = field(default_factory=lambda: np.array([], dtype=np.int32))
    special: NDArray[np.intp] | None = None

    def end_of(self, place: _Place) -> str:
        """The text before a place, from its last special token on."""
        return self.text[place.last : place.length]


def _attempt(step: Callable[[_Given], _Made], given: _Given) -> _Made | Problem:
    try:
        return step(given)
    except CannotRender as error:
        return error.problem


def _table(token_ids: Iterable[int]) -> NDArray[np.bool_]:
    """Marks the ids that are meant; the last place is for all that are larger."""
    known = list(token_ids)
    table = np.zeros(max(known, default=0) + 2, dtype=np.bool_)
    table[known] = True
    return table


def _places(token_ids: NDArray[np.int32], table: NDArray[np.bool_]) -> NDArray[np.intp]:
    (places,) = np.nonzero(table[np.minimum(token_ids, len(table) - 1)])
    return places


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the tokens, the longest where several begin at one place; nothing where there are none."""
    longest_first = sorted({token for token in tokens if token}, key=len, reverse=True)
    return re.compile("|".join(re.escape(token) for token in longest_first) or r"(?!)")


def _problem(row: Row, code: str, what: str) -> CannotRender:
    return CannotRender(Problem(code, f"Row {row.number} {what}.", row.param, row.number))
