"""A Kubernetes API over HTTPS that behaves, with a node that runs pods as processes: runs outlive the control plane."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.server.executors.contract import (
    ATTEMPT,
    IGNORE_TERM,
    LIMIT_SECONDS,
    WAIT_FOR_PERMISSION,
    SharedBackendContract,
    launch,
    until_ended,
    until_log,
    until_true,
    visible_arguments,
)
from tests.support.kubernetes_admission import admit
from tests.support.kubernetes_cluster import NAMESPACE, KubernetesCluster
from tests.support.kubernetes_node import set_condition
from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors.base import Inventory, Observation, RunState
from tunesmith_server.executors.kubernetes import KubernetesExecutor, KubernetesSettings
from tunesmith_server.executors.kubernetes_objects import PodSettings

YIELD = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("working", flush=True)
time.sleep(600)
"""


class KubernetesBackend:
    """A cluster, and the settings of one installation."""

    def __init__(self, cluster: KubernetesCluster) -> None:
        self.cluster = cluster
        # No look is kept: a test asks what is so now.
        self.settings = KubernetesSettings(NAMESPACE, cluster.kubeconfig, slots=2, look_seconds=0)
        self.pods = PodSettings(installation="this", image="tunesmith-trainer")

    def executor(
        self,
        script: str = WAIT_FOR_PERMISSION,
        settings: KubernetesSettings | None = None,
        pods: PodSettings | None = None,
    ) -> KubernetesExecutor:
        """A new object over the same cluster."""
        command = (sys.executable, "-I", "-S", "-c", script)
        return KubernetesExecutor(command, settings or self.settings, pods or self.pods)

    def another_installation(self) -> KubernetesExecutor:
        """The same namespace, for somebody else."""
        return self.executor(pods=replace(self.pods, installation="other"))

    async def let_exit(self, attempt_id: str, code: int) -> None:
        """Writes what the script looks for."""
        (pod,) = self.cluster.store.list("pods", {"tunesmith.attempt": attempt_id})
        work = self.cluster.node.volume(pod["metadata"]["uid"], "work")
        (work / "permission").write_text(str(code))
        (work / "permission").rename(work / "go")

    async def publicly_visible(self, attempt_id: str) -> str:
        """Arguments of processes, and what everybody sees who may not read Secrets."""
        wanted = {"tunesmith.attempt": attempt_id}
        jobs, pods = (self.cluster.store.list(kind, wanted) for kind in ("jobs", "pods"))
        return visible_arguments() + json.dumps([jobs, pods])

    async def go_away(self) -> None:
        """Ends the API server."""
        await self.cluster.go_away()

    async def come_back(self) -> None:
        """Starts it again."""
        await self.cluster.come_back()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[KubernetesCluster]:
    """A cluster of its own for each test."""
    async with KubernetesCluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def backend(cluster: KubernetesCluster) -> KubernetesBackend:
    """One installation on it."""
    return KubernetesBackend(cluster)


class TestKubernetesExecutor(SharedBackendContract):
    """The contract, with Jobs."""

    token_mode = "0o440"  # the files of a Secret belong to root; the run reads them as a group of its own


@pytest.mark.parametrize("cut_off", [("create", "jobs"), ("create", "secrets"), ("patch", "jobs")], ids=" ".join)
async def test_a_launch_that_is_cut_off_is_carried_through_by_the_next(
    backend: KubernetesBackend, cut_off: tuple[str, str]
) -> None:
    executor = backend.executor()
    backend.cluster.api.timed_out.append(cut_off)
    with pytest.raises(UnavailableError, match="Timeout"):
        await executor.ensure(launch())
    if cut_off[0] == "create":
        assert await executor.observe(ATTEMPT) == Observation(RunState.GONE), "so that the reconciler launches again"
        assert await executor.list_attempts() == [ATTEMPT]

    await backend.executor().ensure(launch())

    await until_log(executor, "waiting")
    assert [len(backend.cluster.store.list(kind)) for kind in ("jobs", "secrets", "pods")] == [1, 1, 1]


async def test_a_slow_api_and_two_control_planes_give_one_run(backend: KubernetesBackend) -> None:
    backend.cluster.api.latency_seconds = 0.1
    await asyncio.gather(*(backend.executor().ensure(launch()) for _ in range(3)))
    await until_log(backend.executor(), "waiting")
    assert [len(backend.cluster.store.list(kind)) for kind in ("jobs", "secrets", "pods")] == [1, 1, 1]


async def test_an_attempt_whose_job_is_being_deleted_is_not_launched(backend: KubernetesBackend) -> None:
    executor = backend.executor(IGNORE_TERM)
    await executor.ensure(launch())
    await until_log(executor, "deaf")
    removal = asyncio.create_task(executor.forget(ATTEMPT))
    await until_true(lambda: is_true(backend.cluster.api.count("delete", "jobs") == 1))

    with pytest.raises(UnavailableError, match="being deleted"):
        await backend.executor().ensure(launch())
    await removal


