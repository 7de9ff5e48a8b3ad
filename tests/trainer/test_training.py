"""Whole runs that go on from a tuned model: its weights are where they start and what they are compared with."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from tests.support.training_server import TrainingServer
from tests.trainer.test_methods import given_preferences
from tests.trainer.test_run import losses, next_attempt
from tunesmith_proto.training.v1 import training_pb2 as pb

RunAttempt = Callable[[TrainingServer], int]


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
