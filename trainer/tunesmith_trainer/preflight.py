"""Owns the checks of a job's data: every row of both files rendered, every finding gathered, every number resolved.
Must not know torch, how findings travel or where files came from. Loads no weights."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tunesmith_trainer.base_model import ModelFacts, read_facts
from tunesmith_trainer.config import Facts, Method, Resolution, TrainingConfig, Wanted, check, resolve, row_limit
from tunesmith_trainer.data import RowKind, held_out_indices
from tunesmith_trainer.errors import BadData, BadSpec, Problem
from tunesmith_trainer.example import Example, labelled_tokens
from tunesmith_trainer.findings import Findings
from tunesmith_trainer.rendering import Renderer
from tunesmith_trainer.row_cache import RowCache
from tunesmith_trainer.row_checks import FileRows, RowReader, Watch
from tunesmith_trainer.tokenizer import load_tokenizer

MIN_ROWS = 10
MIN_PIECES = 2  # of raw text: one to learn and one to hold out
MAX_EVALUATION_ROWS = 500  # a share measured on 500 rows is within 4.4 points of the truth
_LEAST_LABELLED_SHARE = 0.01
_FEW_ROWS = 20
_ROW_KINDS: dict[Method, RowKind] = {"supervised": "chat", "dpo": "preference", "continued_pretraining": "text"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows ready to be trained on and evaluated with, and every number of the run.

    `merged`: what adapters learn is served as whole weights, since engines could not load them on the base model.
    `completions`: every row to train on is a prompt and its completion.
    """

    training: list[Example]
    evaluation: list[Example]
    held_out_from_training: bool
    config: TrainingConfig
    resolutions: list[Resolution]
    notes: list[str]
    model: ModelFacts
    merged: bool
    completions: bool

    @property
    def tokens(self) -> int:
        """Tokens of one pass, prompts included."""
        return sum(len(example.token_ids) for example in self.training)

    @property
    def labelled_tokens(self) -> int:
        """Tokens of one pass that are learnt."""
        return labelled_tokens(self.training)


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found in the files. `prepared` is None where something is wrong with them, or with the job's numbers."""

    training: FileRows
    validation: FileRows | None
    findings: Findings
    prepared: Prepared | None


def prepare(
    base_folder: Path,
    training_file: Path,
    validation_file: Path | None,
    wanted: Wanted,
    still_wanted: Callable[[], None] = lambda: None,
    cache: Path | None = None,
) -> Prepared:
    """Checks and renders everything. The same arguments always give the same result.

    `still_wanted` is called now and then and may raise to stop. Rendered rows are kept in the folder `cache`. Raises
    UnsupportedModel, or BadData with all problems of the job's numbers and of both files.
    """
    examined = examine(base_folder, training_file, validation_file, wanted, lambda done, rows: still_wanted(), cache)
    if examined.prepared is None:
        raise BadData(*examined.findings.problems())
    return examined.prepared


def examine(
    base_folder: Path,
    training_file: Path,
    validation_file: Path | None,
    wanted: Wanted,
    watch: Watch,
    cache: Path | None = None,
) -> Examined:
    """Like `prepare`, but what is wrong with the files is found and not raised. Raises UnsupportedModel."""
    tokenizer = load_tokenizer(base_folder, wanted.day)
    model = read_facts(base_folder, tokenizer.eos_token_id)
    most = min(model.max_context_length, wanted.max_context_length or model.max_context_length)
    findings = Findings()
    try:
        check(wanted, most)
    except BadSpec as refused:
        for problem in refused.problems:
            findings.add(problem)
    renderer = Renderer(tokenizer, model.stop_ids)
    kind, limit = _ROW_KINDS[wanted.method], row_limit(wanted, most)
    read = RowReader(tokenizer, renderer, kind, limit, wanted.long_rows, watch, model.vocabulary).read
    if cache is not None:
        day = str(wanted.day) if renderer.mentions("strftime_now") else None
        kept = RowCache(cache, base_folder, [kind, limit, wanted.long_rows, model.stop_ids, model.vocabulary, day])
        read = partial(kept.read, read=read)
    training = read(training_file, "training_file")
    validation = read(validation_file, "validation_file") if validation_file else None
    for file in (training, validation):
        if file is not None:
            findings.extend(file.findings)
    if kind == "text":
        _check_pieces(training, validation, findings)
    else:
        _check_rows(training, validation, renderer, findings)
    _check_overlap(training, validation, findings)
    prepared = None if findings.problems() else _prepared(training, validation, wanted, model, most)
    return Examined(training, validation, findings, prepared)


def _check_rows(training: FileRows, validation: FileRows | None, renderer: Renderer, findings: Findings) -> None:
    """What only shows in a file as a whole."""
    for file, least in ((training, MIN_ROWS), (validation, 1)):
        if file is not None:
            _check_size(file, least, findings)
    if not renderer.has_chat_template:
        message = "The base model has no chat template: prompts and completions are trained as plain text."
        findings.add(Problem("no_chat_template", message, "model"), "warning")
    tokens = sum(len(example.token_ids) for example in training.examples)
    labelled = labelled_tokens(training.examples)
    if labelled < tokens * _LEAST_LABELLED_SHARE:
        message = f"Only {labelled} of {tokens} tokens are answers to learn from; most of the time goes into prompts."
        findings.add(Problem("few_labelled_tokens", message, "training_file"), "warning")


