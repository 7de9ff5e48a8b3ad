"""What every executor must do, as tests that each executor's own test file inherits.

A run here is a Python script: what it prints is its log, and it ends when the test lets it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors.base import Executor, Launch, Observation, RunState

WAIT_FOR_PERMISSION = """
import os, sys, time
print("waiting", flush=True)
while not os.path.exists(os.environ["TUNESMITH_WORK_DIR"] + "/go"):
    time.sleep(0.02)
sys.exit(int(open(os.environ["TUNESMITH_WORK_DIR"] + "/go").read()))
"""
IGNORE_TERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)
TELL_ENVIRONMENT = """
import hashlib, json, os, time
token = os.environ["TUNESMITH_ATTEMPT_TOKEN_FILE"]
print(json.dumps({
    "environment": dict(os.environ),
    "digest": hashlib.sha256(open(token, "rb").read()).hexdigest(),
    "mode": oct(os.stat(token).st_mode & 0o777),
}), flush=True)
time.sleep(600)
"""
ATTEMPT = "attempt-1"
TOKEN = "ftjob-1.attempt-1.1.f00dfacef00dface"
CONTROL_PLANE = "127.0.0.1:1"
HOSTILE_IDS = ("", "../other", "a/b", "a b", "-rf", "a;id", "a\nb", "a$HOME", "ä", "a" * 65)
LIMIT_SECONDS = 60

T = TypeVar("T")


class Backend(Protocol):
    """What runs the runs, and what a test may do to it. It lives longer than any executor object."""

    def executor(self, script: str = WAIT_FOR_PERMISSION) -> Executor:
        """A new object, as after a restart of the control plane."""

    async def let_exit(self, attempt_id: str, code: int) -> None:
        """Makes a run that waits for permission exit."""

    async def publicly_visible(self, attempt_id: str) -> str:
        """Everything that others on the backend can see of the run: arguments, environment, descriptions."""

    async def go_away(self) -> None:
        """From now on the backend does not answer; the runs go on."""

    async def come_back(self) -> None:
        """It answers again."""


class ExecutorContract:
    """Inherited by a test class that has a fixture `backend`."""

    token_mode = "0o600"

    async def test_a_run_is_started_once_and_its_exit_code_is_kept(self, backend: Backend) -> None:
        first, second = backend.executor(), backend.executor()
        await asyncio.gather(*(each.ensure(launch()) for each in (first, second, first)))
        await until_log(first, "waiting")
        await second.ensure(launch())
        assert await first.observe(ATTEMPT) == Observation(RunState.RUNNING)
        assert await second.list_attempts() == [ATTEMPT]

        await backend.let_exit(ATTEMPT, 65)

        assert await until_ended(first) == Observation(RunState.EXITED, 65)
        await backend.executor().ensure(launch())
        assert await second.observe(ATTEMPT) == Observation(RunState.EXITED, 65)
        assert (await first.read_log(ATTEMPT)).count("waiting") == 1

    async def test_a_new_control_plane_finds_the_run_again(self, backend: Backend) -> None:
        await backend.executor().ensure(launch())

        adopting = backend.executor()
        await until_log(adopting, "waiting")
        assert await adopting.observe(ATTEMPT) == Observation(RunState.RUNNING)
        await backend.let_exit(ATTEMPT, 0)

        assert await until_ended(adopting) == Observation(RunState.EXITED, 0)

    async def test_a_run_that_is_asked_to_end_ends_by_itself(self, backend: Backend) -> None:
        executor = backend.executor()
        await executor.ensure(launch())
        await until_log(executor, "waiting")

        await executor.stop(ATTEMPT, grace_seconds=LIMIT_SECONDS)

        assert await executor.observe(ATTEMPT) == Observation(RunState.EXITED, 143)
        await executor.stop(ATTEMPT, grace_seconds=LIMIT_SECONDS)

    async def test_a_run_that_is_deaf_is_killed_after_the_grace(self, backend: Backend) -> None:
        executor = backend.executor(IGNORE_TERM)
        await executor.ensure(launch())
        await until_log(executor, "deaf")

        await executor.stop(ATTEMPT, grace_seconds=0.1)

        assert await executor.observe(ATTEMPT) == Observation(RunState.EXITED, 137)

    async def test_the_end_of_the_output_can_be_read_while_it_runs_and_afterwards(self, backend: Backend) -> None:
        executor = backend.executor("print('x' * 5000, 'é', 'last', flush=True)")
        await executor.ensure(launch())
        await until_ended(executor)
        assert len(await executor.read_log(ATTEMPT)) > 5000
        assert await executor.read_log(ATTEMPT, 10) == "x é last\n"
        assert await executor.read_log("attempt-2") == ""

    async def test_what_is_forgotten_is_killed_and_gone(self, backend: Backend) -> None:
        executor = backend.executor(IGNORE_TERM)
        await executor.ensure(launch())
        await until_log(executor, "deaf")

        await backend.executor().forget(ATTEMPT)

        assert await executor.list_attempts() == []
        assert await executor.observe(ATTEMPT) == Observation(RunState.GONE)
        assert await executor.read_log(ATTEMPT) == ""
        await executor.forget(ATTEMPT)

    async def test_an_attempt_that_was_never_launched_is_gone(self, backend: Backend) -> None:
        executor = backend.executor()
        assert await executor.observe(ATTEMPT) == Observation(RunState.GONE)
        assert await executor.list_attempts() == []
        await executor.stop(ATTEMPT, grace_seconds=LIMIT_SECONDS)
        await executor.forget(ATTEMPT)

    async def test_a_backend_that_is_away_is_unreachable_and_the_run_lives_on(self, backend: Backend) -> None:
        executor = backend.executor()
        await executor.ensure(launch())
        await until_log(executor, "waiting")

        await backend.go_away()
        assert await executor.observe(ATTEMPT) == Observation(RunState.UNREACHABLE)
        assert await executor.list_attempts() in ([], [ATTEMPT]), "no error: the reconciler goes on to observe"
        await backend.come_back()

        assert await until(executor.observe, RunState.RUNNING) == Observation(RunState.RUNNING)
        await backend.let_exit(ATTEMPT, 0)
        assert await until_ended(executor) == Observation(RunState.EXITED, 0)

    @pytest.mark.parametrize("attempt_id", HOSTILE_IDS)
    async def test_an_id_that_could_name_something_else_is_refused(self, backend: Backend, attempt_id: str) -> None:
        executor = backend.executor()
        for call in (
            executor.ensure(Launch(attempt_id, TOKEN, CONTROL_PLANE)),
            executor.observe(attempt_id),
            executor.stop(attempt_id, 0),
            executor.read_log(attempt_id),
            executor.forget(attempt_id),
        ):
            with pytest.raises(ValueError, match="attempt id"):
                await call

    async def test_the_token_reaches_the_run_alone_and_the_operators_secrets_nobody(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_SECRET_ACCESS_KEY", "TUNESMITH_DATABASE_URL", "TUNESMITH_SECRET_KEY", "HF_TOKEN"):
            monkeypatch.setenv(name, "operators-secret")
        executor = backend.executor(TELL_ENVIRONMENT)
        await executor.ensure(launch("slot-0", "slot-1"))
        told = json.loads(await until_log(executor, "}"))

        assert told["environment"]["TUNESMITH_CONTROL_PLANE"] == CONTROL_PLANE
        assert told["environment"]["TUNESMITH_RANKS"] == "2"
        assert {"TUNESMITH_WORK_DIR", "TUNESMITH_CACHE_DIR"} <= told["environment"].keys()
        assert told["digest"] == hashlib.sha256(TOKEN.encode()).hexdigest()
        assert told["mode"] == self.token_mode
        visible = json.dumps(told["environment"]) + await backend.publicly_visible(ATTEMPT)
        assert ATTEMPT in visible
        assert TOKEN not in visible
        assert "operators-secret" not in visible


class SharedBackend(Backend, Protocol):
    """One on which several installations have their runs."""

    def another_installation(self) -> Executor:
        """An executor of somebody else's."""


