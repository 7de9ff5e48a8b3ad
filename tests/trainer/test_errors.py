"""Bad ends that come from around a run: each has a code and a sentence, and loses nothing that was saved."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as serialize
from safetensors.torch import save_file

from tests.support.training_server import TOKEN, TrainingServer, next_attempt
from tests.trainer.conftest import RunAttempt
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer import checkpoint
from tunesmith_trainer.__main__ import execute
from tunesmith_trainer.errors import EXIT_INFRASTRUCTURE, is_disk_full, is_out_of_memory
from tunesmith_trainer.reporter import Reporter


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    assert mounted.returncode == 0, f"only root may mount a disk: {mounted.stderr.strip()}"
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Leaves not a byte free."""
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.soak
def test_a_full_disk_ends_the_run_after_its_last_checkpoint_and_the_next_goes_on(
    server: TrainingServer, run_attempt: RunAttempt, cache: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_attempt(server) == 0
    uninterrupted = [one.train_loss for one in server.metrics]
    server.heartbeats.clear()
    server.checkpoints.clear()
    save, saved = checkpoint.save_state, []

    def save_and_fill(folder: Path, *rest: Any) -> None:
        saved.append(folder)
        if len(saved) == 2:
            fill(disk)
        save(folder, *rest)

    monkeypatch.setattr(checkpoint, "save_state", save_and_fill)
    (disk / "work").mkdir()
    reporter = Reporter(f"127.0.0.1:{server.port}", TOKEN)
    code = execute(reporter, cache, disk / "work")
    reporter.close()

    assert code == EXIT_INFRASTRUCTURE
    assert server.failed is not None
    assert server.failed.cause == pb.FAILURE_CAUSE_INFRASTRUCTURE
    [failure] = server.failed.failures
    assert failure.code == "disk_full"
    assert "goes on from its last checkpoint" in failure.message
    assert [commit.step for commit in server.checkpoints] == [5]
    next_attempt(server)
    assert run_attempt(server) == 0
    assert [one.train_loss for one in server.metrics] == uninterrupted[5:]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_memory_that_ran_out_is_known_by_each_of_its_words(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_a_full_disk_is_known_by_each_of_its_words() -> None:
    with pytest.raises(OSError, match="No space left") as full, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    assert is_disk_full(full.value)
    with pytest.raises(Exception, match="os error") as elsewhere:
        save_file({"a": torch.zeros(1)}, "/nowhere/at/all.safetensors")
    assert not is_disk_full(elsewhere.value)
    assert not is_disk_full(FileNotFoundError(2, "No such file or directory"))


def test_a_damaged_checkpoint_is_said_and_nothing_is_trained_over_it(
    server: TrainingServer, run_attempt: RunAttempt, caplog: pytest.LogCaptureFixture
) -> None:
    assert run_attempt(server) == 0
    uninterrupted = [one.train_loss for one in server.metrics]
    server.checkpoints = server.checkpoints[:1]
    next_attempt(server)
    server.completed = None
    stored = next(server.root.glob("kept-*/training_state.safetensors"))
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    assert run_attempt(server) == EXIT_INFRASTRUCTURE
    assert server.failed is not None
    assert server.failed.cause == pb.FAILURE_CAUSE_INFRASTRUCTURE
    [failure] = server.failed.failures
    assert failure.code == "checkpoint_damaged"
    assert failure.message.startswith("The checkpoint of step 5 is damaged: what object storage holds")
    assert "fetching training_state.safetensors" in caplog.text  # for the operator
    assert (server.checkpoints, server.completed) == ([], None)

    server.spec.ClearField("resume")  # the control plane has none that is older
    server.heartbeats.clear()
    assert run_attempt(server) == 0
    assert [one.train_loss for one in server.metrics] == uninterrupted


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("training_state.json", b"{"),
        ("training_state.json", b"[]"),
        ("training_state.json", b"{}"),
        ("training_state.safetensors", b"not tensors"),
        ("training_state.safetensors", serialize({})),
        ("adapter_model.safetensors", serialize({"a": torch.zeros(1)})),
    ],
)
def test_a_checkpoint_that_came_whole_and_cannot_be_restored_is_damaged_too(
    server: TrainingServer, run_attempt: RunAttempt, name: str, content: bytes
) -> None:
    assert run_attempt(server) == 0
    next_attempt(server)
    server.completed = None
    [stored] = server.root.glob(f"kept-*/{name}")
    stored.write_bytes(content)
    [file] = (file for file in server.spec.resume.files if file.path == name)
    file.CopyFrom(server.remote(f"{stored.parent.name}/{name}", name))

    assert run_attempt(server) == EXIT_INFRASTRUCTURE
    assert server.failed is not None
    [failure] = server.failed.failures
    assert failure.code == "checkpoint_damaged"
    assert failure.message == "The checkpoint of step 10 is damaged: its files do not hold a saved run of this job."
    assert server.completed is None