async def test_a_run_on_a_lost_node_is_unreachable_until_its_pod_has_failed(backend: KubernetesBackend) -> None:
    executor = backend.executor()
    await executor.ensure(launch())
    await until_log(executor, "waiting")

    backend.cluster.set_node("Unknown")
    assert await executor.observe(ATTEMPT) == Observation(RunState.UNREACHABLE)
    backend.cluster.evict("DeletionByTaintManager")
    assert await executor.observe(ATTEMPT) == Observation(RunState.UNREACHABLE), "deleted, and nobody heard of it"
    assert await executor.list_attempts() == [ATTEMPT]
    backend.cluster.remove_node()

    assert await until_ended(executor) == Observation(RunState.EXITED, 143)
    assert await backend.executor().observe(ATTEMPT) == Observation(RunState.EXITED, 143)


async def test_a_run_on_a_node_that_comes_back_is_found_as_it_is(backend: KubernetesBackend) -> None:
    executor = backend.executor()
    await executor.ensure(launch())
    await until_log(executor, "waiting")
    backend.cluster.set_node("Unknown")
    await backend.let_exit(ATTEMPT, 65)
    assert await executor.observe(ATTEMPT) == Observation(RunState.UNREACHABLE)

    backend.cluster.set_node("True")

    assert await until_ended(executor) == Observation(RunState.EXITED, 65)


async def test_a_pod_that_is_not_ready_on_a_node_that_reports_runs(backend: KubernetesBackend) -> None:
    executor = backend.executor()
    await executor.ensure(launch())
    await until_log(executor, "waiting")
    (pod,) = backend.cluster.store.list("pods")
    set_condition(pod, "Ready", "False")
    backend.cluster.store.put("pods", pod)

    assert await executor.observe(ATTEMPT) == Observation(RunState.RUNNING)
    assert backend.cluster.api.count("get", "nodes") == 1


async def test_the_exit_code_of_a_drained_run_outlives_its_pod(backend: KubernetesBackend) -> None:
    executor = backend.executor(YIELD)
    await executor.ensure(launch())
    await until_log(executor, "working")

    backend.cluster.evict("EvictionByEvictionAPI")

    assert await until_ended(executor) == Observation(RunState.EXITED, 75)
    await until_true(lambda: is_true(backend.cluster.store.list("pods") == []))
    assert await executor.observe(ATTEMPT) == Observation(RunState.EXITED, 75)


@pytest.mark.parametrize(("reason", "code"), [("OOMKilled", 71), ("Error", 137)])
async def test_a_run_that_takes_too_much_memory_is_told_from_other_kills(
    backend: KubernetesBackend, reason: str, code: int
) -> None:
    executor = backend.executor()
    await executor.ensure(launch())
    await until_log(executor, "waiting")
    (pod,) = backend.cluster.store.list("pods")

    backend.cluster.node.kill(pod["metadata"]["uid"], reason)

    assert await until_ended(executor) == Observation(RunState.EXITED, code)


async def test_a_command_that_the_image_lacks_ends_the_run(backend: KubernetesBackend) -> None:
    executor = KubernetesExecutor(("/none/python",), backend.settings, backend.pods)
    await executor.ensure(launch())
    assert await until_ended(executor) == Observation(RunState.EXITED, 128)


async def test_a_run_that_finds_no_room_is_pending_says_why_and_can_be_removed(backend: KubernetesBackend) -> None:
    backend.cluster.resources = {"nvidia.com/gpu": 1}
    executor = backend.executor(pods=replace(backend.pods, gpu_resource="nvidia.com/gpu"))
    await executor.ensure(launch("slot-0", "slot-1"))
    assert "Insufficient nvidia.com/gpu" in await until_log(executor, "Insufficient")
    assert await executor.observe(ATTEMPT) == Observation(RunState.PENDING)

    await executor.stop(ATTEMPT, grace_seconds=LIMIT_SECONDS)

    assert await executor.observe(ATTEMPT) == Observation(RunState.GONE)
    assert await executor.list_attempts() == []


async def test_a_queue_decides_when_a_run_starts_and_what_it_takes_back_is_not_started_again(
    backend: KubernetesBackend,
) -> None:
    executor = backend.executor(pods=replace(backend.pods, queue="research"))
    await executor.ensure(launch())
    assert await executor.observe(ATTEMPT) == Observation(RunState.PENDING)
    assert backend.cluster.store.list("pods") == []
    backend.cluster.suspend_jobs(suspend=False)
    await until_log(executor, "waiting")

    backend.cluster.suspend_jobs(suspend=True)

    assert await until_ended(executor) == Observation(RunState.EXITED, 143)
    backend.cluster.suspend_jobs(suspend=False)
    await until_true(lambda: is_true(backend.cluster.store.list("pods") == []))
    assert await executor.observe(ATTEMPT) == Observation(RunState.EXITED, 143)


