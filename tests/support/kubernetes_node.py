"""Owns a node: runs the command of a pod as a process of this machine, and reports about it while it is connected.

It must not know Jobs. There are no containers: mount paths in the environment become folders of the node's own.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.kubernetes_store import Object, Store

_POLL_SECONDS = 0.01


@dataclass
class _Run:
    process: asyncio.subprocess.Process
    deadline: float | None = None
    reason: str = ""


class Node:
    """A kubelet. What it does not report while it is cut off, it reports when it is back."""

    def __init__(self, store: Store, folder: Path, name: str) -> None:
        self.name = name
        self.path = os.defpath
        """Where commands are found: what the images hold."""
        self.claims = folder / "claims"
        """Where the volumes of claims lie, by the claims' names."""
        self.connected = asyncio.Event()
        self.connected.set()
        self._store = store
        self._folder = folder
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._runs: dict[str, _Run] = {}

    def sync(self) -> None:
        """Starts and ends what the pods of this node ask for."""
        if not self.connected.is_set():
            return
        for pod in self._store.list("pods"):
            if pod["spec"].get("nodeName") != self.name or pod["status"].get("phase") in ("Succeeded", "Failed"):
                continue
            uid, metadata = pod["metadata"]["uid"], pod["metadata"]
            if uid not in self._tasks:
                if "deletionTimestamp" in metadata:
                    self._report(pod, "Failed", None)
                elif all(map(self._has_secret, pod["spec"]["volumes"])):
                    self._tasks[uid] = asyncio.create_task(self._run(pod))
                else:
                    self._report(pod, "Pending", {"waiting": {"reason": "ContainerCreating"}})
            elif uid in self._runs and "deletionTimestamp" in metadata:
                self._end(self._runs[uid], metadata["deletionGracePeriodSeconds"])

    async def stop(self) -> None:
        """Kills everything."""
        self.connected.set()
        for uid in self._runs:
            self.kill(uid)
        await asyncio.gather(*self._tasks.values())

    def kill(self, uid: str, reason: str = "") -> None:
        """SIGKILL to all processes of a pod, for a reason such as `OOMKilled`."""
        run = self._runs[uid]
        run.reason = reason
        with suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)

    def log(self, uid: str) -> Path:
        """Where the output of a pod is kept."""
        return self._folder / uid / "log"

    def volume(self, uid: str, name: str) -> Path:
        """The folder behind a volume of a pod."""
        return self._folder / uid / name

    def _has_secret(self, volume: Object) -> bool:
        if "secret" not in volume:
            return True
        return any(each["metadata"]["name"] == volume["secret"]["secretName"] for each in self._store.list("secrets"))

    async def _run(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        container = pod["spec"]["containers"][0]
        mounts = {each["mountPath"]: self.volume(uid, each["name"]) for each in container["volumeMounts"]}
        self._make_volumes(pod, uid)
        environment = {each["name"]: _on_the_node(each["value"], mounts) for each in container["env"]}
        environment["PATH"] = self.path
        with self.log(uid).open("wb") as log:
            try:
                process = await asyncio.create_subprocess_exec(
                    *container["command"],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    cwd=_on_the_node(container["workingDir"], mounts),
                    start_new_session=True,
                )
            except OSError as error:
                self._report(pod, "Failed", {"terminated": {"exitCode": 128, "reason": f"StartError: {error}"}})
                return
        run = self._runs[uid] = _Run(process)
        self._report(pod, "Running", {"running": {}})
        code = await process.wait()
        del self._runs[uid]
        await self.connected.wait()
        end = {"exitCode": 128 - code if code < 0 else code, "reason": run.reason or ("Error" if code else "Completed")}
        self._report(pod, "Failed" if code else "Succeeded", {"terminated": end})

    def _make_volumes(self, pod: Object, uid: str) -> None:
        # Kubernetes gives the files of a Secret to root, and to the pod's group with leave to read.
        shared = 0o440 if "fsGroup" in pod["spec"]["securityContext"] else 0
        for volume in pod["spec"]["volumes"]:
            folder = self.volume(uid, volume["name"])
            if "persistentVolumeClaim" in volume:
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.symlink_to(self.claims / volume["persistentVolumeClaim"]["claimName"])
                continue
            folder.mkdir(parents=True)
            if "secret" in volume:
                name = volume["secret"]["secretName"]
                (secret,) = (each for each in self._store.list("secrets") if each["metadata"]["name"] == name)
                encoded = {key: base64.b64decode(value) for key, value in secret.get("data", {}).items()}
                for key, value in (encoded | secret.get("stringData", {})).items():
                    (folder / key).write_bytes(value.encode() if isinstance(value, str) else value)
                    (folder / key).chmod(volume["secret"]["defaultMode"] | shared)

    def _end(self, run: _Run, grace: float) -> None:
        """SIGTERM, once, and SIGKILL after the shortest grace that was asked for."""
        deadline = asyncio.get_running_loop().time() + grace
        first = run.deadline is None
        run.deadline = deadline if run.deadline is None else min(run.deadline, deadline)
        if first:
            with suppress(ProcessLookupError):
                os.killpg(run.process.pid, signal.SIGTERM)
            self._tasks[f"end of {run.process.pid}"] = asyncio.create_task(self._kill_at_deadline(run))

    async def _kill_at_deadline(self, run: _Run) -> None:
        while run.process.returncode is None and run.deadline is not None:
            if asyncio.get_running_loop().time() >= run.deadline:
                with suppress(ProcessLookupError):
                    os.killpg(run.process.pid, signal.SIGKILL)
                return
            await asyncio.sleep(_POLL_SECONDS)

    def _report(self, pod: Object, phase: str, state: dict[str, Any] | None) -> None:
        current = self._store.get("pods", pod["metadata"]["name"], pod["metadata"]["namespace"])
        if current is None or current["metadata"]["uid"] != pod["metadata"]["uid"]:
            return
        before = dict(current["status"])
        current["status"]["phase"] = phase
        if state is not None:
            container = pod["spec"]["containers"][0]
            told = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
            current["status"]["containerStatuses"] = [told | {"ready": phase == "Running", "state": state}]
        set_condition(current, "Ready", "True" if phase == "Running" else "False")
        if current["status"] != before:
            self._store.put("pods", current)


def set_condition(thing: Object, kind: str, status: str, reason: str = "", message: str = "") -> None:
    """Writes a condition in place of an earlier one of its kind."""
    conditions = thing.setdefault("status", {}).setdefault("conditions", [])
    kept = [each for each in conditions if each["type"] != kind]
    condition = {"type": kind, "status": status, "reason": reason, "message": message}
    thing["status"]["conditions"] = [*kept, condition]


def _on_the_node(value: str, mounts: dict[str, Path]) -> str:
    for path, folder in mounts.items():
        if value == path or value.startswith(f"{path}/"):
            return f"{folder}{value[len(path) :]}"
    return value
