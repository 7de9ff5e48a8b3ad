"""Owns the wire shapes of models: OpenAI's `model` object and its list.

It must not know where models are stored.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class ModelObject(BaseModel):
    """A model that can be prompted; `created` in Unix seconds."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Every model that the project can prompt."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class DeletedModel(BaseModel):
    """The answer to a delete."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
