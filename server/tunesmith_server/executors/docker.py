"""Owns runs as containers of one Docker daemon: one container and one volume per attempt.

It must not know fine-tunes or the database, nor what is in the image.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors import local_devices, supervisor
from tunesmith_server.executors.base import Inventory, Launch, Observation, RunState, require_attempt_id
from tunesmith_server.executors.docker_api import DockerApi, joined_output

_NAME_PREFIX = "tunesmith-"
_ATTEMPT_LABEL = "tunesmith.attempt"
_INSTALLATION_LABEL = "tunesmith.installation"
_USER_ID = 65532
"""Nobody's on the host; the image need not know it."""
_RUN_VOLUME = "/tunesmith"
_CACHE_VOLUME = "/cache"
_TOKEN_FILE = "token"  # noqa: S105 (a file name)
_WORK_FOLDER = "work"
_CACHE_FOLDER = "tunesmith"
_SHARED_MEMORY_BYTES = 1 << 30  # what ranks on several GPUs exchange
_LOG_OPTIONS = {"max-size": "16m", "max-file": "2"}
_STOP_LIMIT_SECONDS = 60.0
_CREATE_LIMIT_SECONDS = 5.0
_POLL_SECONDS = 0.1
_ALIVE = frozenset({"running", "paused", "restarting"})
_NEVER_STARTED = "created"


@dataclass(frozen=True, slots=True)
class DockerSettings:
    """How containers are made."""

    installation: str
    """Tells this installation's containers from others' on the same daemon."""
    image: str
    socket: Path
    network: str
    """A network of the daemon's, `host` or `none`."""
    cache_volume: str
    """Where base models are kept between runs."""
    memory_bytes: int | None
    process_limit: int
    slots: int
    """Runs at once on a machine without GPUs."""