def _check_pieces(training: FileRows, validation: FileRows | None, findings: Findings) -> None:
    """Raw text is counted in pieces, however many rows it came in."""
    for file, least in ((training, MIN_PIECES), (validation, 1)):
        if file is not None and len(file.examples) < least and not findings.rejected("refused"):
            message = f"The text is enough for {len(file.examples)} pieces; {least} are needed. Add text."
            findings.add(Problem("invalid_n_examples", message, file.param))


def _check_overlap(training: FileRows, validation: FileRows | None, findings: Findings) -> None:
    if validation is not None:
        for content, row in validation.seen.items():
            if content in training.seen:
                message = f"Row {row} is also row {training.seen[content]} of the training file; scores on it flatter."
                findings.add(Problem("row_in_both_files", message, "validation_file", row), "warning")


def _check_size(file: FileRows, least: int, findings: Findings) -> None:
    dropped = sum(one.action == "dropped" and one.param == file.param for one in findings.rejects)
    if file.rows - dropped < least:
        left = f"; {dropped} of them are left out, being too long" if dropped else ""
        remedy = "Shorten or split them, or add rows" if dropped else "Add rows"
        message = f"The file has {file.rows} rows{left}; {least} are needed. {remedy}."
        findings.add(Problem("invalid_n_examples", message, file.param))


def _prepared(
    training: FileRows, validation: FileRows | None, wanted: Wanted, model: ModelFacts, most: int
) -> Prepared:
    examples, evaluation = _split(training.examples, validation.examples if validation else None, wanted.seed)
    facts = Facts(
        rows=len(examples),
        longest=max(length for example in examples for length in example.documents),
        labelled=labelled_tokens(examples) / len(examples),
        hidden_size=model.hidden_size,
        model_type=model.model_type,
        max_context_length=most,
    )
    config, resolutions = resolve(wanted, facts)
    notes = _evaluation_notes(training, validation, examples, evaluation)
    merged = not wanted.full_weights and (model.served_merged or wanted.start == "tuned_weights")
    if merged:
        which = f"for {model.model_type}" if model.served_merged else "on tuned weights"
        notes.append(f"Engines load no adapters {which}: what they learn is merged into the weights.")
    completions = training.completions == training.rows
    return Prepared(examples, evaluation, validation is None, config, resolutions, notes, model, merged, completions)


def _split(training: list[Example], validation: list[Example] | None, seed: int) -> tuple[list[Example], list[Example]]:
    """Rows to train on and rows to evaluate on; without a validation file some rows are held out of training."""
    if validation is None:
        return _without_held_out(training, seed)
    if len(validation) <= MAX_EVALUATION_ROWS:
        return training, validation
    chosen = np.random.default_rng([seed, 0]).permutation(len(validation))[:MAX_EVALUATION_ROWS]
    return training, [validation[index] for index in sorted(chosen)]


def _without_held_out(rows: list[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Rows to train on, and rows held out with all their copies.

    Where most of the rows would go so, only rows without copies are held out; where there are too few of them, any
    row, and its copies stay.
    """
    keys = [example.token_ids.tobytes() for example in rows]
    for most_copies in (len(rows), 1):
        kept, held = _parted(keys, most_copies, seed)
        if held and 2 * len(kept) > len(rows):
            break
    else:
        kept, held = _parted(range(len(rows)), 1, seed)
    return [rows[index] for index in kept], [rows[index] for index in held]


def _parted(keys: Sequence[Hashable], most_copies: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices that are kept, and of each key that is held out the first; its others are in neither.

    Keys that occur more than `most_copies` times are not held out.
    """
    counts = Counter(keys)
    first: dict[Hashable, int] = {}
    for index, key in enumerate(keys):
        if counts[key] <= most_copies:
            first.setdefault(key, index)
    places = list(first.values())
    held = [places[place] for place in held_out_indices(len(places), seed)]
    gone = {keys[index] for index in held}
    return [index for index, key in enumerate(keys) if key not in gone], held


def _evaluation_notes(
    training: FileRows, validation: FileRows | None, examples: list[Example], evaluation: list[Example]
) -> list[str]:
    if validation is None:
        held = f"{len(evaluation)} training rows are" if len(evaluation) != 1 else "1 training row is"
        few = "; scores on so few say little, a validation file says more" if len(evaluation) < _FEW_ROWS else ""
        copies = len(training.examples) - len(examples) - len(evaluation)
        held_texts = {example.token_ids.tobytes() for example in evaluation}
        also = ""
        if copies:
            also = f" Their {copies} copies are not trained on."
        elif any(example.token_ids.tobytes() in held_texts for example in examples):
            also = " Copies of them are trained on, since nearly all rows have copies: scores on them flatter."
        return [f"No validation file: {held} held out for evaluation{few}.{also}"]
    if len(validation.examples) > len(evaluation):
        rows = len(validation.examples)
        return [f"Evaluation uses {len(evaluation)} of {rows} validation rows, chosen by the seed."]
    return []
