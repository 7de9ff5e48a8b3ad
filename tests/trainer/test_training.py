"""Whole runs that go on: from a tuned model, which they are compared with, and at another number of ranks."""

import json
import logging
import math
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from tests.support.ranks import Ranks
from tests.support.steps import assert_moved_alike
from tests.support.training_server import TOKEN, TrainingServer, next_attempt
from tests.trainer.conftest import RunAttempt
from tests.trainer.test_methods import given_preferences
from tests.trainer.test_run import losses
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer.reporter import Reporter, Silence
from tunesmith_trainer.run import run_as_rank


def go_on(server: TrainingServer) -> None:
    """Makes another job of the attempt, one that starts from what the last one delivered."""
    assert server.completed is not None
    artifact = server.completed.artifact
    (server.root / "out").rename(server.root / "first")
    files = [server.remote(f"first/{artifact.prefix}/{file.path}", file.path) for file in artifact.files]
    server.spec.warm_start.CopyFrom(pb.WarmStart(kind=artifact.kind, files=files))
    server.heartbeats.clear()
    server.checkpoints.clear()
    server.completed = None


def evaluation(server: TrainingServer) -> pb.Evaluation:
    assert server.completed is not None
    return server.completed.evaluation


@pytest.mark.parametrize("second", [pb.WEIGHTS_LORA, pb.WEIGHTS_FULL])
@pytest.mark.parametrize("first", [pb.WEIGHTS_LORA, pb.WEIGHTS_FULL])
def test_a_tuned_model_is_tuned_further(
    server: TrainingServer, run_attempt: RunAttempt, first: pb.Weights.ValueType, second: pb.Weights.ValueType
) -> None:
    server.spec.weights = first
    assert run_attempt(server) == 0
    tuned = evaluation(server).tuned
    go_on(server)
    server.spec.weights = second

    assert run_attempt(server) == 0
    assert evaluation(server).base.loss == pytest.approx(tuned.loss, rel=1e-4)
    assert evaluation(server).tuned.loss < tuned.loss
    assert server.completed is not None
    on_the_base = first == second == pb.WEIGHTS_LORA
    kind = pb.ARTIFACT_KIND_ADAPTER if on_the_base else pb.ARTIFACT_KIND_FULL
    assert server.completed.artifact.kind == kind


def test_the_result_is_one_adapter_on_the_same_base(server: TrainingServer, run_attempt: RunAttempt) -> None:
    server.spec.hyperparameters.lora_targets.append("attention")
    server.spec.hyperparameters.use_rslora = True
    assert run_attempt(server) == 0
    go_on(server)
    assert run_attempt(server) == 0

    first, second = server.root / "first/step-10", server.root / "out/step-10"
    config = json.loads((second / "adapter_config.json").read_text())
    assert config == json.loads((first / "adapter_config.json").read_text())
    assert (config["r"], config["use_rslora"]) == (4, True)
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    was, now = (json.loads((folder / "golden.json").read_text())["prompts"] for folder in (first, second))
    assert [one["base_logprobs"] for one in was] == [one["base_logprobs"] for one in now]  # of what engines load
    assert [one["logprobs"] for one in was] != [one["logprobs"] for one in now]


def test_dpo_stays_near_the_tuned_model_that_it_goes_on_from(server: TrainingServer, run_attempt: RunAttempt) -> None:
    assert run_attempt(server) == 0
    go_on(server)
    given_preferences(server)

    assert run_attempt(server) == 0
    assert server.metrics[0].train_loss == pytest.approx(math.log(2), abs=1e-5)
    assert evaluation(server).base.loss == pytest.approx(math.log(2))
    assert evaluation(server).tuned.preference_margin > evaluation(server).base.preference_margin


@pytest.mark.parametrize("first", [pb.WEIGHTS_LORA, pb.WEIGHTS_FULL])
def test_a_killed_run_that_went_on_resumes_to_the_same_losses(
    server: TrainingServer, run_attempt: RunAttempt, first: pb.Weights.ValueType
) -> None:
    server.spec.weights = first
    assert run_attempt(server) == 0
    go_on(server)
    server.spec.weights = pb.WEIGHTS_LORA
    assert run_attempt(server) == 0
    uninterrupted = losses(server)
    server.checkpoints = server.checkpoints[:1]  # as if it had been killed after the first pass
    next_attempt(server)

    assert run_attempt(server) == 0
    assert losses(server) == uninterrupted[5:]  # bit for bit


