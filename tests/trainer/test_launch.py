"""Runs of two processes: how they end, whatever happens to one of them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.run_process import start_run, wait_until
from tests.support.training_server import TrainingServer
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer.errors import BadData, InfrastructureFailed, OutOfMemory, Problem, RunFailed, Yielded
from tunesmith_trainer.launch import _raise_cause, launch

PROBLEM = Problem("bad", "This row is bad.", "training_file", 7)
# A rank without torch: does what its environment says for its number, once the other is there too.
RANK = """
import argparse, os, signal, subprocess, sys, time
from pathlib import Path
from tunesmith_trainer.errors import BadData, InfrastructureFailed, OutOfMemory, Problem, RunFailed, Yielded
from tunesmith_trainer.launch import follow, note_end, shielded

parser = argparse.ArgumentParser()
for name in ("rank", "count", "launcher"):
    parser.add_argument(f"--{name}", type=int)
parser.add_argument("--work", type=Path)
arguments = parser.parse_args()
follow(arguments.launcher)
other = arguments.work / f"pid-{1 - arguments.rank}"
mine = arguments.work / f"pid-{arguments.rank}"
mine.with_suffix(".new").write_text(str(os.getpid()))
mine.with_suffix(".new").rename(mine)
while not other.exists():
    time.sleep(0.01)
