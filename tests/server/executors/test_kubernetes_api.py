"""Who the control plane is to a cluster, and what it takes for an answer."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from kubernetes.aio.config import incluster_config

from tests.support.kubernetes_cluster import NAMESPACE, KubernetesCluster
from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors.kubernetes_api import KubernetesApi

PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
ALL = {"labelSelector": "app.kubernetes.io/name=tunesmith"}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[KubernetesCluster]:
    async with KubernetesCluster(tmp_path) as cluster:
        yield cluster


class Clock(datetime.datetime):
    """A time that tests set forward."""

    ahead = datetime.timedelta()

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
        """The time with what it was set forward."""
        return super().now(tz) + cls.ahead


async def test_a_pod_uses_its_service_account_and_reads_its_token_anew(
    cluster: KubernetesCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text(cluster.api.token)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(cluster.certificate))
    clock = SimpleNamespace(datetime=Clock, timedelta=datetime.timedelta)
    monkeypatch.setattr(incluster_config, "datetime", clock)
    api = KubernetesApi(None)
    assert (await api.call("GET", PODS, params=ALL)).object["items"] == []

    cluster.api.token = "another"
    token.write_text("another")
    monkeypatch.setattr(Clock, "ahead", datetime.timedelta(minutes=2))

    assert (await api.call("GET", PODS, params=ALL)).object["items"] == []


def test_outside_of_a_cluster_a_kubeconfig_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UnavailableError, match="TUNESMITH_KUBERNETES_KUBECONFIG"):
        KubernetesApi(None)


async def test_a_kubeconfig_whose_token_is_refused_is_read_again(cluster: KubernetesCluster) -> None:
    api = KubernetesApi(cluster.kubeconfig)
    await api.call("GET", PODS, params=ALL)
    old, cluster.api.token = cluster.api.token, "another"
    cluster.kubeconfig.write_text(cluster.kubeconfig.read_text().replace(old, "another"))
    with pytest.raises(UnavailableError, match="Unauthorized"):
        await api.call("GET", PODS, params=ALL)

    assert (await api.call("GET", PODS, params=ALL)).object["items"] == []


@pytest.mark.parametrize("content", ["", "{", "apiVersion: v1\nkind: Config\n"])
async def test_a_kubeconfig_that_cannot_be_used_says_so(tmp_path: Path, content: str) -> None:
    file = tmp_path / "kubeconfig"
    with pytest.raises(UnavailableError, match="does not tell"):
        await KubernetesApi(file).call("GET", PODS)
    file.write_text(content)
    with pytest.raises(UnavailableError, match="does not tell"):
        await KubernetesApi(file).call("GET", PODS)


async def test_a_server_with_another_certificate_is_not_talked_to(cluster: KubernetesCluster, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with KubernetesCluster(tmp_path / "other") as other:
        cluster.certificate.write_bytes(other.certificate.read_bytes())
        with pytest.raises(UnavailableError, match="certificate verify failed"):
            await KubernetesApi(cluster.kubeconfig).call("GET", PODS, params=ALL)
    assert cluster.api.requests == []


async def test_what_the_cluster_refuses_says_why(cluster: KubernetesCluster) -> None:
    with pytest.raises(UnavailableError, match='cannot list resource "secrets"'):
        await KubernetesApi(cluster.kubeconfig).call("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets", params=ALL)
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": {"backofLimit": 0}}
    jobs = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
    with pytest.raises(UnavailableError, match="Job is invalid"):
        await KubernetesApi(cluster.kubeconfig).call("POST", jobs, body=body)


async def test_a_change_is_waited_for_and_a_forgotten_version_is_not(cluster: KubernetesCluster) -> None:
    api = KubernetesApi(cluster.kubeconfig)
    version = (await api.call("GET", PODS, params=ALL)).object["metadata"]["resourceVersion"]
    assert not await api.wait_for_change(PODS, ALL, version, 1), "nothing has changed"
    labels = {"app.kubernetes.io/name": "tunesmith"}
    metadata = {"name": "x", "labels": labels, "ownerReferences": []}
    cluster.store.create("pods", {"metadata": metadata, "spec": {}, "status": {"phase": "Failed"}}, NAMESPACE)
    assert await api.wait_for_change(PODS, ALL, version, 600)

    cluster.store.compact()

    assert not await api.wait_for_change(PODS, ALL, version, 600)


async def test_of_a_long_log_the_end_is_kept(cluster: KubernetesCluster) -> None:
    metadata = {"name": "x", "labels": {}, "ownerReferences": []}
    cluster.store.create("pods", {"metadata": metadata, "spec": {}, "status": {"phase": "Failed"}}, NAMESPACE)
    cluster.api.read_log = lambda _pod: b"0123456789" * 100_000 + b"\nlast\n"
    wanted: dict[str, str | int] = {"container": "trainer", "tailLines": 10}
    log = await KubernetesApi(cluster.kubeconfig).tail(f"{PODS}/x/log", wanted, 100_000)
    assert (len(log), log[-9:]) == (100_000, b"789\nlast\n")
    assert await KubernetesApi(cluster.kubeconfig).tail(f"{PODS}/none/log", wanted, 100_000) == b""