async def test_a_stop_waits_for_news_and_lists_anew_when_the_server_has_forgotten_some(
    backend: KubernetesBackend,
) -> None:
    executor = backend.executor(IGNORE_TERM)
    await executor.ensure(launch())
    await until_log(executor, "deaf")
    before = backend.cluster.api.count("list", "pods")

    async def forget_much() -> None:
        while True:
            backend.cluster.store.create("pods", unrelated_pod())
            backend.cluster.store.compact()
            await asyncio.sleep(0.02)

    forgetting = asyncio.create_task(forget_much())
    await executor.stop(ATTEMPT, grace_seconds=1)
    forgetting.cancel()

    assert await executor.observe(ATTEMPT) == Observation(RunState.EXITED, 137)
    assert backend.cluster.api.count("list", "pods") > before + 3


async def test_a_stop_asks_nothing_while_there_is_no_news(backend: KubernetesBackend) -> None:
    executor = backend.executor(IGNORE_TERM)
    await executor.ensure(launch())
    await until_log(executor, "deaf")
    before = backend.cluster.api.count("list", "pods")

    await executor.stop(ATTEMPT, grace_seconds=1)

    assert backend.cluster.api.count("list", "pods") <= before + 4


async def test_without_an_api_nothing_is_launched_stopped_or_forgotten(backend: KubernetesBackend) -> None:
    executor = backend.executor()
    await backend.go_away()
    for call in (executor.ensure(launch()), executor.stop(ATTEMPT, 0), executor.forget(ATTEMPT)):
        with pytest.raises(UnavailableError, match="away"):
            await call
    assert await executor.read_log(ATTEMPT) == ""


async def test_one_look_answers_for_all_runs_but_never_that_there_is_none(backend: KubernetesBackend) -> None:
    names = [f"attempt-{letter}" for letter in "abcde"]
    await asyncio.gather(*(backend.executor().ensure(replace(launch(), attempt_id=name)) for name in names))
    executor = backend.executor(settings=replace(backend.settings, look_seconds=600))
    assert await executor.list_attempts() == names
    lists = backend.cluster.api.count("list", "pods")

    assert {(await executor.observe(name)).state for name in names} <= {RunState.PENDING, RunState.RUNNING}
    assert backend.cluster.api.count("list", "pods") == lists
    await backend.executor().ensure(launch())

    assert (await executor.observe(ATTEMPT)).state is not RunState.GONE
    assert backend.cluster.api.count("list", "pods") == lists + 1


async def test_where_looking_takes_long_it_is_done_less_often(backend: KubernetesBackend) -> None:
    executor = backend.executor(settings=replace(backend.settings, look_seconds=1))
    backend.cluster.api.latency_seconds = 0.6
    for _ in range(2):  # when the first has ended, its second is over
        await executor.list_attempts()
    assert backend.cluster.api.count("list", "jobs") == 1


async def test_the_role_allows_what_the_executor_does_and_nothing_else(backend: KubernetesBackend) -> None:
    executor = backend.executor()
    await executor.ensure(launch())
    await until_log(executor, "waiting")
    backend.cluster.set_node("Unknown")
    await executor.observe(ATTEMPT)
    backend.cluster.set_node("True")
    await executor.stop(ATTEMPT, 1)
    await executor.forget(ATTEMPT)
    assert backend.cluster.api.roles.used == backend.cluster.api.roles.allowed


async def test_the_cluster_of_these_tests_says_what_the_schemas_of_kubernetes_allow(backend: KubernetesBackend) -> None:
    executor = backend.executor(YIELD)
    await executor.ensure(launch())
    await until_log(executor, "working")
    backend.cluster.evict("EvictionByEvictionAPI")
    await until_ended(executor)
    seen = [change.object for change in backend.cluster.store.history()]
    assert {thing["kind"] for thing in seen} == {"Job", "Node", "Pod", "Secret"}
    assert {thing["status"]["phase"] for thing in seen if thing["kind"] == "Pod"} == {"Pending", "Running", "Failed"}
    for thing in seen:
        admit(thing)


async def test_the_cluster_gives_slots(backend: KubernetesBackend) -> None:
    assert await backend.executor().capabilities() == Inventory(("slot-0", "slot-1"))


async def is_true(value: bool) -> bool:
    """A condition that is known at once."""
    return value


def unrelated_pod() -> dict[str, object]:
    """A pod of somebody else."""
    return {"metadata": {"name": os.urandom(8).hex(), "ownerReferences": []}, "spec": {}, "status": {"phase": "Failed"}}
