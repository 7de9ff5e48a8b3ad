"""Owns the gRPC view of models, the twin of endpoints.py.

It must not know rules or SQL; service.py decides.
"""

from __future__ import annotations

from typing import Any

import grpc.aio

from tunesmith_proto.registry.v1 import models_pb2, models_pb2_grpc
from tunesmith_server.auth import Authenticator, authorization_of
from tunesmith_server.error_rendering import read_shape
from tunesmith_server.registry.imports import ImportsService
from tunesmith_server.registry.replicas import Serving
from tunesmith_server.registry.schemas import CreateModel
from tunesmith_server.registry.service import Model, RegistryService, imported_model

Context = grpc.aio.ServicerContext[Any, Any]


class ModelsServicer(models_pb2_grpc.ModelsServiceServicer):
    """ModelsService for API keys."""

    def __init__(self, service: RegistryService, imports: ImportsService, authenticator: Authenticator) -> None:
        self._service = service
        self._imports = imports
        self._authenticator = authenticator

    async def CreateModel(  # noqa: N802
        self, request: models_pb2.CreateModelRequest, context: Context
    ) -> models_pb2.CreateModelResponse:
        """Begins an import; `request_id` is what the Idempotency-Key is on REST."""
        principal = await self._authenticator.principal(authorization_of(context))
        sent = {"base_model": request.base_model, "file": request.file, "suffix": request.suffix or None}
        body = read_shape(CreateModel, sent)
        made = imported_model(await self._imports.create(principal, body, request.request_id or None))
        return models_pb2.CreateModelResponse(model=await self._one(made))

    async def ListModels(  # noqa: N802
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        """Every model that the project can prompt."""
        principal = await self._authenticator.principal(authorization_of(context))
        models = await self._service.list_models(principal)
        return models_pb2.ListModelsResponse(models=[_message(model) for model in models])

    async def GetModel(  # noqa: N802
        self, request: models_pb2.GetModelRequest, context: Context
    ) -> models_pb2.GetModelResponse:
        """One model."""
        principal = await self._authenticator.principal(authorization_of(context))
        model = await self._service.get_model(principal, request.id)
        return models_pb2.GetModelResponse(model=await self._one(model))

    async def DeleteModel(  # noqa: N802
        self, request: models_pb2.DeleteModelRequest, context: Context
    ) -> models_pb2.DeleteModelResponse:
        """Withdraws a tuned model."""
        principal = await self._authenticator.principal(authorization_of(context))
        await self._service.delete_model(principal, request.id)
        return models_pb2.DeleteModelResponse(id=request.id)

    async def _one(self, model: Model) -> models_pb2.Model:
        """A model with what is told of one alone."""
        message = _message(model)
        message.status = model.status
        if model.error is not None:
            message.error.CopyFrom(models_pb2.ModelError(**model.error.model_dump()))
        message.serving.CopyFrom(_serving(await self._service.replicas.of(model.revision)))
        return message


def _message(model: Model) -> models_pb2.Model:
    return models_pb2.Model(id=model.id, created=model.created, owned_by=model.owned_by)


def _serving(serving: Serving) -> models_pb2.Serving:
    rows = [
        models_pb2.ServingReplica(
            gateway=replica.gateway,
            engine=replica.engine,
            state=replica.state,
            reason=replica.reason or "",
            since=replica.since,
            in_flight=replica.in_flight,
        )
        for replica in serving.replicas
    ]
    return models_pb2.Serving(state=serving.state, reason=serving.reason or "", replicas=rows)