class SharedBackendContract(ExecutorContract):
    """What an executor must do besides, where the attempt's name is also somebody else's."""

    async def test_another_installations_runs_are_left_alone(self, backend: SharedBackend) -> None:
        executor, other = backend.executor(), backend.another_installation()
        await executor.ensure(launch())
        await until_log(executor, "waiting")

        assert await other.list_attempts() == []
        assert await other.observe(ATTEMPT) == Observation(RunState.GONE)
        assert await other.read_log(ATTEMPT) == ""
        await other.stop(ATTEMPT, 0)
        await other.forget(ATTEMPT)
        with pytest.raises(UnavailableError, match="taken by someone else"):
            await other.ensure(launch())

        assert await executor.observe(ATTEMPT) == Observation(RunState.RUNNING)


def launch(*devices: str) -> Launch:
    """The attempt that these tests launch."""
    return Launch(ATTEMPT, TOKEN, CONTROL_PLANE, devices)


def visible_arguments() -> str:
    """The arguments of every process of this machine, which all its users can read."""
    arguments = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            arguments.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(arguments)


async def until_log(executor: Executor, text: str) -> str:
    """Waits until the run has printed `text`; returns what it has printed."""

    async def printed() -> str:
        log = await executor.read_log(ATTEMPT)
        return log if text in log else ""

    return await until_true(printed)


async def until_ended(executor: Executor) -> Observation:
    """Waits until the run neither waits nor runs."""
    return await until(executor.observe, RunState.EXITED, RunState.GONE)


async def until(observe: Callable[[str], Awaitable[Observation]], *states: RunState) -> Observation:
    """Waits until the run is in one of the states."""

    async def reached() -> Observation | None:
        observation = await observe(ATTEMPT)
        return observation if observation.state in states else None

    return await until_true(reached)


async def until_true(condition: Callable[[], Awaitable[T | None]]) -> T:
    """Waits for a condition and returns what it said, at most a minute."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (answer := await condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.05)
    return answer
