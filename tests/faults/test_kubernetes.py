"""A cluster runs the trainers: deaths of control plane, run and node on the way of one job lose nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import pytest

from tests.faults.toy_platform import ToyPlatform
from tests.support.kubernetes_cluster import KubernetesCluster
from tests.support.live_server import wait_until

HELD = 4
"""The step before which runs wait; a checkpoint was made after the second."""
UNREACHABLE_LIMIT = 2
"""Seconds; the node of a doubted run is asked about once in each."""

T = TypeVar("T")


class ClusterThread:
    """A cluster on an event loop of its own, beside a test that waits."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> ClusterThread:
        self._thread.start()
        self.cluster = self.run(self._made)
        self.run(self.cluster.__aenter__)
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.cluster.__aexit__)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call gives, made where the cluster is."""

        async def made() -> T:
            return await call()

        future: Future[T] = asyncio.run_coroutine_threadsafe(made(), self._loop)
        return future.result(60)

    def ask(self, question: Callable[[], T]) -> T:
        """The same of a question, or a change, that does not wait."""

        async def asked() -> T:
            return question()

        return self.run(asked)

    async def _made(self) -> KubernetesCluster:
        return KubernetesCluster(self._folder)


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[ClusterThread]:
    """The cluster."""
    (tmp_path / "cluster").mkdir()
    with ClusterThread(tmp_path / "cluster") as beside:
        yield beside


@pytest.fixture
def platform(tmp_path: Path, beside: ClusterThread) -> Iterator[ToyPlatform]:
    """A control plane whose runs are pods; they share a cache, by which the test holds them."""
    platform = ToyPlatform(
        tmp_path,
        executor="kubernetes",
        kubernetes_kubeconfig=str(beside.cluster.kubeconfig),
        kubernetes_cache_claim="cache",
        unreachable_limit_seconds=str(UNREACHABLE_LIMIT),
    )
    beside.cluster.node.claims = tmp_path
    python = tmp_path / "image"
    python.mkdir()
    (python / "python3").symlink_to(tmp_path / "fake-trainer-python")
    beside.cluster.node.path = f"{python}:/usr/bin:/bin"
    yield platform
    platform.close()


def test_a_job_on_a_cluster_survives_what_can_die(platform: ToyPlatform, beside: ClusterThread) -> None:
    platform.start()
    with platform.held(HELD):
        job_id = platform.create("job")
        platform.wait_for(job_id, "Checkpoint created at step 2")

        platform.server.kill()
        (uid,) = running(beside)
        beside.ask(lambda: beside.cluster.node.kill(uid))
        platform.start()
        wait_until(lambda: starts(platform, job_id) == 2, 60, "the run that died was not replaced")

        # The node is cut off from the cluster, but its run from nothing: it stays the only one.
        beside.ask(lambda: beside.cluster.set_node("Unknown"))
        api = beside.cluster.api
        wait_until(lambda: api.count("get", "nodes") > UNREACHABLE_LIMIT + 1, 60, "the node was not asked about")
    wait_until(lambda: platform.server.job(job_id)["status"] == "succeeded", 60, "the run was not left alone")
    beside.ask(lambda: beside.cluster.set_node("True"))
    platform.settle()

    assert [line.split(" from ")[1] for line in platform.controls.notes(job_id)] == ["0", "2"]
    platform.check()
    wait_until(lambda: not left(beside), 60, "something of the runs is left in the cluster")


def starts(platform: ToyPlatform, job_id: str) -> int:
    """How many training runs of the job there have been."""
    return len(platform.controls.notes(job_id))


def running(beside: ClusterThread) -> list[str]:
    """Pods whose processes live."""
    pods = beside.ask(lambda: beside.cluster.store.list("pods"))
    return [pod["metadata"]["uid"] for pod in pods if pod["status"]["phase"] == "Running"]


def left(beside: ClusterThread) -> list[str]:
    """What there is in the namespace."""
    list_all = beside.cluster.store.list
    things = beside.ask(lambda: [thing for kind in ("jobs", "pods", "secrets") for thing in list_all(kind)])
    return [thing["metadata"]["name"] for thing in things]
