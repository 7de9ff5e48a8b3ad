"""Whole runs of the methods that are not supervised tuning, each from its own kind of file."""

import json
import math
from pathlib import Path

import pytest

from tests.support.training_server import TrainingServer, next_attempt
from tests.trainer.conftest import RunAttempt
from tests.trainer.test_run import losses
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer.config import Facts, Wanted, resolve
from tunesmith_trainer.methods import TokenObjective, objective_of
from tunesmith_trainer.preference import PreferenceObjective


def preference_line(index: int) -> str:
    """One well-formed preference row."""
    return json.dumps(
        {
            "input": {"messages": [{"role": "user", "content": f"Item {index}?"}]},
            "preferred_output": [{"role": "assistant", "content": "yes"}],
            "non_preferred_output": [{"role": "assistant", "content": "not at all"}],
        }
    )


def given(server: TrainingServer, method: str, name: str, content: str) -> None:
    """Lets the attempt train with this method on this file."""
    (server.root / name).write_text(content)
    server.spec.method = method
    server.spec.training_file.CopyFrom(server.remote(name))


def given_preferences(server: TrainingServer) -> None:
    """20 pairs, 18 of them trained on: 2 passes of 5 steps."""
    given(server, "dpo", "pairs.jsonl", "\n".join(preference_line(index) for index in range(20)))
    server.spec.hyperparameters.beta = 0.2
    server.spec.hyperparameters.learning_rate_multiplier = 20


@pytest.mark.parametrize("method", ["supervised", "dpo", "continued_pretraining"])
def test_each_method_has_its_objective(method: str) -> None:
    wanted = Wanted(method=method, full_weights=False, seed=1)  # type: ignore[arg-type]  # one of its names
    config = resolve(wanted, Facts(10, 10, 10, 64, "llama", 512))[0]

    assert isinstance(objective_of(config), PreferenceObjective if method == "dpo" else TokenObjective)


def test_a_dpo_run_tells_what_is_preferred_before_and_after(server: TrainingServer, run_attempt: RunAttempt) -> None:
    given_preferences(server)

    assert run_attempt(server) == 0
    assert len(server.metrics) == 10
    assert server.metrics[0].train_loss == pytest.approx(math.log(2), abs=1e-5)
    assert server.metrics[-1].train_loss < server.metrics[0].train_loss
    assert server.metrics[-1].train_mean_token_accuracy == 1.0
    assert server.completed is not None
    before, after = server.completed.evaluation.base, server.completed.evaluation.tuned
    assert server.completed.evaluation.rows == 2
    assert after.loss < before.loss == pytest.approx(math.log(2))
    assert after.preference_margin > before.preference_margin
    assert after.preference_accuracy >= before.preference_accuracy
    assert not any(after.HasField(name) for name in ("token_accuracy", "exact_match", "perplexity"))


@pytest.mark.parametrize("weights", [pb.WEIGHTS_LORA, pb.WEIGHTS_FULL])
def test_a_killed_dpo_run_goes_on_to_the_same_losses(
    server: TrainingServer, run_attempt: RunAttempt, weights: pb.Weights.ValueType
) -> None:
    given_preferences(server)
    server.spec.weights = weights
    assert run_attempt(server) == 0
    uninterrupted = losses(server)
    assert uninterrupted[5][1] != pytest.approx(math.log(2), abs=1e-4)
    server.checkpoints = server.checkpoints[:1]  # as if it had been killed after the first pass
    next_attempt(server)

    assert run_attempt(server) == 0
    assert losses(server) == uninterrupted[5:]  # bit for bit


def test_raw_text_is_trained_on_whole_and_told_in_perplexity(server: TrainingServer, run_attempt: RunAttempt) -> None:
    text = "".join(f"The {index}th day was like the one before it.\n" for index in range(200))
    given(server, "continued_pretraining", "book.txt", text)

    assert run_attempt(server) == 0
    assert server.completed is not None
    before, after = server.completed.evaluation.base, server.completed.evaluation.tuned
    assert after.perplexity == pytest.approx(math.exp(after.loss))
    assert after.perplexity < before.perplexity
    assert after.HasField("token_accuracy")
    assert not after.HasField("exact_match")
    pieces = math.ceil(len(text) / 511)  # a token per byte, 512 of context, one of them seen before
    assert server.completed.trained_tokens == pytest.approx(2 * (len(text) + pieces), rel=0.1)


def test_a_preflight_of_raw_text_counts_pieces(server: TrainingServer, run_attempt: RunAttempt) -> None:
    given(server, "continued_pretraining", "rows.jsonl", "\n".join(json.dumps({"text": "a" * 700}) for _ in range(3)))
    server.spec.kind = pb.RUN_KIND_PREFLIGHT
    server.spec.hyperparameters.Clear()

    assert run_attempt(server) == 0
    assert server.preflight is not None
    counts = server.preflight.report.counts
    assert (counts.rows, counts.trained_rows, counts.evaluation_rows) == (3, 5, 1)
    assert counts.longest_row_tokens == 512
    assert counts.labelled_tokens == counts.tokens - counts.trained_rows
    assert not server.preflight.hyperparameters.HasField("beta")
    assert {one.name: one.reason for one in server.preflight.report.resolved}["learning_rate"].count("half of it")


@pytest.mark.parametrize(
    ("method", "name", "content", "problem"),
    [
        ("dpo", "rows.jsonl", '{"prompt": "a", "completion": "b"}', ("wrong_row_type", 1)),
        ("dpo", "book.txt", "Once upon a time.", ("wrong_row_type", None)),
        ("dpo", "rows.jsonl", '{"preferred_output": []}', ("invalid_file_format", 1)),
        ("supervised", "rows.jsonl", '{"text": "a"}', ("wrong_row_type", 1)),
        ("supervised", "rows.jsonl", preference_line(0), ("wrong_row_type", 1)),
        ("continued_pretraining", "rows.jsonl", preference_line(0), ("wrong_row_type", 1)),
        ("continued_pretraining", "rows.jsonl", '{"text": " "}', ("invalid_file_format", 1)),
        ("continued_pretraining", "book.txt", "Once upon a time.", ("invalid_n_examples", None)),
    ],
)
def test_a_file_that_does_not_fit_the_method_is_named(
    server: TrainingServer,
    run_attempt: RunAttempt,
    method: str,
    name: str,
    content: str,
    problem: tuple[str, int | None],
) -> None:
    given(server, method, name, content if name.endswith(".txt") else "\n".join([content] * 10))
    server.spec.kind = pb.RUN_KIND_PREFLIGHT

    assert run_attempt(server) == 65
    assert server.failed is not None
    first = server.failed.failures[0]
    assert (first.code, first.row if first.HasField("row") else None) == problem
    assert first.param == "training_file"
    assert first.message.endswith(".")


def test_a_long_answer_of_a_pair_is_dropped_where_the_job_wants_it(
    server: TrainingServer, run_attempt: RunAttempt, tmp_path: Path
) -> None:
    long = json.loads(preference_line(0))
    long["non_preferred_output"][0]["content"] = "x" * 600
    lines = [*(preference_line(index) for index in range(12)), json.dumps(long)]
    given(server, "dpo", "pairs.jsonl", "\n".join(lines))
    server.spec.kind, server.spec.long_rows = pb.RUN_KIND_PREFLIGHT, pb.LONG_ROWS_DROP

    assert run_attempt(server) == 0
    assert server.preflight is not None
    assert server.preflight.report.counts.dropped_rows == 1
    assert server.preflight.hyperparameters.beta == 0.1
