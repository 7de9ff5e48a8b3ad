"""Owns the objects that a run is made of: a Job, held back until the Secret with its token is there. Pure.

It must not know how they get to a cluster, nor what becomes of them there (kubernetes_status.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith_server.executors.base import Launch, require_attempt_id

ATTEMPT = "tunesmith.attempt"
INSTALLATION = "tunesmith.installation"
RELEASED = "tunesmith.released"
"""Annotation of a Job whose token is in place; without it the Job is a launch that was cut off."""
CONTAINER = "trainer"
QUEUE = "kueue.x-k8s.io/queue-name"

_USER_ID = 65532
"""Nobody's on the node; the image need not know it."""
_RUN_FOLDER = "/tunesmith"
_WORK_FOLDER = f"{_RUN_FOLDER}/work"
_TOKEN_FOLDER = f"{_RUN_FOLDER}/attempt"
_TOKEN_FILE = "token"  # noqa: S105 (a file name)
_CACHE_FOLDER = "/cache"
_SHARED_MEMORY = "1Gi"  # what ranks on several GPUs exchange
_TEMPORARY = "1Gi"
_GRACE_SECONDS = 30
"""What a drained node leaves a run; one that is stopped by us gets what its stop says."""
_KEPT_SECONDS = 24 * 3600
"""How long an ended Job and its log stay for a control plane that is away; it removes them itself otherwise."""


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What the pods of runs are made with; quantities in Kubernetes' notation, empty where nothing is asked for."""

    installation: str
    """Tells this installation's runs from others' in the same namespace."""
    image: str
    image_pull_secrets: Sequence[str] = ()
    service_account: str = ""
    """Whose pods these are; its token is not given to runs."""
    gpu_resource: str = ""
    """The resource that one device is; empty: runs ask for none."""
    gpu: str = ""
    """What such a device is, as nvidia-smi lists its name and MiB: preflights get none and plan for it."""
    cpu: str = ""
    """Asked for, not a bound: a run may use what else is free."""
    memory: str = ""
    """Asked for and the bound."""
    ephemeral_storage: str = ""
    """Asked for and the bound of work folder and log."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    priority_class: str = ""
    queue: str = ""
    """A LocalQueue of Kueue's, which then decides when runs start."""
    cache_claim: str = ""
    """A PersistentVolumeClaim that keeps base models between runs; empty: each run fetches its own."""


def job_name(attempt_id: str) -> str:
    """The name under which an attempt is found again: names know no capitals, so the label has the last word."""
    return f"tunesmith-{require_attempt_id(attempt_id).lower().replace('_', '-')}"


def job(launch: Launch, command: Sequence[str], secret_name: str, settings: PodSettings) -> dict[str, Any]:
    """A Job that runs one pod once, suspended. Whatever ends the pod ends the Job: only the control plane retries."""
    labels = {
        "app.kubernetes.io/name": "tunesmith",
        "app.kubernetes.io/component": "run",
        ATTEMPT: launch.attempt_id,
        INSTALLATION: settings.installation,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job_name(launch.attempt_id), "labels": labels},
        "spec": {
            "suspend": True,
            "parallelism": 1,
            "completions": 1,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _FAILURE_RULES},
            "ttlSecondsAfterFinished": _KEPT_SECONDS,
            "template": {"metadata": {"labels": labels}, "spec": _pod(launch, command, secret_name, settings)},
        },
    }


def token_secret(owner: Mapping[str, Any], token: str) -> dict[str, Any]:
    """The attempt's token under the name that the Job's pod waits for; it goes when the Job goes."""
    metadata = owner["metadata"]
    volumes = owner["spec"]["template"]["spec"]["volumes"]
    (name,) = (volume["secret"]["secretName"] for volume in volumes if "secret" in volume)
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": metadata["labels"], "ownerReferences": [reference]},
        "type": "Opaque",
        "immutable": True,
        "stringData": {_TOKEN_FILE: token},
    }


def release(settings: PodSettings) -> dict[str, Any]:
    """The change that lets a Job run: at once, or when its queue says so. Made twice it changes nothing more."""
    annotations = {RELEASED: "true"}
    if settings.queue:
        return {"metadata": {"labels": {QUEUE: settings.queue}, "annotations": annotations}}
    return {"metadata": {"annotations": annotations}, "spec": {"suspend": False}}


# The first rule also writes the exit code into the Job, where it stays when a deleted pod is gone.
_FAILURE_RULES = [
    {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [0]}},
    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
]


def _pod(launch: Launch, command: Sequence[str], secret_name: str, settings: PodSettings) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER_ID,
            "runAsGroup": _USER_ID,
            "fsGroup": _USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(launch, command, settings)],
        "volumes": _volumes(secret_name, settings),
    }
    optional = {
        "serviceAccountName": settings.service_account,
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
        "nodeSelector": dict(settings.node_selector),
        "tolerations": [dict(toleration) for toleration in settings.tolerations],
        "priorityClassName": settings.priority_class,
    }
    return pod | {name: value for name, value in optional.items() if value}


def _container(launch: Launch, command: Sequence[str], settings: PodSettings) -> dict[str, Any]:
    environment = {
        **launch.settings,
        "TUNESMITH_ATTEMPT_TOKEN_FILE": f"{_TOKEN_FOLDER}/{_TOKEN_FILE}",
        "TUNESMITH_CACHE_DIR": _CACHE_FOLDER,
        "TUNESMITH_WORK_DIR": _WORK_FOLDER,
        "HOME": _WORK_FOLDER,
        "USER": "tunesmith",  # libraries ask for it where the id has no name
    }
    if settings.gpu and not launch.devices:
        environment["TUNESMITH_GPU"] = settings.gpu
    return {
        "name": CONTAINER,
        "image": settings.image,
        "command": list(command),
        "workingDir": _WORK_FOLDER,
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": _resources(len(launch.devices), settings),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "work", "mountPath": _WORK_FOLDER},
            {"name": "token", "mountPath": _TOKEN_FOLDER, "readOnly": True},
            {"name": "cache", "mountPath": _CACHE_FOLDER},
            {"name": "temporary", "mountPath": "/tmp"},  # noqa: S108 (the container's own)
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 (the container's own)
        ],
    }


def _resources(devices: int, settings: PodSettings) -> dict[str, Any]:
    """Devices are countable and not shared: Kubernetes takes what is asked for as the bound, and wants them equal."""
    bounds = {"memory": settings.memory, "ephemeral-storage": settings.ephemeral_storage}
    if settings.gpu_resource and devices:
        bounds[settings.gpu_resource] = str(devices)
    limits = {name: quantity for name, quantity in bounds.items() if quantity}
    return {"requests": limits | ({"cpu": settings.cpu} if settings.cpu else {}), "limits": limits}


def _volumes(secret_name: str, settings: PodSettings) -> list[dict[str, Any]]:
    cache = {"persistentVolumeClaim": {"claimName": settings.cache_claim}} if settings.cache_claim else {"emptyDir": {}}
    return [
        {"name": "work", "emptyDir": {}},
        # Readable by the run's own group as well: the owner of such files is root, and the run is not.
        {"name": "token", "secret": {"secretName": secret_name, "defaultMode": 0o400}},
        {"name": "cache", **cache},
        {"name": "temporary", "emptyDir": {"sizeLimit": _TEMPORARY}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}},
    ]