def test_the_log_has_a_line_for_each_phase_and_no_text_of_the_rows(
    server: TrainingServer, run_attempt: RunAttempt, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert run_attempt(server) == 0

    start, *lines = [record.getMessage() for record in caplog.records if record.name.startswith("tunesmith_trainer")]
    assert start.startswith("training of attempt attempt-1 begins with python 3.")
    assert f"torch {version('torch')}, transformers " in start
    assert lines == [
        "data is prepared: 18 rows to train on, 2 to evaluate with; 1223 tokens a pass",
        "training goes from step 1 to step 10",
        "the checkpoint of step 5 is committed",
        "the checkpoint of step 10 is committed",
        "training is complete; the checkpoint of step 10 is the result",
        "the run is done",
    ]


def test_freed_memory_is_given_back_between_packs_where_there_is_more_than_planned(
    server: TrainingServer, run_attempt: RunAttempt
) -> None:
    with mock.patch("tunesmith_trainer.training.allocator.give_back") as give_back:
        assert run_attempt(server) == 0

    (most,) = {call.args[0] for call in give_back.call_args_list}
    assert 600 << 20 < most < 1 << 30, "what a tiny model is planned to need, and a tenth"
    assert give_back.call_count >= server.spec.hyperparameters.n_epochs * 5, "for each step at least"


def run_on(ranks: Ranks, server: TrainingServer, cache: Path, work: Path) -> None:
    """Runs the server's attempt on these ranks."""
    work.mkdir()
    ranks.run_apart(_be_rank, server.port, cache, work)


def _be_rank(rank: int, count: int, port: int, cache: Path, work: Path) -> None:
    reporter = Reporter(f"127.0.0.1:{port}", TOKEN) if rank == 0 else Silence()
    # As `run_attempt` does, and for its reason.
    chosen = ("float32", 1e11, "tests compare runs")
    with mock.patch("tunesmith_trainer.model.choose_cpu_dtype", return_value=chosen):
        try:
            run_as_rank(rank, count, reporter, cache, work)
        finally:
            reporter.close()


@pytest.mark.parametrize("weights", [pb.WEIGHTS_LORA, pb.WEIGHTS_FULL])
@pytest.mark.parametrize("first", [1, 2])
def test_a_checkpoint_goes_on_at_another_number_of_ranks(
    server: TrainingServer,
    run_attempt: RunAttempt,
    two_ranks: Ranks,
    cache: Path,
    tmp_path: Path,
    weights: pb.Weights.ValueType,
    first: int,
) -> None:
    def attempt(ranks: int) -> None:
        if ranks == 1:
            assert run_attempt(server) == 0
        else:
            run_on(two_ranks, server, cache, tmp_path / "work")

    server.spec.weights = weights
    attempt(first)
    uninterrupted = [one.train_loss for one in server.metrics]
    evaluated = server.completed
    final = server.root / "out/step-10"
    weights_file = "adapter_model.safetensors" if weights == pb.WEIGHTS_LORA else "model.safetensors"
    expected, files = load_file(final / weights_file), {path.name for path in final.iterdir()}
    first_pass = load_file(server.root / "out/step-5" / weights_file)
    server.checkpoints = server.checkpoints[:1]  # as if it had been killed after the first pass
    next_attempt(server)
    attempt(3 - first)

    assert [one.train_loss for one in server.metrics] == pytest.approx(uninterrupted[5:], abs=1e-5)
    assert {path.name for path in final.iterdir()} == files
    resumed = load_file(final / weights_file)
    assert resumed.keys() == expected.keys()
    assert_moved_alike(first_pass, resumed, expected)
    assert evaluated is not None
    assert server.completed is not None
    assert server.completed.evaluation.tuned.loss == pytest.approx(evaluated.evaluation.tuned.loss, abs=1e-5)


def test_two_ranks_compute_split_layers_twice_where_memory_is_short(
    server: TrainingServer, run_attempt: RunAttempt, two_ranks: Ranks, cache: Path, tmp_path: Path
) -> None:
    server.spec.weights = pb.WEIGHTS_FULL
    server.spec.memory_failures = 4  # to the last rung
    assert run_attempt(server) == 0
    on_one = [one.train_loss for one in server.metrics]
    server.heartbeats.clear()
    run_on(two_ranks, server, cache, tmp_path / "work")

    assert [one.train_loss for one in server.metrics] == pytest.approx(on_one, abs=1e-5)


def test_a_pass_that_takes_long_is_saved_on_the_way(
    server: TrainingServer, run_attempt: RunAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.spec.hyperparameters.n_epochs = 1
    monkeypatch.setattr("tunesmith_trainer.training._SAVE_SECONDS", 0.0)
    assert run_attempt(server) == 0

    whole = losses(server)
    steps = [commit.step for commit in server.checkpoints]
    assert (steps[-1], steps) == (5, sorted(set(steps)))
    assert len(steps) > 2
    server.checkpoints = server.checkpoints[:2]
    next_attempt(server)
    assert run_attempt(server) == 0
    assert [*whole[: steps[1]], *losses(server)] == whole
