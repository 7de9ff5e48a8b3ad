"""Owns an executor for tests that starts nothing and answers what the test says."""

from __future__ import annotations

from tunesmith_server.auth import AttemptIdentity, Signer
from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors.base import Inventory, Launch, Observation, RunState

RUNNING = Observation(RunState.RUNNING)
GONE = Observation(RunState.GONE)
UNREACHABLE = Observation(RunState.UNREACHABLE)


def exited(code: int) -> Observation:
    """The run ended with this code."""
    return Observation(RunState.EXITED, code)


class ScriptedExecutor:
    """Remembers what it was asked; `observations` overrides what it says of an attempt."""

    def __init__(self, devices: tuple[str, ...] = ("slot-0",)) -> None:
        self.devices = devices
        self.launches: dict[str, Launch] = {}
        self.observations: dict[str, Observation] = {}
        self.stopped: list[str] = []
        self.forgotten: list[str] = []
        self.refuses = False
        self.knows_devices = True

    async def capabilities(self) -> Inventory:
        """The devices that the test gave, unless told not to know."""
        if not self.knows_devices:
            raise UnavailableError("devices_unknown", "The executor is told not to know.")
        return Inventory(self.devices)

    async def ensure(self, launch: Launch) -> None:
        """Remembers the launch unless told to refuse."""
        if self.refuses:
            raise UnavailableError("launch_failed", "The executor is told to refuse.")
        self.launches[launch.attempt_id] = launch

    async def observe(self, attempt_id: str) -> Observation:
        """What the test said, else running when launched and gone when not."""
        default = RUNNING if attempt_id in self.launches else GONE
        return self.observations.get(attempt_id, default)

    async def stop(self, attempt_id: str, grace_seconds: float) -> None:
        """The run ends by the signal, unless it has ended."""
        self.stopped.append(attempt_id)
        if (await self.observe(attempt_id)).state is RunState.RUNNING:
            self.observations[attempt_id] = exited(143)

    async def list_attempts(self) -> list[str]:
        """All that were launched and not forgotten."""
        return sorted(self.launches)

    async def forget(self, attempt_id: str) -> None:
        """Removes the launch."""
        self.forgotten.append(attempt_id)
        self.launches.pop(attempt_id, None)

    async def read_log(self, attempt_id: str, max_bytes: int = 65536) -> str:
        """A line that names the attempt."""
        return f"log of {attempt_id}\n"

    def identity_of(self, signer: Signer, job_id: str) -> AttemptIdentity | None:
        """The attempt of the job that is launched, from its token."""
        identities = [signer.read_attempt_token(launch.token) for launch in self.launches.values()]
        return next((identity for identity in identities if identity and identity.job_id == job_id), None)
