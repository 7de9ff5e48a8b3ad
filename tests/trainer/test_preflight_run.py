"""Whole preflights against a control plane: one report with everything, whether the job goes on or fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.training_server import TOKEN, TrainingServer
from tests.trainer.conftest import RunAttempt, chat_line
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer.__main__ import execute
from tunesmith_trainer.errors import BadData
from tunesmith_trainer.machine import Machine
from tunesmith_trainer.preflight_run import run_preflight
from tunesmith_trainer.reporter import Reporter

LARGE = Machine("cpu", False, "float32", 1024, 64 << 30, 64 << 30, 1e11, 64 << 30)
LONG = json.dumps({"prompt": "long " * 300, "completion": "x"})


def checked(server: TrainingServer, base: Path, tmp_path: Path, machine: Machine = LARGE) -> pb.PreflightReport:
    """Runs a preflight as `execute` does and returns its report, which also came with a failure."""
    server.spec.kind = pb.RUN_KIND_PREFLIGHT
    work = tmp_path / "work"
    work.mkdir()
    reporter = Reporter(f"127.0.0.1:{server.port}", TOKEN)
    try:
        run_preflight(server.spec, base, tmp_path / "cache", work, reporter, lambda: machine)
    except BadData as failure:
        reporter.fail(pb.FAILURE_CAUSE_USER, failure.problems)
        assert server.failed is not None
        return server.failed.report
    finally:
        reporter.close()
    assert server.preflight is not None
    return server.preflight.report


def write_rows(server: TrainingServer, *extra: str) -> None:
    """Twenty good rows and `extra` become the training file."""
    lines = [*(chat_line(index) for index in range(20)), *extra]
    (server.root / "train.jsonl").write_text("\n".join(lines))
    server.spec.training_file.CopyFrom(server.remote("train.jsonl"))


def rejects(server: TrainingServer) -> list[dict[str, object]]:
    """The uploaded lines."""
    return [json.loads(line) for line in (server.root / "out/rejects.jsonl").read_text().splitlines()]


def test_a_good_job_is_told_its_counts_memory_time_and_numbers(
    server: TrainingServer, base: Path, tmp_path: Path
) -> None:
    report = checked(server, base, tmp_path)

    counts = report.counts
    assert (counts.rows, counts.trained_rows, counts.evaluation_rows) == (20, 18, 2)
    assert sum(one.rows for one in counts.token_histogram) == 20
    assert all(one.below_tokens == 2 * one.least_tokens for one in counts.token_histogram)
    assert 0 < counts.labelled_tokens < counts.tokens
    assert list(report.findings) == []
    assert report.memory.fits
    assert sum(term.bytes for term in report.memory.terms) == report.memory.needed_bytes
    assert report.seconds > 0
    assert "lora_rank" in {one.name for one in report.resolved}
    assert not report.HasField("rejects")


def test_a_failed_job_is_told_everything_too(server: TrainingServer, base: Path, tmp_path: Path) -> None:
    write_rows(server, LONG, "{", LONG, chat_line(3))
    report = checked(server, base, tmp_path)

    assert server.failed is not None
    assert [(one.code, one.row) for one in server.failed.failures] == [
        ("row_too_long", 21),
        ("invalid_file_format", 22),
    ]
    assert {one.code: list(one.rows) for one in report.findings} == {
        "row_too_long": [21, 23],
        "invalid_file_format": [22],
        "duplicate_row": [24],
    }
    assert (report.counts.rows, report.counts.refused_rows, report.counts.duplicate_rows) == (24, 3, 1)
    assert report.rejects.path == "rejects.jsonl"
    assert [(line["line"], line["action"]) for line in rejects(server)] == [
        (21, "refused"),
        (22, "refused"),
        (23, "refused"),
    ]
    assert "long long" not in (server.root / "out/rejects.jsonl").read_text(), "a row's text stays where it is"


def test_rows_that_are_cut_are_counted_and_listed_and_the_job_goes_on(
    server: TrainingServer, base: Path, tmp_path: Path
) -> None:
    server.spec.long_rows = pb.LONG_ROWS_CUT
    write_rows(server, LONG, chat_line(0, "word " * 200))
    report = checked(server, base, tmp_path)

    assert (report.counts.cut_rows, report.counts.dropped_rows, report.counts.refused_rows) == (1, 1, 0)
    assert [(line["line"], line["action"]) for line in rejects(server)] == [(21, "dropped"), (22, "cut")]
    assert server.preflight is not None
    told = {dict(event.data).get("code"): event.level for event in server.preflight.warnings}
    assert told == {None: "info", "row_dropped": "warn", "row_cut": "warn"}


def test_a_job_that_never_fits_is_refused_with_the_largest_terms(
    server: TrainingServer, base: Path, tmp_path: Path
) -> None:
    small = Machine("cpu", False, "float32", 1024, 1 << 20, 100 << 20, 1e11, 100 << 20)
    report = checked(server, base, tmp_path, small)

    (finding,) = report.findings
    assert (finding.code, finding.severity) == ("insufficient_memory", pb.SEVERITY_ERROR)
    assert "process" in finding.message
    assert not report.memory.fits
    assert server.preflight is None


def needed_on(server: TrainingServer, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """What the job with full weights needs of each of 1, 2 and 4 GPUs that have nothing."""
    # Full weights of the tiny model and what is kept for them come to a few MiB, which ranks share out.
    monkeypatch.setattr("tunesmith_trainer.memory_plan._PROCESS", {True: 0, False: 0})
    monkeypatch.setattr("tunesmith_trainer.preflight_run._MARGIN", 1.0)
    server.spec.weights = pb.WEIGHTS_FULL
    needed = {}
    for devices in (1, 2, 4):
        server.spec.devices = devices
        (tmp_path / str(devices)).mkdir()
        none = Machine("gpu", True, "bfloat16", 256, 1, 1, 1e14, 0)
        needed[devices] = checked(server, base, tmp_path / str(devices), none).memory.needed_bytes
    assert needed[4] < needed[2] < needed[1]
    return needed


def resolved_devices(report: pb.PreflightReport) -> list[tuple[str, str]]:
    """The number of devices that the preflight chose, and why; nothing where it was not to choose."""
    return [(one.value, one.reason) for one in report.resolved if one.name == "devices"]


def test_a_job_that_fits_several_gpus_is_told_how_many(
    server: TrainingServer, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = needed_on(server, base, tmp_path, monkeypatch)
    between = Machine("gpu", True, "bfloat16", 256, needed[4], needed[4], 1e14, 0)
    server.spec.devices = 1
    (tmp_path / "small").mkdir()
    report = checked(server, base, tmp_path / "small", between)

    (finding,) = report.findings
    assert finding.code == "insufficient_memory"
    assert finding.message.endswith("or set scheduling.devices to 4, which would be enough.")
    assert resolved_devices(report) == []


@pytest.mark.parametrize("least", [1, 2, 4])
def test_a_job_that_leaves_it_open_gets_as_few_gpus_as_it_fits_on(
    server: TrainingServer, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    size = needed_on(server, base, tmp_path, monkeypatch)[least]
    server.spec.devices = 0
    report = checked(server, base, tmp_path, Machine("gpu", True, "bfloat16", 256, size, size, 1e14, 0))

    assert server.preflight is not None
    assert server.preflight.devices == least
    [(value, reason)] = resolved_devices(report)
    assert (value, reason == "the run fits on one") == (str(least), least == 1)
    assert report.memory.needed_bytes == size


@pytest.mark.parametrize(("main_memory", "warned"), [(16 << 20, True), (16 << 30, False)])
def test_a_gpu_whose_machine_has_too_little_memory_to_save_is_warned_of(
    server: TrainingServer, base: Path, tmp_path: Path, main_memory: int, warned: bool
) -> None:
    gpu = Machine("gpu", True, "bfloat16", 1024, 8 << 30, 8 << 30, 1e14, main_memory)
    codes = [finding.code for finding in checked(server, base, tmp_path, gpu).findings]
    assert codes == ["main_memory_tight"] * warned
    assert server.preflight is not None


def test_a_job_that_no_number_of_gpus_helps_is_refused_as_on_one(
    server: TrainingServer, base: Path, tmp_path: Path
) -> None:
    report = checked(server, base, tmp_path, Machine("gpu", True, "bfloat16", 256, 1, 1, 1e14, 0))
    (finding,) = report.findings
    assert (finding.code, "scheduling.devices" in finding.message) == ("insufficient_memory", False)
    assert server.preflight is None


def test_full_weights_need_less_of_each_of_several_gpus(server: TrainingServer, base: Path, tmp_path: Path) -> None:
    gpu = Machine("gpu", True, "bfloat16", 1024, 8 << 30, 8 << 30, 1e14, 0)
    server.spec.weights = pb.WEIGHTS_FULL
    needed = []
    for devices in (1, 4):
        server.spec.devices = devices
        (tmp_path / str(devices)).mkdir()
        needed.append(checked(server, base, tmp_path / str(devices), gpu).memory.needed_bytes)

    assert needed[1] < needed[0]


def test_ranks_on_a_processor_share_its_memory(server: TrainingServer, base: Path, tmp_path: Path) -> None:
    told = {}
    for devices in (1, 4):
        server.spec.devices = devices
        (tmp_path / str(devices)).mkdir()
        told[devices] = checked(server, base, tmp_path / str(devices))

    assert told[4].memory.available_bytes == told[1].memory.available_bytes // 4
    assert told[4].seconds == pytest.approx(told[1].seconds)  # they share its speed as well
    server.spec.devices = 0
    (tmp_path / "auto").mkdir()
    assert resolved_devices(checked(server, base, tmp_path / "auto")) == [
        ("1", "several would share the processor and its memory")
    ]


def test_the_way_of_computing_is_told_with_its_reason(server: TrainingServer, base: Path, tmp_path: Path) -> None:
    report = checked(server, base, tmp_path)

    (memory,) = (one for one in report.resolved if one.name == "memory")
    assert memory.value == "packs of 1024 tokens"
    assert "of 64.0 GiB free are needed" in memory.reason


def test_a_job_that_may_fit_later_is_warned(server: TrainingServer, base: Path, tmp_path: Path) -> None:
    busy = Machine("cpu", False, "float32", 1024, 1 << 20, 64 << 30, None, 64 << 30)
    report = checked(server, base, tmp_path, busy)

    assert [(one.code, one.severity) for one in report.findings] == [("memory_tight", pb.SEVERITY_WARNING)]
    assert not report.HasField("seconds")
    assert server.preflight is not None


def test_an_adapter_that_would_not_load_fails_the_job(
    server: TrainingServer, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith_trainer.adapter_check.stored_shapes", lambda folder: {"model.strange": (1, 1)})
    report = checked(server, base, tmp_path)

    assert [one.code for one in report.findings] == ["adapter_shape_mismatch"]
    assert server.preflight is None


def test_bad_data_is_reported_with_its_rows(server: TrainingServer, run_attempt: RunAttempt) -> None:
    lines = (server.root / "train.jsonl").read_text().splitlines()
    lines[2] = '{"messages": []}'
    lines[5] = json.dumps({"prompt": "long " * 300, "completion": "x"})
    (server.root / "train.jsonl").write_text("\n".join(lines))
    server.spec.training_file.CopyFrom(server.remote("train.jsonl"))
    server.spec.kind = pb.RUN_KIND_PREFLIGHT

    assert run_attempt(server) == 65
    assert server.failed is not None
    assert server.failed.cause == pb.FAILURE_CAUSE_USER
    found = [(failure.code, failure.param, failure.row) for failure in server.failed.failures]
    assert found == [("invalid_file_format", "training_file", 3), ("row_too_long", "training_file", 6)]


def test_a_preflight_resolves_every_number(server: TrainingServer, run_attempt: RunAttempt) -> None:
    server.spec.kind = pb.RUN_KIND_PREFLIGHT
    server.spec.hyperparameters.Clear()

    assert run_attempt(server) == 0
    found = server.preflight
    assert found is not None
    names = {field.name for field in pb.Hyperparameters.DESCRIPTOR.fields}
    assert {field.name for field, _ in found.hyperparameters.ListFields()} == names - {
        "beta",
        "early_stopping_patience",
        "lora_targets",  # none are all layers
    }
    assert {one.name for one in found.report.resolved} >= {"n_epochs", "batch_size", "learning_rate", "lora_rank"}
    assert (found.rows, found.hyperparameters.n_epochs) == (18, 5)
    assert 0 < found.labelled_tokens < found.tokens
    assert "held out" in found.warnings[0].message


def test_a_training_run_takes_the_numbers_that_preflight_found(server: TrainingServer, run_attempt: RunAttempt) -> None:
    server.spec.kind = pb.RUN_KIND_PREFLIGHT
    server.spec.hyperparameters.ClearField("learning_rate_multiplier")
    run_attempt(server)
    assert server.preflight is not None
    server.heartbeats.clear()
    server.spec.kind = pb.RUN_KIND_TRAINING
    server.spec.hyperparameters.CopyFrom(server.preflight.hyperparameters)

    assert run_attempt(server) == 0
    assert max(one.learning_rate for one in server.metrics) == pytest.approx(server.preflight.learning_rate)
    assert server.metrics[-1].step == server.preflight.total_steps


def test_a_preflight_does_not_wait_for_torch_to_load() -> None:
    script = "import sys, tunesmith_trainer.run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_preflight_with_a_cold_cache_fetches_no_weights(server: TrainingServer, base: Path, tmp_path: Path) -> None:
    for path in base.iterdir():
        if path.name != "manifest.json":
            (server.root / path.name).write_bytes(path.read_bytes())
            server.spec.base_model.files.append(server.remote(path.name))
    (server.root / "model.safetensors").unlink()
    server.spec.kind = pb.RUN_KIND_PREFLIGHT
    reporter = Reporter(f"127.0.0.1:{server.port}", TOKEN)
    work = tmp_path / "work"
    work.mkdir()

    assert execute(reporter, tmp_path / "cold", work) == 0
    reporter.close()
    assert server.preflight is not None
    assert [path.name for path in (tmp_path / "cold").iterdir()] == ["rows"]
