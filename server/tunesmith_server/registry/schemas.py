"""Owns the wire shapes of models: OpenAI's `model` object and its list.

It must not know where models are stored.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


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
    """One model and, our addition to OpenAI's shape, whether it can be prompted at once."""

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