class DockerExecutor:
    """Runs `command` in a container once per attempt. The daemon is that of this machine, whose GPUs are given out."""

    def __init__(self, command: Sequence[str], settings: DockerSettings) -> None:
        self._command = tuple(command)
        self._settings = settings
        self._api = DockerApi(settings.socket)
        self._inventory: Inventory | None = None
        self._launching = asyncio.Lock()

    async def capabilities(self) -> Inventory:
        """The machine's devices, looked up once; raises UnavailableError while the driver does not answer."""
        if self._inventory is None:
            self._inventory = Inventory(await asyncio.to_thread(local_devices.list_devices, self._settings.slots))
        return self._inventory

    async def ensure(self, launch: Launch) -> None:
        """Starts the run unless its container has been started before; raises UnavailableError."""
        name = _container_name(launch.attempt_id)
        async with self._launching:
            container = await self._find(launch.attempt_id) or await self._create(name, launch)
            # One that was made and never started was cut off in between. Starting what runs already changes nothing.
            if container["State"]["Status"] == _NEVER_STARTED:
                await self._fill(container["Id"], launch.token)
                accept = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
                await self._api.call("POST", f"/containers/{container['Id']}/start", accept=accept)

    async def observe(self, attempt_id: str) -> Observation:
        """What became of the run, as the daemon says."""
        require_attempt_id(attempt_id)
        try:
            container = await self._find(attempt_id)
        except UnavailableError:
            return Observation(RunState.UNREACHABLE)
        if container is None or container["State"]["Status"] == _NEVER_STARTED:
            return Observation(RunState.GONE)
        state = container["State"]
        if state["Status"] in _ALIVE:
            return Observation(RunState.RUNNING)
        return Observation(RunState.EXITED, supervisor.OUT_OF_MEMORY if state["OOMKilled"] else state["ExitCode"])

    async def stop(self, attempt_id: str, grace_seconds: float) -> None:
        """SIGTERM to the run, SIGKILL to all its processes after the grace, which counts in whole seconds here."""
        container = await self._find(attempt_id)
        if container is not None:
            await self._api.call(
                "POST",
                f"/containers/{container['Id']}/stop",
                accept=(HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED, HTTPStatus.NOT_FOUND),
                params={"t": math.ceil(grace_seconds)},
                limit_seconds=grace_seconds + _STOP_LIMIT_SECONDS,
            )

    async def list_attempts(self) -> list[str]:
        """Attempt ids on the containers of this installation; none while the daemon is away."""
        filters = json.dumps({"label": [f"{_INSTALLATION_LABEL}={self._settings.installation}"]})
        try:
            response = await self._api.call("GET", "/containers/json", params={"all": "true", "filters": filters})
        except UnavailableError:
            return []
        return sorted(container["Labels"][_ATTEMPT_LABEL] for container in response.json())

    async def forget(self, attempt_id: str) -> None:
        """Kills and removes the container and its volume; raises UnavailableError."""
        container = await self._find(attempt_id)
        if container is not None:
            await self._api.call(
                "DELETE",
                f"/containers/{container['Id']}",
                accept=(HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND),
                params={"force": "true", "v": "true"},
            )

    async def read_log(self, attempt_id: str, max_bytes: int = 65536) -> str:
        """The end of the run's output, or an empty string."""
        require_attempt_id(attempt_id)
        try:
            container = await self._find(attempt_id)
            if container is None:
                return ""
            # As many lines as bytes are asked for: no fewer would do if all were empty. The daemon bounds the whole.
            wanted = {"stdout": "true", "stderr": "true", "tail": str(max_bytes)}
            response = await self._api.call("GET", f"/containers/{container['Id']}/logs", params=wanted)
        except UnavailableError:
            return ""
        return joined_output(response.content)[-max_bytes:].decode(errors="replace")

    async def _find(self, attempt_id: str) -> Any | None:
        """What the daemon knows of the attempt's container; None without one, or when it is another installation's."""
        path = f"/containers/{_container_name(attempt_id)}/json"
        response = await self._api.call("GET", path, accept=(HTTPStatus.OK, HTTPStatus.NOT_FOUND))
        if response.status_code == HTTPStatus.NOT_FOUND:
            return None
        container = response.json()
        ours = container["Config"]["Labels"].get(_INSTALLATION_LABEL) == self._settings.installation
        return container if ours else None

    async def _create(self, name: str, launch: Launch) -> Any:
        await self._api.call(
            "POST",
            "/containers/create",
            accept=(HTTPStatus.CREATED, HTTPStatus.CONFLICT),
            params={"name": name},
            json=await self._description(launch),
        )
        deadline = time.monotonic() + _CREATE_LIMIT_SECONDS
        while time.monotonic() < deadline:
            container = await self._find(launch.attempt_id)
            if container is not None:
                return container
            # The name is taken before the container can be seen: another control plane may be making it right now.
            await asyncio.sleep(_POLL_SECONDS)
        raise UnavailableError("launch_failed", f"The container name {name} is taken by someone else.")

    async def _description(self, launch: Launch) -> dict[str, Any]:
        environment = {
            **launch.settings,
            "TUNESMITH_ATTEMPT_TOKEN_FILE": f"{_RUN_VOLUME}/{_TOKEN_FILE}",
            "TUNESMITH_CACHE_DIR": f"{_CACHE_VOLUME}/{_CACHE_FOLDER}",
            "TUNESMITH_WORK_DIR": f"{_RUN_VOLUME}/{_WORK_FOLDER}",
            "HOME": f"{_RUN_VOLUME}/{_WORK_FOLDER}",
            "USER": "tunesmith",  # libraries ask for it where the id has no name
        }
        return {
            "Image": self._settings.image,
            "Entrypoint": [],
            "Cmd": list(self._command),
            "User": f"{_USER_ID}:{_USER_ID}",
            "WorkingDir": _RUN_VOLUME,
            "StopSignal": "SIGTERM",
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "Labels": {_ATTEMPT_LABEL: launch.attempt_id, _INSTALLATION_LABEL: self._settings.installation},
            "HostConfig": self._host_configuration() | await self._device_requests(launch),
        }

    def _host_configuration(self) -> dict[str, Any]:
        """What the container may use of the host: no capability, no way to write but its volumes, bounded memory."""
        configuration: dict[str, Any] = {
            "Init": True,
            "RestartPolicy": {"Name": "no"},
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": self._settings.process_limit,
            "ShmSize": _SHARED_MEMORY_BYTES,
            "NetworkMode": self._settings.network,
            "Tmpfs": {"/tmp": "rw,nosuid,nodev,size=1g,mode=1777"},  # noqa: S108 (the container's own)
            "Mounts": [
                {"Type": "volume", "Target": _RUN_VOLUME},
                {"Type": "volume", "Target": _CACHE_VOLUME, "Source": self._settings.cache_volume},
            ],
            "LogConfig": {"Type": "json-file", "Config": _LOG_OPTIONS},
        }
        if self._settings.memory_bytes is not None:
            # As much swap as memory would be the default; a run that swaps holds its device and gets nowhere.
            configuration |= {"Memory": self._settings.memory_bytes, "MemorySwap": self._settings.memory_bytes}
        return configuration

    async def _device_requests(self, launch: Launch) -> dict[str, Any]:
        """The run's GPUs; a preflight has none of its own and may look at all."""
        gpus = local_devices.gpus(launch.devices or (await self.capabilities()).devices)
        request = {"Driver": "nvidia", "DeviceIDs": gpus, "Capabilities": [["gpu"]]}
        return {"DeviceRequests": [request]} if gpus else {}

    async def _fill(self, container: str, token: str) -> None:
        """Makes the run's own folders in its volumes, and the token, which no description of the container shows."""
        archives = {
            _RUN_VOLUME: _archive({_WORK_FOLDER: None, _TOKEN_FILE: token.encode()}),
            _CACHE_VOLUME: _archive({_CACHE_FOLDER: None}),
        }
        for path, content in archives.items():
            await self._api.call("PUT", f"/containers/{container}/archive", params={"path": path}, content=content)


def _container_name(attempt_id: str) -> str:
    return f"{_NAME_PREFIX}{require_attempt_id(attempt_id)}"


def _archive(entries: dict[str, bytes | None]) -> bytes:
    """A tar of files, and folders where there is no content, that only the run may read."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.uid = entry.gid = _USER_ID
            if content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o700
                archive.addfile(entry)
            else:
                entry.size, entry.mode = len(content), 0o600
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
