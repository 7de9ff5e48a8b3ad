"""A full disk under database and store: calls are refused with a reason, and all goes on once there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.toy_platform import ROWS, ToyPlatform
from tests.support.live_server import wait_until

DISK_MEGABYTES = 16


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    assert mounted.returncode == 0, f"only root may mount a disk: {mounted.stderr.strip()}"
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Not a byte is free until the block ends."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


@pytest.mark.soak
def test_a_full_disk_loses_nothing(disk: Path) -> None:
    platform = ToyPlatform(disk)
    with closing(platform):
        go_through(platform, disk)


def go_through(platform: ToyPlatform, disk: Path) -> None:
    """From room to none to room."""
    platform.start()
    with platform.held(3):
        job_id = platform.create("before")
        platform.wait_for(job_id, "Checkpoint created at step 2")
        with filled(disk):
            files = {"file": ("rows.jsonl", ROWS * 100)}
            answer = platform.server.request("POST", "/files", files=files, data={"purpose": "fine-tune"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
            wait_until(lambda: refused(platform), 60, "every write was taken on a full disk")
            assert platform.server.job(job_id)["status"] == "running", "reading needs no room"
    platform.create("after")
    platform.settle()
    assert {platform.server.job(job_id)["status"] for job_id in platform.jobs.values()} == {"succeeded"}
    platform.check()


def refused(platform: ToyPlatform) -> bool:
    """Whether a job cannot be made now; those that fit into what the database has left over are kept to the end."""
    body = {"model": "toy-base", "training_file": platform.files["before"]}
    key = f"full-{len(platform.jobs)}"
    answer = platform.server.request("POST", "/fine_tuning/jobs", json=body, headers={"Idempotency-Key": key})
    if answer.status_code == 200:
        platform.jobs[key] = answer.json()["id"]
        return False
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
    return True
