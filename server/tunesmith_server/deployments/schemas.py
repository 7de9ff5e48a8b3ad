"""Owns the REST shapes of deployments.

It must not know rows. Times are Unix seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""No colon and no slash, so that it is never taken for a tuned model's name."""

MAX_WEIGHT = 1000


class Target(BaseModel):
    """A model and its share of the requests, of the sum of all weights; with 0 it is kept loaded and gets none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=500)]
    weight: Annotated[int, Field(ge=0, le=MAX_WEIGHT, strict=True)] = 1


Targets = Annotated[list[Target], Field(min_length=1, max_length=10)]


class CreateDeployment(BaseModel):
    """The body of POST /v1/deployments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    targets: Targets
    pinned: Annotated[bool, Field(strict=True)] = False


class UpdateDeployment(BaseModel):
    """The body of POST /v1/deployments/{name}; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    targets: Targets | None = None
    pinned: Annotated[bool, Field(strict=True)] | None = None


class RollBack(BaseModel):
    """The body of POST /v1/deployments/{name}/rollback; without `version` the one before the present one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[int, Field(ge=1, le=2**53, strict=True)] | None = None


class ServedTarget(BaseModel):
    """A target and how far gateways are with it, as `serving.state` of the model."""

    model: str
    weight: int
    state: str


class DeploymentObject(BaseModel):
    """A deployment; `version` grows with each change of its targets."""

    name: str
    object: Literal["deployment"] = "deployment"
    created_at: int
    updated_at: int
    version: int
    targets: list[ServedTarget]
    pinned: bool


class DeploymentList(BaseModel):
    """The project's deployments, by name."""

    object: Literal["list"] = "list"
    data: list[DeploymentObject]


class VersionObject(BaseModel):
    """What a deployment stood for from `created_at` until its next version."""

    object: Literal["deployment.version"] = "deployment.version"
    version: int
    created_at: int
    targets: list[Target]


class VersionPage(BaseModel):
    """Versions of a deployment, newest first."""

    object: Literal["list"] = "list"
    data: list[VersionObject]
    has_more: bool


class DeletedDeployment(BaseModel):
    """What is left of a deleted deployment."""

    name: str
    object: Literal["deployment.deleted"] = "deployment.deleted"
    deleted: Literal[True] = True
