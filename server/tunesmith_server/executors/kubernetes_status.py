"""Owns what a Job and its pods say about a run. Pure.

It must not know how they were read. The rule: a run has ended when its pod says so, or when the Job does and no pod is
left; a pod whose node is silent says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith_server.executors import supervisor
from tunesmith_server.executors.base import Observation, RunState
from tunesmith_server.executors.kubernetes_objects import CONTAINER, RELEASED

_TERMINATED = 143
"""What a run ended with whose exit code nobody knows: never started, its node removed, its pod deleted."""
_ENDED = frozenset({"Succeeded", "Failed"})
_JOB_SUCCEEDED = frozenset({"Complete", "SuccessCriteriaMet"})
_JOB_FAILED = frozenset({"Failed", "FailureTarget"})
_EXIT_CODE = re.compile(r"failed with exit code (\d+)")


def observation(job: Mapping[str, Any] | None, pods: Sequence[Mapping[str, Any]]) -> Observation:
    """What became of the run, if the node of its living pod is well (`doubted_node`)."""
    if remaining := living(pods):
        started = any(pod["status"].get("phase") == "Running" for pod in remaining)
        return Observation(RunState.RUNNING if started else RunState.PENDING)
    if job is None or not released(job):
        return Observation(RunState.GONE)
    if pods:
        return Observation(RunState.EXITED, _pod_exit_code(newest(pods)))
    code = _job_exit_code(job)
    if code is not None:
        return Observation(RunState.EXITED, code)
    # A Job that is being removed makes no more pods.
    return Observation(RunState.GONE if removed(job) else RunState.PENDING)


def doubted_node(pods: Sequence[Mapping[str, Any]]) -> str | None:
    """The node that a living pod is on and that may be lost: Kubernetes then takes the pod's readiness away."""
    for pod in living(pods):
        node = pod["spec"].get("nodeName")
        if node and not has_condition(pod, "Ready"):
            return str(node)
    return None


def living(pods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Pods of which something may run, or start to."""
    return [pod for pod in pods if pod["status"].get("phase") not in _ENDED]


def newest(pods: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The pod made last; there is more than one only if Kubernetes made one against the Job's rules."""
    return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def released(job: Mapping[str, Any]) -> bool:
    """Whether the launch was carried through."""
    return RELEASED in job["metadata"].get("annotations", {})


def removed(job: Mapping[str, Any]) -> bool:
    """Whether somebody has deleted the Job; what is left of it goes when its pods have gone."""
    return "deletionTimestamp" in job["metadata"]


def has_condition(thing: Mapping[str, Any], kind: str) -> bool:
    """Whether a condition of a Job, a pod or a node holds; unknown is no."""
    conditions = thing.get("status", {}).get("conditions", [])
    return any(each["type"] == kind and each["status"] == "True" for each in conditions)


def reason_for_waiting(pod: Mapping[str, Any]) -> str:
    """Why a pod has not started, in Kubernetes' words; empty when it says nothing."""
    reasons = [each for each in pod["status"].get("conditions", []) if each["status"] != "True" and each.get("message")]
    states = [each["state"].get("waiting") or {} for each in pod["status"].get("containerStatuses", [])]
    told = [f"{each.get('reason', '')}: {each.get('message', '')}".strip(": ") for each in [*states, *reasons]]
    return "; ".join(each for each in told if each)


def _pod_exit_code(pod: Mapping[str, Any]) -> int:
    if pod["status"]["phase"] == "Succeeded":
        return 0
    statuses = pod["status"].get("containerStatuses", [])
    # By name: a cluster may put containers of its own into every pod.
    end = next((each["state"].get("terminated") for each in statuses if each["name"] == CONTAINER), None)
    if end is None:
        return _TERMINATED
    return supervisor.OUT_OF_MEMORY if end.get("reason") == "OOMKilled" else int(end["exitCode"])


def _job_exit_code(job: Mapping[str, Any]) -> int | None:
    """What the Job remembers of a pod that is gone; None while it has not ended."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["status"] != "True":
            continue
        if condition["type"] in _JOB_SUCCEEDED:
            return 0
        if condition["type"] in _JOB_FAILED:
            found = _EXIT_CODE.search(condition.get("message", ""))
            return int(found[1]) if found else _TERMINATED
    return None
