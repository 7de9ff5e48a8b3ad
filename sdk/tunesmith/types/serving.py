"""Owns the shapes of models and of the deployments that stand for them.
Must not know how they travel or what models answer.
"""

from __future__ import annotations

from pydantic import Field

from tunesmith.types.fine_tuning import JobError
from tunesmith.types.wire import Identified, WireModel


class ServingReplica(WireModel):
    """A model in one engine of a gateway; times are Unix seconds."""

    gateway: str
    engine: str
    state: str
    reason: str | None = None
    """Why it failed or is tried again."""
    since: int
    """Of its last change of state."""
    in_flight: int
    """Requests under way."""


class Serving(WireModel):
    """How far gateways are with a model: as far as the furthest replica."""

    state: str
    """`ready`, `draining`, `probing`, `loading`, `fetching`, `failed` or `not_loaded`."""
    reason: str | None = None
    """Why it failed or is tried again."""
    replicas: list[ServingReplica] = Field(default_factory=list)


class Model(Identified):
    """A base model or a tuned one."""

    object: str = "model"
    created: int = 0
    owned_by: str = ""
    status: str = "ready"
    """`ready`; of one that was uploaded also `importing` or `failed`. Lists hold models that are ready."""
    error: JobError | None = None
    """Why it failed."""
    serving: Serving | None = None
    """Whether gateways can answer with it by now, and why not; only in a model that was retrieved by its name."""


class DeploymentTarget(WireModel):
    """A model and its share of the requests; `state` says how far gateways are with it, where that is asked."""

    model: str
    weight: int
    state: str | None = None


class Deployment(WireModel):
    """A name that stands for models; times are Unix seconds."""

    name: str
    object: str = "deployment"
    created_at: int
    updated_at: int
    version: int
    """Grows with each change of the targets."""
    targets: list[DeploymentTarget]
    pinned: bool


class DeploymentVersion(WireModel):
    """What a deployment stood for from `created_at` (Unix seconds) until its next version."""

    version: int
    created_at: int
    targets: list[DeploymentTarget]


class DeploymentList(WireModel):
    """All deployments of a project."""

    data: list[Deployment]


class DeploymentVersions(WireModel):
    """Versions of a deployment, newest first."""

    data: list[DeploymentVersion]
    has_more: bool


class DeletedDeployment(WireModel):
    """The receipt of a deletion."""

    name: str
    deleted: bool
