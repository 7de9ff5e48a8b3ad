"""Owns runs as Jobs of a Kubernetes namespace: one Job, one pod and one Secret per attempt.

It must not know fine-tunes or the database, nor what is in the image. kubernetes_objects.py says what the objects hold,
kubernetes_status.py what they mean.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors import kubernetes_objects as objects
from tunesmith_server.executors import kubernetes_status as status
from tunesmith_server.executors.base import Inventory, Launch, Observation, RunState
from tunesmith_server.executors.kubernetes_api import KubernetesApi, Object

_SECRET_SUFFIX_BYTES = 4
_STOP_LIMIT_SECONDS = 60.0
_KILL_GRACE_SECONDS = 1  # with 0 a pod would be forgotten at once, whether its node has ended it or not
_WATCH_SECONDS = 30
_REST_SECONDS = 0.1
_SHORT_LOOK_SECONDS = 0.1
"""What takes longer is done in proportion less often."""
_DELETED = (HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """Where runs run."""

    namespace: str
    kubeconfig: Path | None
    """Unset: this process runs in a pod and uses its service account."""
    slots: int
    """Runs with devices that may wait in the cluster or run at once."""
    look_seconds: float = 1.0
    """For so long one look at all runs answers for each of them; longer where there are so many that it takes long."""


class KubernetesExecutor:
    """Runs `command` in a pod once per attempt. Which node and which devices a run gets is the cluster's to say."""

    def __init__(self, command: Sequence[str], settings: KubernetesSettings, pods: objects.PodSettings) -> None:
        self._command = tuple(command)
        self._settings = settings
        self._pod_settings = pods
        self._api = KubernetesApi(settings.kubeconfig)
        self._jobs_path = f"/apis/batch/v1/namespaces/{settings.namespace}/jobs"
        self._core_path = f"/api/v1/namespaces/{settings.namespace}"
        self._look: _Look | None = None
        self._looking = asyncio.Lock()

    async def capabilities(self) -> Inventory:
        """The slots that the operator set."""
        return Inventory(tuple(f"slot-{number}" for number in range(self._settings.slots)))

    async def ensure(self, launch: Launch) -> None:
        """Starts the run unless it has been started before; raises UnavailableError.

        The Job is made first, since the Secret belongs to it, but suspended. A launch that is cut off before its
        release shows as gone and is carried through by the next one, whoever makes it.
        """
        name = objects.job_name(launch.attempt_id)
        job = await self._find(launch.attempt_id) or await self._create(name, launch)
        if status.removed(job):
            raise UnavailableError("launch_failed", f"The Job {name} is being deleted.")
        if status.released(job):
            return
        secret = objects.token_secret(job, launch.token)
        taken = (HTTPStatus.CREATED, HTTPStatus.CONFLICT)  # the name is this Job's own: another launch made it
        await self._api.call("POST", f"{self._core_path}/secrets", body=secret, accept=taken)
        await self._api.call("PATCH", f"{self._jobs_path}/{name}", body=objects.release(self._pod_settings))
        self._look = None

    async def observe(self, attempt_id: str) -> Observation:
        """What became of the run, as its Job, its pod and, in doubt, its node say."""
        objects.job_name(attempt_id)
        try:
            look = await self._look_at_all(must_hold=attempt_id)
            pods = look.pods.get(attempt_id, [])
            node = status.doubted_node(pods)
            if node is not None and not await self._is_well(node):
                return Observation(RunState.UNREACHABLE)
            return status.observation(look.jobs.get(attempt_id), pods)
        except UnavailableError:
            return Observation(RunState.UNREACHABLE)

    async def stop(self, attempt_id: str, grace_seconds: float) -> None:
        """SIGTERM to the run, SIGKILL after the grace, which counts in whole seconds here; a waiting one is removed."""
        job = await self._find(attempt_id)
        pods, _ = await self._pods_of(attempt_id)
        if job is not None and status.observation(job, pods).state is RunState.PENDING:
            await self._delete_job(job)
        await self._end_pods(attempt_id, max(math.ceil(grace_seconds), 1))

    async def list_attempts(self) -> list[str]:
        """Attempt ids on this installation's Jobs that nobody deletes, and on pods that live; none while it is away."""
        try:
            look = await self._look_at_all()
        except UnavailableError:
            return []
        kept = {attempt_id for attempt_id, job in look.jobs.items() if not status.removed(job)}
        return sorted(kept | {attempt_id for attempt_id, pods in look.pods.items() if status.living(pods)})

    async def forget(self, attempt_id: str) -> None:
        """Kills the run and removes its Job, with which the Secret goes; raises UnavailableError while it may run."""
        job = await self._find(attempt_id)
        if job is not None:
            await self._delete_job(job)
        await self._end_pods(attempt_id, _KILL_GRACE_SECONDS)

    async def read_log(self, attempt_id: str, max_bytes: int = 65536) -> str:
        """The end of the run's output; of a run that waits, why it does; or an empty string."""
        objects.job_name(attempt_id)
        try:
            pods, _ = await self._pods_of(attempt_id)
            if not pods:
                return ""
            pod = status.newest(pods)
            if pod["status"].get("phase") == "Pending":
                reason = status.reason_for_waiting(pod)
                return f"not started yet: {reason}\n"[-max_bytes:] if reason else ""
            # As many lines as bytes are asked for: no fewer would do if all were empty. The node bounds the whole.
            wanted: dict[str, str | int] = {"container": objects.CONTAINER, "tailLines": max_bytes}
            path = f"{self._core_path}/pods/{pod['metadata']['name']}/log"
            return (await self._api.tail(path, wanted, max_bytes)).decode(errors="replace")
        except UnavailableError:
            return ""

    async def _find(self, attempt_id: str) -> Object | None:
        """The attempt's Job; None without one, or when the Job of that name is someone else's."""
        path = f"{self._jobs_path}/{objects.job_name(attempt_id)}"
        reply = await self._api.call("GET", path, accept=(HTTPStatus.OK, HTTPStatus.NOT_FOUND))
        if reply.status == HTTPStatus.NOT_FOUND:
            return None
        labels = reply.object["metadata"].get("labels", {})
        wanted = {objects.INSTALLATION: self._pod_settings.installation, objects.ATTEMPT: attempt_id}
        return reply.object if wanted.items() <= labels.items() else None

    async def _create(self, name: str, launch: Launch) -> Object:
        """The Job that was made now, or that another control plane made since it was looked for."""
        secret_name = f"{name}-{secrets.token_hex(_SECRET_SUFFIX_BYTES)}"
        body = objects.job(launch, self._command, secret_name, self._pod_settings)
        accept = (HTTPStatus.CREATED, HTTPStatus.CONFLICT)
        reply = await self._api.call("POST", self._jobs_path, body=body, accept=accept)
        job = reply.object if reply.status == HTTPStatus.CREATED else await self._find(launch.attempt_id)
        if job is None:
            raise UnavailableError("launch_failed", f"The Job name {name} is taken by someone else.")
        return job

    async def _delete_job(self, job: Object) -> None:
        """No pod is made from now on; the Job goes when its last pod has gone. Not another Job of the same name."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        await self._api.call("DELETE", f"{self._jobs_path}/{name}", body=options, accept=_DELETED)
        self._look = None

    async def _end_pods(self, attempt_id: str, grace_seconds: int) -> None:
        """Returns when nothing of the attempt runs any more; raises UnavailableError when that takes too long."""
        deadline = time.monotonic() + grace_seconds + _STOP_LIMIT_SECONDS
        asked: set[str] = set()
        while True:
            self._look = None
            pods, version = await self._pods_of(attempt_id)
            if not (names := {str(pod["metadata"]["name"]) for pod in status.living(pods)}):
                return
            for name in sorted(names - asked):
                options = {"gracePeriodSeconds": grace_seconds}
                await self._api.call("DELETE", f"{self._core_path}/pods/{name}", body=options, accept=_DELETED)
            asked |= names
            if time.monotonic() > deadline:
                raise UnavailableError("run_not_ended", f"Kubernetes has not ended the pod {min(names)} yet.")
            if not await self._api.wait_for_change(
                f"{self._core_path}/pods", self._selector(attempt_id), version, _WATCH_SECONDS
            ):
                await asyncio.sleep(_REST_SECONDS)  # a server that closes at once is not to be run down

    async def _pods_of(self, attempt_id: str) -> tuple[list[Object], str]:
        """The attempt's pods, and the version of the list from which changes can be watched."""
        answer = (await self._api.call("GET", f"{self._core_path}/pods", params=self._selector(attempt_id))).object
        return answer["items"], answer["metadata"]["resourceVersion"]

    def _selector(self, attempt_id: str = "") -> dict[str, str]:
        wanted = {objects.INSTALLATION: self._pod_settings.installation}
        if attempt_id:
            wanted[objects.ATTEMPT] = attempt_id
        return {"labelSelector": ",".join(f"{name}={value}" for name, value in wanted.items())}

    async def _is_well(self, node: str) -> bool:
        accept = (HTTPStatus.OK, HTTPStatus.NOT_FOUND)
        reply = await self._api.call("GET", f"/api/v1/nodes/{node}", accept=accept)
        return reply.status == HTTPStatus.OK and status.has_condition(reply.object, "Ready")

    async def _look_at_all(self, must_hold: str = "") -> _Look:
        """All Jobs and pods as they were not long ago; that there is no Job is never taken from an old look."""
        async with self._looking:
            look, began = self._look, time.monotonic()
            if look is None or began > look.holds_until or must_hold not in {"", *look.jobs}:
                # Lists without a version are of this moment. Pods first: a Job listed later knows how its pod ended.
                pods = (await self._api.call("GET", f"{self._core_path}/pods", params=self._selector())).object
                jobs = (await self._api.call("GET", self._jobs_path, params=self._selector())).object
                took = time.monotonic() - began
                holds = self._settings.look_seconds * max(1.0, took / _SHORT_LOOK_SECONDS)
                look = self._look = _Look(began + holds, {}, {})
                for job in jobs["items"]:
                    look.jobs[job["metadata"]["labels"][objects.ATTEMPT]] = job
                for pod in pods["items"]:
                    look.pods.setdefault(pod["metadata"]["labels"][objects.ATTEMPT], []).append(pod)
            return look


@dataclass(frozen=True, slots=True)
class _Look:
    """What the namespace held of this installation, and until when on the monotonic clock that may answer."""

    holds_until: float
    jobs: dict[str, Object]
    """By attempt, as the next."""
    pods: dict[str, list[Object]]
