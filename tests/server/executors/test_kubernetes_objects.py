"""The bodies that reach the API: recorded from the wire, held against files that were read by people."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.kubernetes_admission import RefusedError, admit
from tests.support.kubernetes_cluster import NAMESPACE, KubernetesCluster
from tunesmith_server.executors.base import Launch
from tunesmith_server.executors.kubernetes import KubernetesExecutor, KubernetesSettings
from tunesmith_server.executors.kubernetes_objects import PodSettings, job, job_name

BODIES = Path(__file__).parent / "kubernetes_bodies"
PLAIN = PodSettings(installation="0f1e2d3c4b5a6978", image="tunesmith-trainer")
EVERYTHING = PodSettings(
    installation="0f1e2d3c4b5a6978",
    image="registry.example.com/tunesmith-trainer:1.4",
    image_pull_secrets=("registry",),
    service_account="runs",
    gpu_resource="nvidia.com/gpu",
    gpu="NVIDIA H200, 143771",
    cpu="8",
    memory="64Gi",
    ephemeral_storage="200Gi",
    node_selector={"nvidia.com/gpu.product": "NVIDIA-H200"},
    tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
    priority_class="training",
    queue="research",
    cache_claim="base-models",
)
PREFLIGHT = Launch("attempt-Aa0", "ftjob-1.attempt-Aa0.1.f00d", "tunesmith:8001")
TRAINING = Launch("attempt-Aa0", "ftjob-1.attempt-Aa0.1.f00d", "tunesmith:8001", ("slot-0", "slot-1"))
COMMAND = ("python3", "-m", "tunesmith_trainer", "run")


@pytest.mark.parametrize(
    ("name", "launch", "pods"), [("plain", PREFLIGHT, PLAIN), ("everything", TRAINING, EVERYTHING)]
)
async def test_what_is_sent_is_what_was_reviewed(tmp_path: Path, name: str, launch: Launch, pods: PodSettings) -> None:
    async with KubernetesCluster(tmp_path) as cluster:
        cluster.resources = {"cpu": -1}  # no room: nothing is to run here
        settings = KubernetesSettings(NAMESPACE, cluster.kubeconfig, slots=2)
        executor = KubernetesExecutor(COMMAND, settings, pods)
        await executor.ensure(launch)
        await executor.forget(launch.attempt_id)
        sent = [{"verb": each.verb, "path": each.path, "body": each.body} for each in cluster.api.requests if each.body]
    assert reviewable(sent) == (BODIES / f"{name}.yaml").read_text()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("securityContext", {}),
        ("containers.0.securityContext.capabilities", {"drop": ["NET_RAW"]}),
        ("containers.0.securityContext.privileged", True),
        ("hostNetwork", True),
        ("volumes.0", {"name": "work", "hostPath": {"path": "/"}}),
    ],
)
async def test_what_the_profile_restricted_forbids_would_have_been_refused(where: str, value: object) -> None:
    broken = yaml.safe_load((BODIES / "plain.yaml").read_text())[0]["body"]
    admit(broken)
    *way, last = where.split(".")
    inside: Any = broken["spec"]["template"]["spec"]
    for step in way:
        inside = inside[int(step) if step.isdigit() else step]
    inside[int(last) if last.isdigit() else last] = value
    with pytest.raises(RefusedError, match="restricted"):
        admit(broken)


def test_only_a_preflight_is_told_which_gpu_it_does_not_have() -> None:
    for launch, told in ((PREFLIGHT, True), (TRAINING, False)):
        container = job(launch, COMMAND, "secret", EVERYTHING)["spec"]["template"]["spec"]["containers"][0]
        assert ({"name": "TUNESMITH_GPU", "value": "NVIDIA H200, 143771"} in container["env"]) is told
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) is not told


def test_names_of_attempts_become_names_of_objects() -> None:
    assert job_name("attempt-Ab_9") == "tunesmith-attempt-ab-9"


def reviewable(sent: list[dict[str, Any]]) -> str:
    """As YAML, with what differs each time named instead."""
    text = yaml.safe_dump(sent, sort_keys=False, width=120)
    text = re.sub(r"(tunesmith-attempt-aa0)-[0-9a-f]{8}", r"\1-SUFFIX", text)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "UID", text)
    return re.sub(r"(/pods/\S+)-[0-9a-f]{6}", r"\1-SUFFIX", text)
