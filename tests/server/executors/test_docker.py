"""A real Docker daemon on this machine: runs are containers that outlive the control plane and the daemon."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.server.executors.contract import (
    ATTEMPT,
    WAIT_FOR_PERMISSION,
    SharedBackendContract,
    launch,
    until_ended,
    until_log,
    visible_arguments,
)
from tests.support.docker_daemon import IMAGE, DockerDaemon
from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors.base import Inventory, Observation, RunState
from tunesmith_server.executors.docker import DockerExecutor, DockerSettings

pytestmark = pytest.mark.cluster

NAME = f"tunesmith-{ATTEMPT}"
TELL_WHAT_IS_ALLOWED = """
import json, os
def can_write(path):
    try:
        open(path + "/probe", "w").close()
        return True
    except OSError:
        return False
PATHS = ("/", "/etc", "/tmp", os.environ["TUNESMITH_CACHE_DIR"], os.environ["TUNESMITH_WORK_DIR"])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "user": os.getuid(),
    "writable": [path for path in PATHS if can_write(path)],
    "capabilities": int(status["CapEff"], 16),
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "interfaces": os.listdir("/sys/class/net"),
}), flush=True)
"""
EAT_MEMORY = "data = []\nwhile True: data.append(bytearray(16 << 20))"


class DockerBackend:
    """A daemon, and the settings of one installation."""

    def __init__(self, daemon: DockerDaemon) -> None:
        self.daemon = daemon
        self.settings = DockerSettings(
            installation="this",
            image=IMAGE,
            socket=daemon.socket,
            network="none",
            cache_volume="tunesmith-cache",
            memory_bytes=256 << 20,
            process_limit=64,
            slots=2,
        )

    def executor(self, script: str = WAIT_FOR_PERMISSION, settings: DockerSettings | None = None) -> DockerExecutor:
        """A new object over the same daemon."""
        return DockerExecutor(("python3", "-I", "-S", "-c", script), settings or self.settings)

    def another_installation(self) -> DockerExecutor:
        """The same daemon, for somebody else."""
        return self.executor(settings=replace(self.settings, installation="other"))

    async def let_exit(self, attempt_id: str, code: int) -> None:
        """Writes what the script looks for."""
        write = f"echo {code} > /tunesmith/work/permission && mv /tunesmith/work/permission /tunesmith/work/go"
        written = self.daemon.docker("exec", f"tunesmith-{attempt_id}", "sh", "-c", write)
        assert written.returncode == 0, written.stderr

    async def publicly_visible(self, attempt_id: str) -> str:
        """Arguments of processes, and the container as every user of the daemon sees it."""
        return visible_arguments() + self.daemon.docker("inspect", f"tunesmith-{attempt_id}").stdout

    async def go_away(self) -> None:
        """Ends the daemon."""
        self.daemon.stop()

    async def come_back(self) -> None:
        """Starts it again."""
        self.daemon.start()


@pytest.fixture(scope="module")
def daemon() -> Iterator[DockerDaemon]:
    """One daemon for all tests of this file."""
    daemon = DockerDaemon(Path(tempfile.mkdtemp(prefix="tunesmith-docker-")))
    daemon.start()
    try:
        daemon.make_image()
        yield daemon
    finally:
        daemon.remove()


@pytest.fixture
async def backend(daemon: DockerDaemon) -> AsyncIterator[DockerBackend]:
    """Leaves no container behind."""
    backend = DockerBackend(daemon)
    yield backend
    daemon.docker("rm", "--force", "--volumes", NAME)


class TestDockerExecutor(SharedBackendContract):
    """The contract, with containers."""


async def test_a_run_may_write_to_its_volumes_and_use_nothing_else_of_the_host(backend: DockerBackend) -> None:
    executor = backend.executor(TELL_WHAT_IS_ALLOWED)
    await executor.ensure(launch())
    allowed = json.loads(await until_log(executor, "}"))
    assert allowed == {
        "user": 65532,
        "writable": ["/tmp", "/cache/tunesmith", "/tunesmith/work"],
        "capabilities": 0,
        "no_new_privileges": "1",
        "interfaces": ["lo"],
    }


async def test_a_container_that_was_made_and_never_started_is_started_by_the_next_launch(
    backend: DockerBackend,
) -> None:
    executor = backend.executor()
    labels = ["--label", f"tunesmith.attempt={ATTEMPT}", "--label", "tunesmith.installation=this"]
    folders = ["--volume", "/tunesmith", "--volume", "/cache", "--user", "65532:65532"]
    environment = ["--env", "TUNESMITH_WORK_DIR=/tunesmith/work", "--network", "none"]
    command = [*labels, *folders, *environment, IMAGE, "python3", "-c", WAIT_FOR_PERMISSION]
    assert backend.daemon.docker("create", "--name", NAME, *command).returncode == 0
    assert await executor.observe(ATTEMPT) == Observation(RunState.GONE), "so that the reconciler launches again"
    assert await executor.list_attempts() == [ATTEMPT]

    await executor.ensure(launch())

    await until_log(executor, "waiting")
    assert await executor.observe(ATTEMPT) == Observation(RunState.RUNNING)


async def test_a_run_that_takes_too_much_memory_is_told_from_other_kills(backend: DockerBackend) -> None:
    executor = backend.executor(EAT_MEMORY)
    await executor.ensure(launch())
    assert await until_ended(executor) == Observation(RunState.EXITED, 71)


async def test_what_docker_refuses_says_why(backend: DockerBackend) -> None:
    with pytest.raises(UnavailableError, match="No such image"):
        await backend.executor(settings=replace(backend.settings, image="none:none")).ensure(launch())


async def test_without_a_daemon_nothing_is_launched_stopped_or_forgotten(
    backend: DockerBackend, tmp_path: Path
) -> None:
    executor = DockerExecutor(("true",), replace(backend.settings, socket=tmp_path / "none"))
    for call in (executor.ensure(launch()), executor.stop(ATTEMPT, 0), executor.forget(ATTEMPT)):
        with pytest.raises(UnavailableError, match="away"):
            await call


async def test_nothing_of_a_forgotten_run_stays_on_the_disk(backend: DockerBackend) -> None:
    executor = backend.executor()
    await executor.ensure(launch())
    await until_log(executor, "waiting")

    await executor.forget(ATTEMPT)

    assert backend.daemon.docker("volume", "ls", "--quiet").stdout.split() == ["tunesmith-cache"]


async def test_a_machine_without_gpus_offers_its_slots(
    backend: DockerBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await backend.executor().capabilities() == Inventory(("slot-0", "slot-1"))
