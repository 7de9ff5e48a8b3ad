"""Owns the wire shapes of models: OpenAI's `model` object and its list, and what brings one from outside.

It must not know where models are stored.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunesmith_server.fine_tunes.schemas import JobError, Suffix

Status = Literal["ready", "importing", "failed"]


class CreateModel(BaseModel):
    """The body of POST /v1/models: what was tuned elsewhere, as a file with purpose `model`, and from what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_model: Annotated[str, Field(min_length=1, max_length=512)]
    file: Annotated[str, Field(min_length=1, max_length=200)]
    suffix: Suffix | None = None


class ModelObject(BaseModel):
    """A model that can be prompted; `created` in Unix seconds."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ServingReplica(BaseModel):
    """The model in one engine; `since` is the Unix second of the last change of state."""

    model_config = ConfigDict(from_attributes=True)

    gateway: str
    engine: str
    state: str
    reason: str | None
    since: int
    in_flight: int


class Serving(BaseModel):
    """How far gateways are with the model: `state` is that of the furthest replica.

    `reason` is why it failed or is tried again.
    """

    model_config = ConfigDict(from_attributes=True)

    state: Literal["ready", "draining", "probing", "loading", "fetching", "failed", "not_loaded"]
    reason: str | None
    replicas: list[ServingReplica]


class ServedModel(ModelObject):
    """One model and, our addition to OpenAI's shape, whether it is there and can be prompted at once.

    `error` tells why one from outside did not become a model.
    """

    status: Status
    error: JobError | None
    serving: Serving


class ModelList(BaseModel):
    """Every model that the project can prompt."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class DeletedModel(BaseModel):
    """The answer to a delete."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
