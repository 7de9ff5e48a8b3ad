"""Owns the checks before a run: every row rendered, every problem named, every number resolved. Loads no weights.
Must not know torch, how problems are reported or where files came from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith_trainer.base_model import ModelFacts, read_facts
from tunesmith_trainer.config import Facts, Resolution, TrainingConfig, Wanted, check, resolve
from tunesmith_trainer.data import Row, held_out_indices, read_rows
from tunesmith_trainer.errors import BadData, Problem
from tunesmith_trainer.rendering import CannotRender, Example, Renderer, load_tokenizer

MIN_ROWS = 10
MAX_EVALUATION_ROWS = 500  # a share measured on 500 rows is within 4.4 points of the truth
_MAX_PROBLEMS = 1000
_CHECK_EVERY_ROWS = 200


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows ready to be trained on and evaluated with, and every number of the run."""

    training: list[Example]
    evaluation: list[Example]
    held_out_from_training: bool
    config: TrainingConfig
    resolutions: list[Resolution]
    warnings: list[str]
    model: ModelFacts

    @property
    def tokens(self) -> int:
        """Tokens of one pass, prompts included."""
        return sum(len(example.token_ids) for example in self.training)

    @property
    def labelled_tokens(self) -> int:
        """Tokens of one pass that are learnt."""
        return sum(int(example.labelled.sum()) for example in self.training)


def prepare(
    base_folder: Path,
    training_file: Path,
    validation_file: Path | None,
    wanted: Wanted,
    still_wanted: Callable[[], None] = lambda: None,
) -> Prepared:
    """Checks and renders everything. The same arguments always give the same result.

    `still_wanted` is called now and then and may raise to stop. Raises BadSpec, UnsupportedModel, or BadData with all
    problems of both files.
    """
    tokenizer = load_tokenizer(base_folder)
    model = read_facts(base_folder, tokenizer.eos_token_id)
    most = min(model.max_context_length, wanted.max_context_length or model.max_context_length)
    check(wanted, most)
    limit = wanted.context_length or most
    reader = _Reader(Renderer(tokenizer, model.stop_ids), limit, still_wanted)
    training = reader.read(training_file, "training_file")
    validation = reader.read(validation_file, "validation_file") if validation_file else None
    if reader.problems:
        raise BadData(*reader.problems[:_MAX_PROBLEMS])
    training, evaluation = _split(training, validation, wanted.seed)
    facts = Facts(
        rows=len(training),
        longest=max(len(example.token_ids) for example in training),
        hidden_size=model.hidden_size,
        model_type=model.model_type,
        max_context_length=most,
    )
    config, resolutions = resolve(wanted, facts)
    warnings = [*reader.warnings, *_evaluation_notes(validation, evaluation)]
    return Prepared(training, evaluation, validation is None, config, resolutions, warnings, model)


class _Reader:
    """Reads files into examples and gathers what is wrong with them."""

    def __init__(self, renderer: Renderer, limit: int, still_wanted: Callable[[], None]) -> None:
        self._renderer = renderer
        self._limit = limit
        self._still_wanted = still_wanted
        self.problems: list[Problem] = []
        self.warnings: list[str] = []

    def read(self, path: Path, param: str) -> list[Example]:
        rows, problems = read_rows(path, param)
        self.problems += problems
        examples: list[Example] = []
        spelled_out: list[int] = []
        for row in rows:
            if row.number % _CHECK_EVERY_ROWS == 0:
                self._still_wanted()
            try:
                examples.append(self._example(row))
            except CannotRender as error:
                self.problems.append(error.problem)
            if self._renderer.special_tokens_in(row):
                spelled_out.append(row.number)
        if spelled_out:
            self.warnings.append(_special_tokens_warning(param, spelled_out))
        least = MIN_ROWS if param == "training_file" else 1
        if len(rows) + len(problems) < least:
            message = f"The file has {len(rows)} rows; {least} are needed."
            self.problems.insert(0, Problem("invalid_n_examples", message, param))
        return examples

    def _example(self, row: Row) -> Example:
        example = self._renderer.render(row)
        length = len(example.token_ids)
        if length > self._limit:
            message = f"Row {row.number} has {length} tokens; the context length is {self._limit}. Shorten or split it."
            raise CannotRender(Problem("row_too_long", message, row.param, row.number))
        if not example.labelled.any():
            message = f"Row {row.number} has nothing to learn: no assistant message with weight 1."
            raise CannotRender(Problem("no_labelled_tokens", message, row.param, row.number))
        return example


def _split(training: list[Example], validation: list[Example] | None, seed: int) -> tuple[list[Example], list[Example]]:
    """Rows to train on and rows to evaluate on; without a validation file some rows are held out of training."""
    if validation is None:
        held = set(held_out_indices(len(training), seed))
        kept = [example for index, example in enumerate(training) if index not in held]
        return kept, [training[index] for index in sorted(held)]
    if len(validation) <= MAX_EVALUATION_ROWS:
        return training, validation
    chosen = np.random.default_rng([seed, 0]).permutation(len(validation))[:MAX_EVALUATION_ROWS]
    return training, [validation[index] for index in sorted(chosen)]


def _evaluation_notes(validation: Sequence[Example] | None, evaluation: Sequence[Example]) -> list[str]:
    if validation is None:
        return [f"No validation file: {len(evaluation)} training rows are held out for evaluation."]
    if len(validation) > len(evaluation):
        return [f"Evaluation uses {len(evaluation)} of {len(validation)} validation rows, chosen by the seed."]
    return []


def _special_tokens_warning(param: str, rows: Sequence[int]) -> str:
    named = ", ".join(str(row) for row in rows[:10]) + (" …" if len(rows) > 10 else "")
    return f"{len(rows)} rows of {param} spell out special tokens, which act as control tokens: rows {named}."
