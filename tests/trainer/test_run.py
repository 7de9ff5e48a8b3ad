"""Whole runs against a control plane that speaks the real contract."""

import csv
import json
import math
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.run_process import start_run, wait_until
from tests.support.training_server import TrainingServer, next_attempt
from tests.trainer.conftest import RunAttempt
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer import compilation, lora
from tunesmith_trainer.model import load_for_generation
from tunesmith_trainer.objectives import Scored, score
from tunesmith_trainer.packing import Pack

LAST_RUNG = 6  # of the tiny model on a processor: failed attempts until there is no smaller way


def losses(server: TrainingServer) -> list[tuple[int, float]]:
    return [(one.step, one.train_loss) for one in server.metrics]


def events(server: TrainingServer) -> list[str]:
    return [one.message for _, beat in sorted(server.heartbeats.items()) for one in beat.events]


def test_a_run_reports_every_step_commits_each_pass_and_completes(
    server: TrainingServer, run_attempt: RunAttempt
) -> None:
    assert run_attempt(server) == 0

    assert [one.step for one in server.metrics] == list(range(1, 11))
    assert [commit.step for commit in server.checkpoints] == [5, 10]
    assert server.metrics[4].HasField("valid_loss")
    assert server.metrics[-1].HasField("full_valid_loss")
    # Two rows are glanced at whole, so that both losses are of the same rows.
    assert server.metrics[-1].valid_loss == server.metrics[-1].full_valid_loss
    assert server.metrics[-1].train_loss < server.metrics[0].train_loss
    completed = server.completed
    assert completed is not None
    assert completed.artifact == server.checkpoints[-1].artifact
    assert completed.trained_tokens == sum(one.tokens for one in server.metrics)
    assert completed.evaluation.rows == 2
    assert completed.evaluation.held_out_from_training
    assert completed.evaluation.tuned.loss < completed.evaluation.base.loss
    assert completed.evaluation.tuned.perplexity == pytest.approx(math.exp(completed.evaluation.tuned.loss))
    assert completed.evaluation.forgetting.items == 40
    assert completed.evaluation.forgetting.base.loss != completed.evaluation.forgetting.tuned.loss
    names = {file.path for file in completed.artifact.files}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "golden.json"}


def test_result_files_hold_every_step_and_every_evaluated_row(server: TrainingServer, run_attempt: RunAttempt) -> None:
    run_attempt(server)

    with (server.root / "out/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    lines = [json.loads(line) for line in (server.root / "out/evaluation.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"row", "base_exact", "tuned_exact", "base_loss", "tuned_loss"}] * 2


def test_golden_answers_are_those_of_the_uploaded_files(
    server: TrainingServer, run_attempt: RunAttempt, base: Path
) -> None:
    run_attempt(server)
    folder = server.root / "out/step-10"
    golden = json.loads((folder / "golden.json").read_text())
    model = load_for_generation(base, torch.device("cpu"))
    lora.attach(model, rank=4, alpha=32, seed=0)
    lora.load(model, folder)

    assert golden["dtype"] == "float32"
    assert len(golden["prompts"]) == 3
    for prompt in golden["prompts"]:
        ids = torch.tensor([prompt["prompt_token_ids"] + prompt["token_ids"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt["prompt_token_ids"]) - 1 : -1]
        assert logits.argmax(-1).tolist() == prompt["token_ids"]
        own = logits.log_softmax(-1).gather(1, torch.tensor(prompt["token_ids"])[:, None])[:, 0]
        assert own.tolist() == pytest.approx(prompt["logprobs"], abs=1e-4)
        assert len(prompt["base_token_ids"]) == len(prompt["base_logprobs"]) > 0


def test_a_long_run_is_compiled_or_says_why_not(
    server: TrainingServer, run_attempt: RunAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "LEAST_WORK", 1)
    monkeypatch.setattr(compilation, "compile_layers", lambda _model, _cache: "no C++ compiler")

    assert run_attempt(server) == 0

    told = [event.message for heartbeat in server.heartbeats.values() for event in heartbeat.events]
    assert "Layers are not compiled (no C++ compiler); training goes on, somewhat slower." in told


@pytest.mark.parametrize("weights", [pb.WEIGHTS_LORA, pb.WEIGHTS_FULL])
def test_a_killed_run_goes_on_to_the_same_losses(
    server: TrainingServer, run_attempt: RunAttempt, weights: pb.Weights.ValueType
) -> None:
    server.spec.weights = weights
    assert run_attempt(server) == 0
    uninterrupted = losses(server)
    final = server.root / "out/step-10"
    weights_file = "adapter_model.safetensors" if weights == pb.WEIGHTS_LORA else "model.safetensors"
    expected = load_file(final / weights_file)
    server.checkpoints = server.checkpoints[:1]  # as if it had been killed after the first pass
    next_attempt(server)

    assert run_attempt(server) == 0
    assert losses(server) == uninterrupted[5:]  # bit for bit
    resumed = load_file(final / weights_file)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())
    with (server.root / "out/results.csv").open() as file:
        assert len(file.readlines()) == 11


