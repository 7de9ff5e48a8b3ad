"""Owns the wire shapes of integrations: the experiment trackers that a job names, wandb as OpenAI has it.

It must not know which trackers this installation can feed.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=200)]


class Wandb(BaseModel):
    """Where Weights & Biases shall keep the metrics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: Name
    name: Annotated[str, Field(max_length=200)] | None = None
    """Of the run; the job's id by default."""
    entity: Annotated[str, Field(max_length=200)] | None = None
    tags: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=50)] | None = None


class Mlflow(BaseModel):
    """Where MLflow shall keep the metrics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: Name
    """Made where there is none of this name."""
    run_name: Annotated[str, Field(max_length=200)] | None = None
    """The job's id by default."""


class WandbIntegration(BaseModel):
    """Weights & Biases follows the job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["wandb"]
    wandb: Wandb


class MlflowIntegration(BaseModel):
    """MLflow follows the job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["mlflow"]
    mlflow: Mlflow


Integration = Annotated[WandbIntegration | MlflowIntegration, Field(discriminator="type")]
