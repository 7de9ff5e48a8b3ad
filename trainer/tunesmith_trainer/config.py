"""Owns the numbers of a run: every "auto" becomes a number with a reason, by pure functions.
Must not know torch, files or the control plane."""

import math
from dataclasses import dataclass
from datetime import date
from typing import Literal

from tunesmith_trainer.data import steps_per_pass
from tunesmith_trainer.errors import BadSpec, Problem

LongRows = Literal["fail", "cut", "drop"]
Method = Literal["supervised", "dpo", "continued_pretraining"]
Start = Literal["base", "adapter", "tuned_weights"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the job asks for. None means auto, and no targets mean all linear layers.

    `learning_rate` is the peak where it has been resolved before: rules may have changed since, a job's rate may not.
    `max_rank` and `max_context_length` are what serving accepts.
    `long_rows` is what becomes of rows over the context: the job fails, or they are cut at the end or dropped.
    `day` is what chat templates are told that it is; without one, they look.
    `start` is what the run goes on from: the base model, a tuned adapter on it, or tuned weights in place of its own.
    """

    full_weights: bool
    seed: int
    n_epochs: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    learning_rate: float | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] = ()
    use_rslora: bool | None = None
    context_length: int | None = None
    max_rank: int = 0
    max_context_length: int | None = None
    long_rows: LongRows = "fail"
    method: Method = "supervised"
    beta: float | None = None
    early_stopping_patience: int | None = None
    start: Start = "base"
    day: date | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at. `rows` are the rows trained on; `longest` is the longest of all rows in tokens.

    `labelled` is the mean number of tokens that a row teaches.
    """

    rows: int
    longest: int
    labelled: float
    hidden_size: int
    model_type: str
    max_context_length: int


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Every number of a run. `learning_rate` is the peak, `beta` is of use for dpo only."""

    method: Method
    full_weights: bool
    seed: int
    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    learning_rate: float
    warmup_steps: int
    total_steps: int
    steps_per_pass: int
    lora_rank: int
    lora_alpha: float
    lora_targets: tuple[str, ...]
    use_rslora: bool
    context_length: int
    beta: float
    early_stopping_patience: int | None
    """Passes that may end without a better validation loss before the run stops. None: it never stops early."""

    @property
    def by_document(self) -> bool:
        """Whether a row's documents count one by one and need not be in one pack; a pair of answers has to."""
        return self.method != "dpo"


@dataclass(frozen=True, slots=True)
class Resolution:
    """One number and why it is what it is."""

    name: str
    value: str
    reason: str


def resolve(wanted: Wanted, facts: Facts) -> tuple[TrainingConfig, list[Resolution]]:
    """Turns what is wanted into numbers. The same arguments always give the same numbers."""
    n_epochs, why_epochs = _epochs(wanted, facts)
    batch_size, why_batch = _batch_size(wanted, facts, n_epochs)
    per_pass = steps_per_pass(facts.rows, batch_size)
    total = per_pass * n_epochs
    multiplier = 1.0 if wanted.learning_rate_multiplier is None else wanted.learning_rate_multiplier
    rate, why_rate = _peak(wanted, facts, batch_size, total, multiplier)
    warmup = min(100, max(5, round(0.03 * total)), max(1, total // 4))
    rank, why_rank = _rank(wanted)
    alpha = 32.0 if wanted.lora_alpha is None else wanted.lora_alpha
    context, why_context = _context(wanted, facts)
    beta = 0.1 if wanted.beta is None else wanted.beta
    config = TrainingConfig(
        method=wanted.method,
        full_weights=wanted.full_weights,
        seed=wanted.seed,
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=multiplier,
        learning_rate=rate,
        warmup_steps=warmup,
        total_steps=total,
        steps_per_pass=per_pass,
        lora_rank=rank,
        lora_alpha=alpha,
        lora_targets=wanted.lora_targets,
        use_rslora=bool(wanted.use_rslora),
        context_length=context,
        beta=beta,
        early_stopping_patience=wanted.early_stopping_patience,
    )
    why_alpha = "fixed, so that the learning rate is free of the rank" if wanted.lora_alpha is None else _given(wanted)
    resolutions = [
        Resolution("n_epochs", str(n_epochs), why_epochs),
        Resolution("batch_size", str(batch_size), why_batch),
        Resolution("learning_rate", f"{rate:.3g}", why_rate),
        Resolution("warmup_steps", str(warmup), f"3 % of {total} steps, 5 to 100, at most a quarter; then linear to 0"),
        Resolution("context_length", str(config.context_length), why_context),
    ]
    if wanted.method == "dpo":
        resolutions.append(Resolution("beta", f"{beta:g}", "requested" if wanted.beta is not None else "the usual one"))
    if not wanted.full_weights:
        resolutions += [Resolution("lora_rank", str(rank), why_rank), Resolution("lora_alpha", f"{alpha:g}", why_alpha)]
    if wanted.early_stopping_patience is not None:
        why_patience = "requested; the checkpoint with the best validation loss becomes the model"
        if n_epochs <= wanted.early_stopping_patience:
            why_patience = f"requested, and without effect in {n_epochs} pass{'es' * (n_epochs > 1)}"
        resolutions.append(Resolution("early_stopping_patience", str(wanted.early_stopping_patience), why_patience))
    return config, resolutions


def check(wanted: Wanted, max_context_length: int) -> None:
    """Raises BadSpec when a requested number is out of its domain or beyond what model and serving take."""
    limits = (
        ("n_epochs", wanted.n_epochs, 1, 50),
        ("batch_size", wanted.batch_size, 1, 256),
        ("lora_rank", wanted.lora_rank, 1, wanted.max_rank or 1024),
        ("context_length", wanted.context_length, 16, max_context_length),
        ("early_stopping_patience", wanted.early_stopping_patience, 1, 50),
    )
    for name, value, least, most in limits:
        if value is not None and not least <= value <= most:
            raise _out_of_range(name, f"must be between {least} and {most}, not {value}")
    if wanted.beta is not None and not 0 < wanted.beta <= 2:
        raise _out_of_range("beta", f"must be above 0 and at most 2, not {wanted.beta}")
    positive = (("learning_rate_multiplier", wanted.learning_rate_multiplier), ("lora_alpha", wanted.lora_alpha))
    for name, number in positive:
        if number is not None and not 0 < number < math.inf:
            raise _out_of_range(name, f"must be a number above 0, not {number}")


def row_limit(wanted: Wanted, max_context_length: int) -> int:
    """Tokens that a row may have; continued pretraining splits its texts into pieces of so many."""
    if wanted.context_length is not None:
        return max(2, min(wanted.context_length, max_context_length))  # fewer would split no text
    return min(_PIECE_TOKENS, max_context_length) if wanted.method == "continued_pretraining" else max_context_length


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Rate of the 1-based `step`: linear warm-up to the peak, then linear towards 0 after the last step."""
    if step <= config.warmup_steps:
        return config.learning_rate * (step / config.warmup_steps)
    remaining = config.total_steps - step + 1
    return config.learning_rate * (remaining / (config.total_steps - config.warmup_steps + 1))


def _epochs(wanted: Wanted, facts: Facts) -> tuple[int, str]:
    if wanted.n_epochs is not None:
        return wanted.n_epochs, "requested"
    rows = facts.rows
    if rows * 3 < 100:
        return max(1, min(25, 100 // rows)), f"{rows} rows are few: enough passes for about 100 rows, at most 25"
    if rows > 25_000:
        return 1, f"{rows} rows are many: one pass"
    if rows * 3 > 25_000:
        return 25_000 // rows, f"{rows} rows are many: as many passes as stay within 25,000 rows"
    return 3, "the usual number of passes"


def _batch_size(wanted: Wanted, facts: Facts, n_epochs: int) -> tuple[int, str]:
    if wanted.batch_size is not None:
        return min(wanted.batch_size, facts.rows), "requested, at most all rows"
    seen = facts.rows * n_epochs
    batch = 2 ** max(0, min(5, math.floor(math.log2(max(1.0, seen / 50)))))
    return min(batch, facts.rows), f"the largest power of two up to 32 that leaves 50 steps for {seen} rows seen"


def _context(wanted: Wanted, facts: Facts) -> tuple[int, str]:
    context = row_limit(wanted, facts.max_context_length)
    if wanted.context_length is not None:
        return context, "requested"
    if wanted.method == "continued_pretraining":
        return context, f"texts are split into pieces of this length: the model's, at most {_PIECE_TOKENS}"
    return context, f"the model's; the longest row has {facts.longest} tokens"


_PIECE_TOKENS = 2048
_SHORT_RUN_STEPS = 100
_EXPONENTS = {"llama": 0.781, "mistral": 0.781, "qwen2": 0.0775, "qwen3": 0.0775}


# Of the supervised rate: preferences need small steps, raw text moves more of what the base knows.
_METHOD_RATES = {
    "dpo": (1 / 30, "a thirtieth of it for dpo"),
    "continued_pretraining": (0.5, "half of it for raw text"),
}


def _peak(wanted: Wanted, facts: Facts, batch_size: int, total: int, multiplier: float) -> tuple[float, str]:
    if wanted.learning_rate is not None:
        return wanted.learning_rate, "as the job began"
    rate, why = _learning_rate(wanted, facts, batch_size, total)
    return rate * multiplier, f"{why}, times the multiplier {multiplier:g}"


def _learning_rate(wanted: Wanted, facts: Facts, batch_size: int, total_steps: int) -> tuple[float, str]:
    """Tinker's rule for the width, with factors measured on SmolLM2-135M (tests/benchmarks/quality)."""
    exponent = _EXPONENTS.get(facts.model_type, 0.43)
    rate = min(1.5e-3, max(5e-5, 5e-4 * (2000 / facts.hidden_size) ** exponent))
    reason = f"5e-4 · (2000 / {facts.hidden_size})^{exponent:g} within 5e-5 and 1.5e-3"
    if total_steps < _SHORT_RUN_STEPS:
        rate, reason = rate * 1.5, f"{reason}, half as much again for fewer than {_SHORT_RUN_STEPS} steps"
    if wanted.full_weights:
        rate, reason = rate / 10, f"a tenth of LoRA's {reason}"
    if wanted.method in _METHOD_RATES:
        factor, why = _METHOD_RATES[wanted.method]
        return rate * factor, f"{reason}, {why}"
    factor = _share_for_noise(facts.labelled, batch_size)
    if factor < 1:
        why = f"{factor:.2g} of it for {batch_size} rows a step of {facts.labelled:.0f} learnt tokens each"
        return rate * factor, f"{reason}, {why}"
    return rate, reason


_SHORT_ANSWER, _QUIET_BATCH = 32, 16


def _share_for_noise(labelled: float, batch_size: int) -> float:
    """Long answers are mostly language that the base knows, so that the noise of small batches costs more than large
    steps bring. Short ones, such as names of classes, are new to it, and want large steps in any batch.
    """
    return min(1.0, max(math.sqrt(batch_size / _QUIET_BATCH), _SHORT_ANSWER / labelled))


def _rank(wanted: Wanted) -> tuple[int, str]:
    if wanted.lora_rank is not None:
        return wanted.lora_rank, _given(wanted)
    if 0 < wanted.max_rank < 16:
        return wanted.max_rank, "the highest rank that serving accepts"
    return 16, "enough for data sets of this kind, and every serving engine accepts it"


def _given(wanted: Wanted) -> str:
    return "requested" if wanted.start != "adapter" else "that of the adapter which the job goes on from"


def _out_of_range(name: str, what: str) -> BadSpec:
    return BadSpec(Problem("invalid_hyperparameter", f"{name} {what}.", f"hyperparameters.{name}"))
