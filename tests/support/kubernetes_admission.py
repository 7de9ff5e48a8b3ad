"""Owns what an API server refuses to store or to do: what breaks the published schemas, pod security, or the roles.

It must not know how requests arrive.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.support.kubernetes_store import Object


class RefusedError(Exception):
    """Why something is not done, and the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Roles:
    """What the manifests allow: rules of a Role for the namespace, of a ClusterRole for what is in none."""

    def __init__(self, manifest: Path) -> None:
        documents = list(yaml.safe_load_all(manifest.read_text()))
        self.allowed = {
            (group, resource, verb)
            for document in documents
            if document["kind"] in ("Role", "ClusterRole")
            for rule in document["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
            # A ClusterRole would give what is in namespaces in all of them: nothing of ours may be allowed so.
            if (document["kind"] == "ClusterRole") == (resource == "nodes")
        }
        self.used: set[tuple[str, str, str]] = set()

    def check(self, group: str, resource: str, verb: str) -> None:
        """Remembers what is asked for; raises RefusedError."""
        self.used.add((group, resource, verb))
        if (group, resource, verb) not in self.allowed:
            raise RefusedError(403, f'cannot {verb} resource "{resource}" in API group "{group}"')


def admit(thing: Object) -> None:
    """Raises RefusedError for an object that breaks its schema, or whose pods break the profile "restricted"."""
    try:
        kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        raise RefusedError(422, f"{thing['kind']} is invalid: {error.message}") from error
    # Kubernetes itself refuses the pod and only warns about the Job; a test is to see it where it happens.
    if thing["kind"] == "Job" and (broken := list(_breaches(thing["spec"]["template"]["spec"]))):
        raise RefusedError(403, f'violates PodSecurity "restricted:latest": {", ".join(broken)}')


def _breaches(pod: dict[str, Any]) -> Iterator[str]:
    """The profile's rules that a pod breaks (kubernetes.io, Pod Security Standards)."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield name
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}
    for volume in pod.get("volumes", []):
        if not set(volume) - {"name"} <= allowed | {"secret"}:
            yield f"volume {volume['name']}"
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        security = pod.get("securityContext", {}) | container.get("securityContext", {})
        required = {
            "runAsNonRoot": security.get("runAsNonRoot") is True and security.get("runAsUser") != 0,
            "allowPrivilegeEscalation": security.get("allowPrivilegeEscalation") is False,
            "privileged": not security.get("privileged"),
            "capabilities": security.get("capabilities") == {"drop": ["ALL"]},
            "seccompProfile": security.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
        }
        yield from (name for name, kept in required.items() if not kept)
