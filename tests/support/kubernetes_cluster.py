"""Owns a cluster of one node: the controllers that make, count and remove pods, and the API in front of them.

It behaves as Kubernetes 1.31 and newer where the executor can tell; what it leaves out stands in deploy/README.md.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import trustme
import yaml

from tests.architecture.source_tree import ROOT
from tests.support.asgi_server import serving
from tests.support.kubernetes_admission import Roles
from tests.support.kubernetes_api import ApiServer
from tests.support.kubernetes_node import Node, set_condition
from tests.support.kubernetes_store import Object, Store, now
from tests.support.ports import free_ports

NAMESPACE = "tunesmith"
RBAC = ROOT / "deploy" / "kubernetes" / "base" / "executor-rbac.yaml"
_TRACKING = "batch.kubernetes.io/job-tracking"
_ENDED = ("Succeeded", "Failed")


class KubernetesCluster:
    """Use it as an async context: it serves until the end, unless it goes away in between."""

    def __init__(self, folder: Path) -> None:
        self.store = Store()
        self.node = Node(self.store, folder / "pods", "node-1")
        self.api = ApiServer(self.store, Roles(RBAC), self._read_log, token=secrets.token_hex(16))
        self.kubeconfig = folder / "kubeconfig"
        self.certificate = folder / "ca.pem"
        self.resources = {"nvidia.com/gpu": 8}
        (self.port,) = free_ports(1)
        self._key = folder / "server.pem"
        self._serving = AsyncExitStack()
        self._controllers: asyncio.Task[None] | None = None

    async def __aenter__(self) -> KubernetesCluster:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.certificate)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(self._key)
        self._write_kubeconfig()
        self.store.create("nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.node.name}})
        self.set_node("True")
        self._controllers = asyncio.create_task(self._control())
        await self.come_back()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go_away()
        await self.node.stop()
        assert self._controllers is not None
        self._controllers.cancel()
        (ended,) = await asyncio.gather(self._controllers, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended

    async def come_back(self) -> None:
        """Serves the API, on the same port as before."""
        await self._serving.enter_async_context(serving(self.api.app(), self.port, self._key))

    async def go_away(self) -> None:
        """Ends the API server; runs go on."""
        await self._serving.aclose()

    def set_node(self, ready: str) -> None:
        """`True`: the node reports. `Unknown`: it does not any more, which costs its pods their readiness."""
        node = self.store.get("nodes", self.node.name)
        assert node is not None
        set_condition(node, "Ready", ready)
        self.store.put("nodes", node)
        if ready == "True":
            self.node.connected.set()
        else:
            self.node.connected.clear()
        for pod in self._living():
            if pod["spec"].get("nodeName"):
                set_condition(pod, "Ready", ready if pod["status"].get("phase") == "Running" else "False")
                self.store.put("pods", pod)

    def evict(self, reason: str) -> None:
        """Deletes all pods as a disruption, of which a lost node does not hear."""
        self._delete(self._living(), reason)

    def remove_node(self) -> None:
        """Takes the node out of the cluster; its pods fail in their absence."""
        node = self.store.get("nodes", self.node.name)
        assert node is not None
        self.store.remove("nodes", node)
        for pod in self._living():
            set_condition(pod, "DisruptionTarget", "True", "DeletionByPodGC")
            pod["status"]["phase"] = "Failed"
            pod["metadata"]["deletionTimestamp"] = now()
            self.store.put("pods", pod)

    def suspend_jobs(self, *, suspend: bool) -> None:
        """What a queue does to its Jobs: takes them in, or back."""
        for job in self.store.list("jobs"):
            job["spec"]["suspend"] = suspend
            self.store.put("jobs", job)

    def _delete(self, pods: list[Object], disruption: str) -> None:
        for pod in pods:
            if "deletionTimestamp" not in pod["metadata"]:
                if disruption:
                    set_condition(pod, "DisruptionTarget", "True", disruption)
                grace = pod["spec"]["terminationGracePeriodSeconds"]
                pod["metadata"] |= {"deletionTimestamp": now(), "deletionGracePeriodSeconds": grace}
                self.store.put("pods", pod)

    def _living(self) -> list[Object]:
        return [pod for pod in self.store.list("pods") if pod["status"].get("phase") not in _ENDED]

    def _read_log(self, pod: Object) -> bytes:
        return self.node.log(pod["metadata"]["uid"]).read_bytes()

    def _write_kubeconfig(self) -> None:
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": str(self.certificate)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": self.api.token}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(content))

    async def _control(self) -> None:
        """Each write wakes all controllers; what they have nothing to do about, they leave as it is."""
        while True:
            news = self.store.news
            for job in self.store.list("jobs"):
                self._sync_job(job)
            for pod in self.store.list("pods"):
                self._sync_pod(pod)
            self.node.sync()
            self._collect_garbage()
            await news.wait()

    def _sync_job(self, job: Object) -> None:
        pods = self._owned("pods", job)
        for pod in pods:
            if pod["status"].get("phase") in _ENDED and _TRACKING in pod["metadata"].get("finalizers", []):
                self._count(job, pod)
                return
        active = [pod for pod in pods if pod["status"].get("phase") not in _ENDED]
        decided = {each["type"]: each for each in job.get("status", {}).get("conditions", [])}
        for interim, final in (("FailureTarget", "Failed"), ("SuccessCriteriaMet", "Complete")):
            if interim in decided and final not in decided and not active:
                set_condition(job, final, "True", decided[interim]["reason"], decided[interim]["message"])
                self.store.put("jobs", job)
                return
        if decided or "deletionTimestamp" in job["metadata"]:
            return
        if job["spec"]["suspend"]:
            self._delete(active, "")
        elif not active:
            self._make_pod(job)

    def _count(self, job: Object, pod: Object) -> None:
        """Writes the end of a pod into its Job first, then lets the pod go."""
        if pod["status"]["phase"] == "Succeeded":
            set_condition(job, "SuccessCriteriaMet", "True", "CompletionsReached")
        else:
            message = failed_by_policy(job["spec"]["podFailurePolicy"]["rules"], pod)
            reason = "PodFailurePolicy" if message else "BackoffLimitExceeded"
            set_condition(
                job, "FailureTarget", "True", reason, message or "Job has reached the specified backoff limit"
            )
        self.store.put("jobs", job)
        pod["metadata"]["finalizers"].remove(_TRACKING)
        self.store.put("pods", pod)

    def _make_pod(self, job: Object) -> None:
        template = job["spec"]["template"]
        name = job["metadata"]["name"]
        owner = _reference(job) | {"controller": True, "blockOwnerDeletion": True}
        metadata = {
            "name": f"{name}-{secrets.token_hex(3)}",
            "labels": template["metadata"]["labels"] | {"batch.kubernetes.io/job-name": name},
            "finalizers": [_TRACKING],
            "ownerReferences": [owner],
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        pod["status"] = {"phase": "Pending"}
        self.store.create("pods", pod, job["metadata"]["namespace"])

    def _sync_pod(self, pod: Object) -> None:
        metadata, status = pod["metadata"], pod["status"]
        ended = status.get("phase") in _ENDED
        if "deletionTimestamp" in metadata and ended and not metadata["finalizers"]:
            self.store.remove("pods", pod)
        elif "nodeName" in pod["spec"] or ended:
            return
        elif "deletionTimestamp" in metadata:
            status["phase"] = "Failed"
            self.store.put("pods", pod)
        elif missing := self._missing(pod["spec"]["containers"][0]["resources"].get("limits", {})):
            message = f"0/1 nodes are available: 1 Insufficient {missing}."
            if not status.get("conditions"):
                set_condition(pod, "PodScheduled", "False", "Unschedulable", message)
                self.store.put("pods", pod)
        else:
            pod["spec"]["nodeName"] = self.node.name
            self.store.put("pods", pod)

    def _missing(self, limits: Mapping[str, str]) -> str:
        return next((name for name, count in self.resources.items() if int(limits.get(name, "0")) > count), "")

    def _collect_garbage(self) -> None:
        """Foreground deletion: what a Job owns goes first."""
        jobs = self.store.list("jobs")
        for job in jobs:
            pods = self._owned("pods", job)
            if "deletionTimestamp" not in job["metadata"]:
                continue
            self._delete(pods, "")
            if not pods:
                self.store.remove("jobs", job)
        living = {job["metadata"]["uid"] for job in jobs}
        for secret in self.store.list("secrets"):
            if not {each["uid"] for each in secret["metadata"]["ownerReferences"]} & living:
                self.store.remove("secrets", secret)

    def _owned(self, resource: str, owner: Object) -> list[Object]:
        uid = owner["metadata"]["uid"]
        return [
            each
            for each in self.store.list(resource)
            if uid in {reference["uid"] for reference in each["metadata"]["ownerReferences"]}
        ]


def failed_by_policy(rules: list[Object], pod: Object) -> str:
    """What Kubernetes writes into a Job when a rule says that it fails; empty when none does."""
    name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    ends = [each["state"].get("terminated") for each in pod["status"].get("containerStatuses", [])]
    held = {(each["type"], each["status"]) for each in pod["status"].get("conditions", [])}
    for index, rule in enumerate(rules):
        codes = rule.get("onExitCodes", {}).get("values", [])
        code = ends[0]["exitCode"] if ends and ends[0] else 0
        if "onExitCodes" in rule and code and code not in codes:
            return (
                f"Container trainer for pod {name} failed with exit code {code} matching FailJob rule at index {index}"
            )
        for condition in rule.get("onPodConditions", []):
            if (condition["type"], condition["status"]) in held:
                return f"Pod {name} has condition {condition['type']} matching FailJob rule at index {index}"
    return ""


def _reference(owner: Object) -> Object:
    metadata = owner["metadata"]
    return {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
