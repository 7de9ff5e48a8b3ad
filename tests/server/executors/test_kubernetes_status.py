"""What Jobs and pods say, in states that Kubernetes is known to leave them in."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith_server.executors.base import Observation, RunState
from tunesmith_server.executors.kubernetes_objects import RELEASED
from tunesmith_server.executors.kubernetes_status import doubted_node, newest, observation, reason_for_waiting

RUNNING = Observation(RunState.RUNNING)
PENDING = Observation(RunState.PENDING)
GONE = Observation(RunState.GONE)


def job(*conditions: dict[str, str], released: bool = True, **metadata: str) -> dict[str, Any]:
    """A Job with these conditions."""
    annotations = {RELEASED: "true"} if released else {}
    return {"metadata": {"annotations": annotations, **metadata}, "status": {"conditions": list(conditions)}}


def condition(kind: str, message: str = "", status: str = "True") -> dict[str, str]:
    """A condition of a Job, a pod or a node."""
    return {"type": kind, "status": status, "message": message}


def pod(
    phase: str, state: dict[str, Any] | None = None, *conditions: dict[str, str], node: str = "node-1", made: str = "1"
) -> dict[str, Any]:
    """A pod with one container in this state."""
    statuses = [{"name": "trainer", "state": state}] if state else []
    return {
        "metadata": {"creationTimestamp": made},
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase, "containerStatuses": statuses, "conditions": list(conditions)},
    }


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    """The state of a container that ran."""
    return {"terminated": {"exitCode": code, "reason": reason}}


EVICTED = pod("Failed", None, condition("DisruptionTarget"))
EXIT = "Container trainer for pod tunesmith/x failed with exit code 75 matching FailJob rule at index 0"


@pytest.mark.parametrize(
    ("of", "pods", "expected"),
    [
        pytest.param(None, [], GONE, id="never launched, or forgotten"),
        pytest.param(job(released=False), [], GONE, id="launch cut off"),
        pytest.param(job(), [], PENDING, id="in a queue, or about to get its pod"),
        pytest.param(job(condition("Suspended")), [], PENDING, id="in a queue"),
        pytest.param(job(deletionTimestamp="1"), [], GONE, id="deleted before it had a pod"),
        pytest.param(job(), [pod("Pending", node="")], PENDING, id="unscheduled"),
        pytest.param(job(), [pod("Running", {"running": {}})], RUNNING, id="running"),
        pytest.param(job(deletionTimestamp="1"), [pod("Running", {"running": {}})], RUNNING, id="being deleted"),
        pytest.param(None, [pod("Running", {"running": {}})], RUNNING, id="its Job deleted and it left behind"),
        pytest.param(None, [pod("Failed", ended(1))], GONE, id="forgotten, and its pod about to go"),
        pytest.param(job(), [pod("Succeeded", ended(0))], Observation(RunState.EXITED, 0), id="done"),
        pytest.param(job(), [pod("Failed", ended(65))], Observation(RunState.EXITED, 65), id="failed"),
        pytest.param(job(), [pod("Failed", ended(137, "OOMKilled"))], Observation(RunState.EXITED, 71), id="memory"),
        pytest.param(
            job(), [pod("Failed", ended(137, "ContainerStatusUnknown"))], Observation(RunState.EXITED, 137), id="lost"
        ),
        pytest.param(job(), [EVICTED], Observation(RunState.EXITED, 143), id="evicted before it started"),
        pytest.param(
            job(), [pod("Failed", {"waiting": {"reason": "X"}})], Observation(RunState.EXITED, 143), id="never started"
        ),
        pytest.param(job(condition("Complete")), [], Observation(RunState.EXITED, 0), id="done, pod removed"),
        pytest.param(job(condition("SuccessCriteriaMet")), [], Observation(RunState.EXITED, 0), id="done just now"),
        pytest.param(job(condition("Failed", EXIT)), [], Observation(RunState.EXITED, 75), id="failed, pod removed"),
        pytest.param(job(condition("FailureTarget", EXIT)), [], Observation(RunState.EXITED, 75), id="failed just now"),
        pytest.param(
            job(condition("Failed", "Pod tunesmith/x has condition DisruptionTarget matching FailJob rule at index 1")),
            [],
            Observation(RunState.EXITED, 143),
            id="disrupted, pod removed",
        ),
        pytest.param(job(condition("Failed", EXIT, "False")), [], PENDING, id="a condition that does not hold"),
        pytest.param(
            job(condition("Failed", EXIT)), [pod("Running", {"running": {}})], RUNNING, id="ended while one still runs"
        ),
    ],
)
def test_what_became_of_a_run(of: dict[str, Any] | None, pods: list[dict[str, Any]], expected: Observation) -> None:
    assert observation(of, pods) == expected


def test_containers_that_the_cluster_adds_do_not_count() -> None:
    beside = pod("Failed", ended(65))
    beside["status"]["containerStatuses"].insert(0, {"name": "proxy", "state": ended(0, "Completed")})
    assert observation(job(), [beside]) == Observation(RunState.EXITED, 65)


@pytest.mark.parametrize(
    ("pods", "node"),
    [
        ([pod("Running", {"running": {}}, condition("Ready"))], None),
        ([pod("Running", {"running": {}}, condition("Ready", status="False"))], "node-1"),
        ([pod("Running", {"running": {}}, condition("Ready", status="Unknown"))], "node-1"),
        ([pod("Pending")], "node-1"),
        ([pod("Pending", node="")], None),
        ([pod("Failed", ended(1), condition("Ready", status="False"))], None),
        ([], None),
    ],
)
def test_a_node_is_asked_about_when_its_pod_is_not_ready(pods: list[dict[str, Any]], node: str | None) -> None:
    assert doubted_node(pods) == node


def test_the_pod_made_last_counts() -> None:
    pods = [pod("Failed", ended(1), made="2026-11-29T04:00:00Z"), pod("Failed", ended(2), made="2026-11-29T04:00:01Z")]
    assert newest(pods) is pods[1]
    assert observation(job(), pods) == Observation(RunState.EXITED, 2)


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        (
            pod("Pending", None, condition("PodScheduled", "0/9 nodes are available.", "False"), node=""),
            "0/9 nodes are available.",
        ),
        (
            pod("Pending", {"waiting": {"reason": "ErrImagePull", "message": "not found"}}, condition("PodScheduled")),
            "ErrImagePull: not found",
        ),
        (pod("Pending", {"waiting": {"reason": "ContainerCreating"}}), "ContainerCreating"),
        (pod("Pending"), ""),
    ],
)
def test_why_a_run_waits(of: dict[str, Any], reason: str) -> None:
    assert reason_for_waiting(of) == reason
