"""Owns what the tests read of a cluster's manifests: an overlay as `kubectl kustomize` renders it, object by object."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
OVERLAYS = tuple(sorted(path.name for path in (KUBERNETES / "overlays").iterdir()))
WORKLOADS = ("Deployment", "StatefulSet", "Job")
COMPONENT = "app.kubernetes.io/component"
RUN_LABELS = {"app.kubernetes.io/name": "tunesmith", COMPONENT: "run"}
"""Of the pods that the control plane starts itself; no manifest has them."""

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """The objects of one overlay."""

    name: str
    objects: tuple[Manifest, ...]

    def of_kind(self, *kinds: str) -> list[Manifest]:
        """Every object of these kinds."""
        return [thing for thing in self.objects if thing["kind"] in kinds]

    def named(self, kind: str, name: str) -> Manifest:
        """The object; StopIteration where there is none."""
        return next(thing for thing in self.of_kind(kind) if thing["metadata"]["name"] == name)

    def pods(self) -> Iterator[tuple[str, Manifest]]:
        """The pod template of each workload, with the workload's name."""
        for workload in self.of_kind(*WORKLOADS):
            yield workload["metadata"]["name"], workload["spec"]["template"]

    def containers(self) -> Iterator[tuple[str, Manifest]]:
        """Every container, those that run first included, with a name for messages."""
        for name, pod in self.pods():
            for kind in ("initContainers", "containers"):
                for container in pod["spec"].get(kind, ()):
                    yield f"{self.name}/{name}/{container['name']}", container

    def environment(self, component: str) -> dict[str, str]:
        """The settings of a component's container; `(secret)` stands for what comes from a Secret."""
        container = next(
            pod["spec"]["containers"][0] for _, pod in self.pods() if labels_of(pod).get(COMPONENT) == component
        )
        environment: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            environment |= self.named("ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container.get("env", ()):
            # What the cluster knows of the pod is there for other variables to name.
            if "fieldRef" not in variable.get("valueFrom", ()):
                environment[variable["name"]] = variable.get("value", "(secret)")
        return environment


@cache
def rendered(overlay: str) -> Rendered:
    """The overlay as a cluster would get it; fails with what kubectl says."""
    # Out of the development environment: a Debian system's own is too old to be a measure.
    kubectl = Path(sys.executable).with_name("kubectl")
    command = [str(kubectl), "kustomize", str(KUBERNETES / "overlays" / overlay)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "kubectl warns"
    return Rendered(overlay, tuple(yaml.safe_load_all(result.stdout)))


def labels_of(pod: Manifest) -> dict[str, str]:
    """The labels of a pod template."""
    labels: dict[str, str] = pod["metadata"]["labels"]
    return labels


def selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches everything."""
    wanted = selector.get("matchLabels", {}).items()
    return all(labels.get(key) == value for key, value in wanted) and all(
        _meets(expression, labels) for expression in selector.get("matchExpressions", ())
    )


def _meets(expression: Manifest, labels: Mapping[str, str]) -> bool:
    assert expression["operator"] == "In", "the tests know no other operator"
    return labels.get(expression["key"]) in expression["values"]