match os.environ[f"RANK_{arguments.rank}"]:
    case "wait":
        signal.pause()
    case "die":
        os.kill(os.getpid(), signal.SIGKILL)
    case "fail":
        problem = Problem("bad", "This row is bad.", "training_file", 7)
        sys.exit(note_end(arguments.work, arguments.rank, BadData(problem)))
    case "yield":
        sys.exit(note_end(arguments.work, arguments.rank, Yielded("paused after saving")))
    case "follow":  # as a rank fails whose neighbour is gone
        while Path(f"/proc/{other.read_text()}/stat").exists() and (
            Path(f"/proc/{other.read_text()}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        ):
            time.sleep(0.001)
        sys.exit(note_end(arguments.work, arguments.rank, RunFailed(Problem("trainer_error", "It failed."))))
    case "crash":
        sys.exit(1)
    case "full" | "full and told to stop" as end:  # no room to say why
        (arguments.work / f"end-{arguments.rank}.json").symlink_to("/dev/full")
        failure = InfrastructureFailed(Problem("disk_full", "Full.")) if end == "full" else Yielded("paused")
        sys.exit(note_end(arguments.work, arguments.rank, failure))
    case "broken off":
        (arguments.work / f"end-{arguments.rank}.json").write_text('{"at": ')
        sys.exit(70)
    case "no memory":  # takes long to end once it has said so
        note_end(arguments.work, arguments.rank, OutOfMemory(Problem("out_of_memory", "Too small.")))
        signal.pause()
    case "abort after it":
        while not (arguments.work / f"end-{1 - arguments.rank}.json").exists():
            time.sleep(0.001)
        os.abort()
    case "abort":
        os.abort()
    case "upload":
        with shielded(arguments.work):
            (arguments.work / "uploading").touch()
            while Path(f"/proc/{other.read_text()}").exists():  # until the launcher has seen its end
                time.sleep(0.001)
            subprocess.run([sys.executable, "-c", "import json"], check=True)  # longer than a signal is on its way
            (arguments.work / "uploaded").touch()
        signal.pause()
    case "fail meanwhile":
        while not (arguments.work / "uploading").exists():
            time.sleep(0.001)
        problem = Problem("bad", "This row is bad.", "training_file", 7)
        sys.exit(note_end(arguments.work, arguments.rank, BadData(problem)))
"""


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], list[str]]]:
    """The command of ranks that do what is said for the first and the second."""
    terminated = signal.getsignal(signal.SIGTERM)

    def command(first: str, second: str) -> list[str]:
        monkeypatch.setenv("RANK_0", first)
        monkeypatch.setenv("RANK_1", second)
        (tmp_path / "rank.py").write_text(RANK)
        return [sys.executable, str(tmp_path / "rank.py")]

    yield command
    signal.signal(signal.SIGTERM, terminated)


Command = Callable[[str, str], list[str]]


def pids_in(work: Path) -> list[int]:
    return [int(path.read_text()) for path in sorted(work.glob("pid-?"))]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_run_is_done_when_all_ranks_are(ranks: Command, tmp_path: Path) -> None:
    launch(2, tmp_path, ranks("end", "end"))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("fail", "wait", BadData),
        ("wait", "fail", BadData),
        ("fail", "follow", BadData),
        ("follow", "fail", BadData),
        ("yield", "yield", Yielded),
        ("yield", "follow", Yielded),
        ("end", "crash", RunFailed),
        ("full", "wait", InfrastructureFailed),
        ("wait", "full", InfrastructureFailed),
        ("full", "follow", InfrastructureFailed),
        ("full and told to stop", "wait", Yielded),
        ("broken off", "wait", RunFailed),
        ("no memory", "abort after it", OutOfMemory),
    ],
)
def test_the_rank_that_ended_first_tells_why_and_none_is_left(
    ranks: Command, tmp_path: Path, first: str, second: str, expected: type[Exception]
) -> None:
    with pytest.raises(expected) as caught:
        launch(2, tmp_path, ranks(first, second))

    assert type(caught.value) is expected
    if isinstance(caught.value, BadData):
        assert caught.value.problems == (PROBLEM,)
    assert not any(map(lives, pids_in(tmp_path)))


@pytest.mark.parametrize(("first", "second"), [("die", "wait"), ("die", "follow"), ("follow", "die")])
def test_a_killed_rank_takes_the_others_and_the_launcher_along(
    ranks: Command, tmp_path: Path, first: str, second: str
) -> None:
    assert launch_apart(tmp_path, ranks(first, second)).wait() == -signal.SIGKILL
    assert not any(map(lives, pids_in(tmp_path)))


def test_an_abort_that_nobody_explains_is_the_end_of_the_launcher_too(ranks: Command, tmp_path: Path) -> None:
    assert launch_apart(tmp_path, ranks("wait", "abort")).wait() == 128 + signal.SIGABRT


def test_an_abort_beside_a_rank_that_could_not_note_its_end_tells_nothing() -> None:
    with pytest.raises(InfrastructureFailed):
        _raise_cause([InfrastructureFailed.exit_code, -signal.SIGABRT], [None, None])


def test_a_full_disk_is_told_as_such(ranks: Command, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureFailed, match="disk that the run works on is full"):
        launch(2, tmp_path, ranks("full", "wait"))


def test_what_the_leader_uploads_is_not_lost_when_another_rank_fails(ranks: Command, tmp_path: Path) -> None:
    with pytest.raises(BadData):
        launch(2, tmp_path, ranks("upload", "fail meanwhile"))

    assert (tmp_path / "uploaded").exists()
    assert not any(map(lives, pids_in(tmp_path)))


def test_who_ends_the_launcher_does_not_wait_for_an_upload(ranks: Command, tmp_path: Path) -> None:
    (tmp_path / "shielded").touch()
    process = launch_apart(tmp_path, ranks("wait", "crash"))
    wait_until(lambda: len(pids := pids_in(tmp_path)) == 2 and not lives(pids[1]))
    process.terminate()

    assert process.wait() == 128 + signal.SIGTERM
    wait_until(lambda: not any(map(lives, pids_in(tmp_path))))


def launch_apart(work: Path, command: list[str]) -> subprocess.Popen[bytes]:
    """Launches ranks from a process of its own."""
    script = "import sys; from pathlib import Path; from tunesmith_trainer.launch import launch; "
    script += "launch(2, Path(sys.argv[1]), sys.argv[2:])"
    return subprocess.Popen([sys.executable, "-c", script, str(work), *command])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
@pytest.mark.parametrize("all_at_once", [False, True], ids=["launcher", "all"])
def test_ranks_end_with_their_launcher(
    ranks: Command, tmp_path: Path, number: signal.Signals, code: int, all_at_once: bool
) -> None:
    """The local executor signals all processes of a run, a container only the first."""
    process = launch_apart(tmp_path, ranks("wait", "wait"))
    wait_until(lambda: len(pids_in(tmp_path)) == 2 or process.poll() is not None)
    pids = pids_in(tmp_path)
    for pid in (*pids, process.pid) if all_at_once else (process.pid,):
        os.kill(pid, number)

    assert process.wait() == code
    wait_until(lambda: not any(map(lives, pids)))


def test_a_rank_whose_launcher_is_gone_does_not_begin() -> None:
    script = "from tunesmith_trainer.launch import follow; follow(1)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 69


@pytest.fixture
def launched(server: TrainingServer, cache: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts the server's attempt as two real ranks; kills what is left of it after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(start_run(server, cache, tmp_path, {"TUNESMITH_RANKS": "2"}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


Launched = Callable[[], subprocess.Popen[bytes]]


def test_real_ranks_do_a_run_of_which_one_speaks_and_yield_together(server: TrainingServer, launched: Launched) -> None:
    server.spec.weights = pb.WEIGHTS_FULL
    server.spec.hyperparameters.MergeFrom(pb.Hyperparameters(n_epochs=50, batch_size=1))
    server.commands = {1: pb.COMMAND_CHECKPOINT, 7: pb.COMMAND_PAUSE}

    assert launched().wait() == 75
    steps = [one.step for one in server.metrics]
    assert steps == list(range(1, len(steps) + 1))
    assert server.checkpoints[-1].step == steps[-1] < 900
    assert server.failed is None


def test_a_killed_rank_ends_the_whole_run_as_if_it_had_been_killed_itself(
    server: TrainingServer, launched: Launched
) -> None:
    server.spec.hyperparameters.MergeFrom(pb.Hyperparameters(n_epochs=50, batch_size=1))
    process = launched()
    wait_until(lambda: len(server.metrics) > 0 or process.poll() is not None)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    pids = [int(child) for child in children]
    os.kill(pids[1], signal.SIGKILL)

    assert process.wait() == -signal.SIGKILL  # which the local supervisor makes 137 of, or 71 if memory ran out
    assert server.failed is None
    assert not any(map(lives, pids))
