"""What "auto" becomes, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith_trainer.config import Facts, Method, Start, TrainingConfig, Wanted, check, learning_rate_at, resolve
from tunesmith_trainer.errors import BadSpec

AUTO = Wanted(full_weights=False, seed=1)
SMOLLM2 = Facts(rows=500, longest=90, labelled=10, hidden_size=576, model_type="llama", max_context_length=8192)


def numbers(rows: int = 500, **wanted: object) -> TrainingConfig:
    return resolve(replace(AUTO, **wanted), replace(SMOLLM2, rows=rows))[0]  # type: ignore[arg-type]  # names are checked


@pytest.mark.parametrize(
    ("rows", "epochs"), [(10, 10), (3, 25), (33, 3), (34, 3), (500, 3), (8333, 3), (8334, 2), (12_501, 1), (90_000, 1)]
)
def test_epochs_follow_the_published_rule(rows: int, epochs: int) -> None:
    assert numbers(rows).n_epochs == epochs


@pytest.mark.parametrize(("rows", "batch"), [(10, 2), (100, 4), (500, 16), (5000, 32), (90_000, 32)])
def test_the_batch_leaves_enough_steps(rows: int, batch: int) -> None:
    assert numbers(rows).batch_size == batch


def test_a_batch_is_never_larger_than_the_data() -> None:
    assert numbers(10, batch_size=256).batch_size == 10


def test_the_learning_rate_follows_width_and_family() -> None:
    llama_8b = replace(SMOLLM2, rows=5000, hidden_size=4096)
    qwen_8b = replace(llama_8b, model_type="qwen3")
    assert resolve(AUTO, llama_8b)[0].learning_rate == pytest.approx(2.86e-4, rel=0.01)
    assert resolve(AUTO, qwen_8b)[0].learning_rate == pytest.approx(4.7e-4, rel=0.01)
    llama_135m, short = numbers(5000), numbers(500, n_epochs=1)
    assert llama_135m.learning_rate * 1.5 == pytest.approx(short.learning_rate) == pytest.approx(1.98e-3, rel=0.01)


def test_full_weights_take_a_tenth_of_the_rate() -> None:
    assert numbers(full_weights=True).learning_rate == pytest.approx(numbers().learning_rate / 10)


@pytest.mark.parametrize(
    ("labelled", "batch_size", "share"),
    [(7, 4, 1), (26, 4, 1), (40, 4, 0.8), (500, 1, 0.25), (127, 4, 0.5), (127, 8, 0.71), (127, 16, 1), (127, 32, 1)],
)
def test_small_batches_of_long_answers_take_less_of_the_rate(labelled: float, batch_size: int, share: float) -> None:
    rate = resolve(replace(AUTO, batch_size=batch_size, n_epochs=1), replace(SMOLLM2, rows=50, labelled=labelled))[0]
    assert rate.learning_rate == pytest.approx(1.98e-3 * share, rel=0.01)


@pytest.mark.parametrize(("method", "share"), [("dpo", 1 / 30), ("continued_pretraining", 0.5)])
def test_other_methods_take_a_share_of_their_own(method: Method, share: float) -> None:
    facts = replace(SMOLLM2, rows=100, labelled=500)
    rate = resolve(replace(AUTO, method=method), facts)[0].learning_rate
    assert rate == pytest.approx(1.98e-3 * share, rel=0.01)


def test_the_multiplier_multiplies() -> None:
    assert numbers(learning_rate_multiplier=0.5).learning_rate == pytest.approx(numbers().learning_rate / 2)


def test_a_rate_that_was_resolved_before_stays() -> None:
    assert numbers(learning_rate=3e-4, learning_rate_multiplier=2.0).learning_rate == 3e-4


@pytest.mark.parametrize(("epochs", "told"), [(3, "becomes the model"), (2, "without effect in 2 passes")])
def test_patience_that_outlasts_the_run_is_said_to_be_of_no_use(epochs: int, told: str) -> None:
    wanted = replace(AUTO, early_stopping_patience=2, n_epochs=epochs)
    (reason,) = [one.reason for one in resolve(wanted, SMOLLM2)[1] if one.name == "early_stopping_patience"]
    assert told in reason


def test_the_rank_stays_within_what_serving_accepts() -> None:
    assert numbers().lora_rank == 16
    assert numbers(max_rank=8).lora_rank == 8


def test_every_number_has_a_reason() -> None:
    config, resolutions = resolve(AUTO, SMOLLM2)
    names = [one.name for one in resolutions]
    assert names == [
        "n_epochs", "batch_size", "learning_rate", "warmup_steps", "context_length", "lora_rank", "lora_alpha"
    ]  # fmt: skip
    assert all(one.reason and one.value for one in resolutions)
    assert config.total_steps == config.steps_per_pass * config.n_epochs


@pytest.mark.parametrize(("start", "why"), [("base", "requested"), ("adapter", "that of the adapter")])
def test_a_given_rank_is_the_jobs_or_that_of_the_adapter_it_goes_on_from(start: Start, why: str) -> None:
    _, resolutions = resolve(replace(AUTO, lora_rank=4, lora_alpha=8, start=start), SMOLLM2)
    reasons = {one.name: one.reason for one in resolutions}
    assert reasons["lora_rank"] == reasons["lora_alpha"]
    assert reasons["lora_rank"].startswith(why)


@given(st.integers(1, 20_000), st.integers(1, 50))
def test_the_schedule_rises_to_its_peak_and_falls_towards_zero(rows: int, epochs: int) -> None:
    config = numbers(rows, n_epochs=epochs)
    steps = sorted(
        {1, config.warmup_steps, config.warmup_steps + 1, config.total_steps} & set(range(config.total_steps + 1))
    )
    rates = [learning_rate_at(config, step) for step in steps]
    assert all(0 < rate <= config.learning_rate for rate in rates)
    assert learning_rate_at(config, config.warmup_steps) == pytest.approx(config.learning_rate)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_epochs", 51),
        ("batch_size", 0),
        ("lora_rank", 64),
        ("context_length", 9000),
        ("learning_rate_multiplier", 0.0),
        ("lora_alpha", float("inf")),
    ],
)
def test_numbers_out_of_range_name_their_parameter(name: str, value: float) -> None:
    wanted = replace(AUTO, max_rank=32, **{name: value})  # type: ignore[arg-type]  # names are checked
    with pytest.raises(BadSpec) as refused:
        check(wanted, max_context_length=8192)
    assert refused.value.problems[0].param == f"hyperparameters.{name}"
