"""Owns the shapes of models and of the deployments that stand for them.
Must not know how they travel or what models answer.
"""

from __future__ import annotations

from tunesmith.types.fine_tuning import JobError
from tunesmith.types.wire import Identified, WireModel


class Model(Identified):
    """A base model or a tuned one."""

    object: str = "model"
    created: int = 0
    owned_by: str = ""
    status: str = "ready"
    """`ready`; of one that was uploaded also `importing` or `failed`. Lists hold models that are ready."""
    error: JobError | None = None
    """Why it failed."""


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
