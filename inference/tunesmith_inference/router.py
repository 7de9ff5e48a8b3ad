"""Owns the way from a model name to what serves it: pure, over a snapshot of the registry.

It must not know engines, the network or time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tunesmith_inference.errors import GatewayError, model_not_found


class Kind(StrEnum):
    """How a model is served: by the base engine, by an adapter in it, or by an engine of its own."""

    BASE = "base"
    ADAPTER = "adapter"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Servable:
    """One model name and what it points at. Revisions are SHA-256 in hex; `project_id` "" means everybody's."""

    name: str
    project_id: str
    kind: Kind
    revision: str
    base_model_id: str
    base_revision: str
    created: int
    checkpoint: bool
    shared_with: frozenset[str] = frozenset()
    """Other projects that may use it."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A name of a project's own, and what it stands for in this version: models with their share of the requests."""

    project_id: str
    name: str
    version: int
    targets: tuple[tuple[str, int], ...]
    pinned: bool


@dataclass(frozen=True, slots=True)
class Names:
    """All that can be asked for: models by name, deployments by project and name."""

    models: Mapping[str, Servable]
    deployments: Mapping[tuple[str, str], Deployment]

    def behind(self, deployment: Deployment) -> list[tuple[Servable, int]]:
        """The models that a deployment stands for, with their weights; without those that are gone."""
        found = []
        for model, weight in deployment.targets:
            with contextlib.suppress(GatewayError):
                found.append((route(self.models, model, deployment.project_id), weight))
        return found


def route(models: Mapping[str, Servable], name: str, project_id: str) -> Servable:
    """What `name` means for `project_id`; unknown names and other projects' raise 404 model_not_found alike."""
    servable = models.get(name)
    if servable is None or not (servable.project_id in ("", project_id) or project_id in servable.shared_with):
        raise model_not_found(name)
    return servable