def test_a_run_killed_in_the_middle_goes_on_from_its_checkpoint(
    server: TrainingServer, run_attempt: RunAttempt, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start_run(server, cache, tmp_path)
    try:
        wait_until(lambda: len(server.checkpoints) > 0 or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait()
    assert b"Loading weights" not in (tmp_path / "log").read_bytes(), "a bar that moves is no line of a log"
    # A commit may still have come in while the run was killed.
    last = server.checkpoints[-1]
    server.checkpoints = [last]
    # The dtype is the machine's choice; the run that this one is compared with is to compute in the same.
    dtype = json.loads((server.root / "out" / last.artifact.prefix / "training_state.json").read_bytes())["dtype"]
    monkeypatch.setattr("tunesmith_trainer.model.choose_cpu_dtype", lambda: (dtype, 1e11, "as the killed run"))
    next_attempt(server)

    assert run_attempt(server) == 0
    resumed = losses(server)
    server.spec.ClearField("resume")
    server.heartbeats.clear()
    assert run_attempt(server) == 0
    assert resumed == losses(server)[last.step :]


def test_a_run_that_died_before_completing_hands_over_its_last_checkpoint(
    server: TrainingServer, run_attempt: RunAttempt
) -> None:
    run_attempt(server)
    next_attempt(server)
    server.completed = None

    assert run_attempt(server) == 0
    assert losses(server) == []
    assert server.checkpoints == [], "it is committed already"
    assert server.completed is not None
    assert server.completed.step == 10
    assert not server.completed.HasField("artifact")


def test_early_stopping_hands_over_the_best_checkpoint_also_in_a_later_attempt(
    server: TrainingServer, run_attempt: RunAttempt
) -> None:
    server.spec.hyperparameters.MergeFrom(
        pb.Hyperparameters(n_epochs=20, batch_size=18, learning_rate_multiplier=40, early_stopping_patience=2)
    )
    assert run_attempt(server) == 0
    measured = {one.step: one.full_valid_loss for one in server.metrics}
    best = min(measured, key=lambda step: measured[step])
    completed = server.completed
    assert completed is not None
    assert (completed.step, server.metrics[-1].step) == (best, best + 2)
    assert server.metrics[-1].step < 20
    assert completed.evaluation.tuned.loss == measured[best]
    assert completed.artifact == next(commit for commit in server.checkpoints if commit.step == best).artifact

    next_attempt(server)
    server.completed = None
    assert run_attempt(server) == 0
    again = server.completed
    assert again is not None
    assert (again.step, again.evaluation) == (best, completed.evaluation)


def test_a_loss_that_is_no_number_ends_the_run_for_good_and_names_the_rows(
    server: TrainingServer, run_attempt: RunAttempt
) -> None:
    server.spec.hyperparameters.learning_rate_multiplier = 1e25

    assert run_attempt(server) == 65
    assert server.failed is not None
    assert server.failed.cause == pb.FAILURE_CAUSE_USER
    [failure] = server.failed.failures
    assert (failure.code, failure.param) == ("loss_not_finite", "training_file")
    assert 1 <= failure.row <= 20
    assert f"its rows are {failure.row}, " in failure.message
    assert server.checkpoints == [], "no bad weights are saved"


def test_pause_saves_and_yields(server: TrainingServer, run_attempt: RunAttempt) -> None:
    run_attempt(server)
    uninterrupted = losses(server)
    server.heartbeats.clear()
    server.checkpoints.clear()
    server.completed = None
    server.commands = {0: pb.COMMAND_PAUSE}

    assert run_attempt(server) == 75
    assert server.completed is None
    step = server.checkpoints[-1].step
    assert step < 10
    next_attempt(server)
    assert run_attempt(server) == 0
    assert losses(server) == uninterrupted[step:]


def fits_only(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Lets the machine have no memory for a step with more tokens than that, as the processor's allocator puts it."""

    def score_if_it_fits(model: torch.nn.Module, batch: Pack) -> Scored:
        if torch.is_grad_enabled() and len(batch.token_ids) > tokens:
            torch.empty(1 << 50)
        return score(model, batch)

    monkeypatch.setattr("tunesmith_trainer.methods.score", score_if_it_fits)


def test_a_run_without_memory_ends_so_and_the_next_ones_need_less_for_the_same_losses(
    server: TrainingServer, run_attempt: RunAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.spec.hyperparameters.batch_size = 16  # more than 256 tokens, although its rows share a part of theirs
    assert run_attempt(server) == 0
    expected = losses(server)
    fits_only(monkeypatch, 256)
    for failures, message in enumerate(("packs of 512 tokens", "packs of 256 tokens")):
        server.spec.memory_failures = failures
        server.heartbeats.clear()
        assert run_attempt(server) == 71
        assert server.failed is not None
        assert server.failed.cause == pb.FAILURE_CAUSE_OUT_OF_MEMORY
        assert server.failed.failures[0].code == "out_of_memory"
        assert f"the next attempt takes {message}" in server.failed.failures[0].message

    server.spec.memory_failures = 2
    server.heartbeats.clear()
    assert run_attempt(server) == 0
    assert "A step is computed in packs of 256 tokens" in "".join(events(server))
    assert [step for step, _ in losses(server)] == [step for step, _ in expected]
    assert [loss for _, loss in losses(server)] == pytest.approx([loss for _, loss in expected], rel=1e-5)


def test_a_resumed_run_goes_down_from_where_it_was_saved_or_stays_there(
    server: TrainingServer, run_attempt: RunAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.spec.memory_failures = 2
    assert run_attempt(server) == 0
    uninterrupted = losses(server)
    server.checkpoints = server.checkpoints[:1]
    next_attempt(server)
    monkeypatch.setattr("tunesmith_trainer.training.memory_of", lambda device: (1 << 20, 64 << 30))  # nothing is free

    assert run_attempt(server) == 0
    assert "packs of 256 tokens, about" in "".join(events(server))
    assert losses(server) == uninterrupted[5:]  # bit for bit

    server.spec.memory_failures = 3
    server.heartbeats.clear()
    assert run_attempt(server) == 0
    assert "packs of 256 tokens, 1 layers computed twice" in "".join(events(server))
    assert losses(server) == uninterrupted[5:], "computing twice gives the same bits"


def test_at_the_end_of_the_ladder_the_job_fails_with_what_helps(
    server: TrainingServer, run_attempt: RunAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits_only(monkeypatch, 0)
    for failures in (LAST_RUNG, LAST_RUNG + 1):
        server.spec.memory_failures = failures
        assert run_attempt(server) == 64
        assert server.failed is not None
        assert server.failed.cause == pb.FAILURE_CAUSE_USER
        assert server.failed.failures[0].code == "out_of_memory"
        assert "Use shorter rows, a smaller lora_rank" in server.failed.failures[0].message


def test_with_the_base_in_four_bits_a_run_learns_nearly_the_same_resumes_exactly_and_says_so(
    server: TrainingServer, run_attempt: RunAttempt
) -> None:
    assert run_attempt(server) == 0
    on_whole_weights = losses(server)
    server.spec.memory_failures = LAST_RUNG
    server.heartbeats.clear()
    assert run_attempt(server) == 0
    uninterrupted = losses(server)
    told = "".join(events(server))
    assert "the base in four bits, about" in told
    assert "The result is served on the whole weights" in told
    assert [loss for _, loss in uninterrupted] == pytest.approx([loss for _, loss in on_whole_weights], rel=0.05)
    assert uninterrupted != on_whole_weights

    server.checkpoints = server.checkpoints[:1]
    next_attempt(server)
    assert run_attempt(server) == 0
    assert losses(server) == uninterrupted[5:]  # bit for bit


def test_stop_yields_without_saving(server: TrainingServer, run_attempt: RunAttempt) -> None:
    server.commands = {0: pb.COMMAND_STOP}

    assert run_attempt(server) == 75
    assert server.checkpoints == []
    assert server.failed is None


def test_a_fenced_run_ends_at_once_and_uploads_nothing(server: TrainingServer, run_attempt: RunAttempt) -> None:
    def beat(request: pb.HeartbeatRequest) -> None:
        server.fenced = True  # from here on, every call is refused

    server.on_heartbeat = beat

    assert run_attempt(server) == 75
    assert not (server.root / "out").exists()
    assert server.failed is None


def test_full_weights_give_a_whole_model_folder(server: TrainingServer, run_attempt: RunAttempt, base: Path) -> None:
    server.spec.weights = pb.WEIGHTS_FULL

    assert run_attempt(server) == 0
    completed = server.completed
    assert completed is not None
    assert completed.artifact.kind == pb.ARTIFACT_KIND_FULL
    names = {file.path for file in completed.artifact.files}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "golden.json"}
    folder = server.root / "out/step-10"
    assert (folder / "chat_template.jinja").read_bytes() == (base / "chat_template.jinja").read_bytes()
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def train_on(server: TrainingServer, rows: list[dict[str, object]]) -> None:
    (server.root / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    server.spec.training_file.CopyFrom(server.remote("train.jsonl"))


def test_what_engines_cannot_adapt_is_delivered_merged_and_resumed(
    server: TrainingServer, run_attempt: RunAttempt, gpt2: Path
) -> None:
    server.spec.base_model.CopyFrom(pb.BaseModel(id="gpt2", revision=gpt2.name))
    train_on(server, [{"prompt": f"Item {index}:", "completion": " red"} for index in range(20)])
    assert run_attempt(server) == 0
    uninterrupted = losses(server)
    completed = server.completed
    assert completed is not None
    assert completed.artifact.kind == pb.ARTIFACT_KIND_FULL
    names = {file.path for file in completed.artifact.files}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "golden.json"}
    assert not any("adapter" in name for name in names)
    folder = server.root / "out/step-10"
    before, after = load_file(gpt2 / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "c_" in name and name.endswith("weight")}

    server.checkpoints = server.checkpoints[:1]
    next_attempt(server)
    assert run_attempt(server) == 0
    assert losses(server) == uninterrupted[5:]


def test_chat_rows_need_a_chat_template(server: TrainingServer, run_attempt: RunAttempt, gpt2: Path) -> None:
    server.spec.base_model.CopyFrom(pb.BaseModel(id="gpt2", revision=gpt2.name))
    roles = ("system", "user", "assistant")
    train_on(server, [{"messages": [{"role": role, "content": role} for role in roles]}] * 12)
    server.spec.kind = pb.RUN_KIND_PREFLIGHT

    assert run_attempt(server) == 65
    assert server.failed is not None
    assert {failure.code for failure in server.failed.failures} == {"no_chat_template"}


def test_an_unknown_method_is_a_bad_spec(server: TrainingServer, run_attempt: RunAttempt) -> None:
    server.spec.method = "reinforcement"

    assert run_attempt(server) == 64
    assert server.failed is not None
    assert server.failed.failures[0].param == "method"
