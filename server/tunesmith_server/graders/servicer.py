"""Owns the gRPC twin of the grader routes.

It must not know rules; service.py decides. What a grading model is asked goes out with the caller's own key.
"""

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from tunesmith_proto.graders.v1 import graders_pb2 as pb
from tunesmith_proto.graders.v1 import graders_pb2_grpc
from tunesmith_server.auth import Authenticator, authorization_of
from tunesmith_server.error_rendering import read_shape
from tunesmith_server.graders.schemas import RunGrader, ValidateGrader
from tunesmith_server.graders.service import GradersService
from tunesmith_server.inference_proxy import InferenceProxy
from tunesmith_server.structs import plain_object

Context = grpc.aio.ServicerContext[Any, Any]


class GradersServicer(graders_pb2_grpc.GradersServiceServicer):
    """Implements tunesmith.graders.v1.GradersService."""

    def __init__(self, service: GradersService, proxy: InferenceProxy, authenticator: Authenticator) -> None:
        self._service = service
        self._proxy = proxy
        self._authenticator = authenticator

    async def ValidateGrader(  # noqa: N802
        self, request: pb.ValidateGraderRequest, context: Context
    ) -> pb.ValidateGraderResponse:
        """Checks a grader."""
        await self._authenticator.principal(authorization_of(context))
        validated = await self._service.validate(read_shape(ValidateGrader, _sent(request, "grader")))
        return pb.ValidateGraderResponse(grader=ParseDict(validated.grader, Struct()))

    async def RunGrader(  # noqa: N802
        self, request: pb.RunGraderRequest, context: Context
    ) -> pb.RunGraderResponse:
        """Tries a grader on one sample."""
        authorization = authorization_of(context)
        await self._authenticator.principal(authorization)
        body = read_shape(RunGrader, _sent(request, "grader", "item") | {"model_sample": request.model_sample})
        result = await self._service.run(body, self._proxy.chat_for(authorization))
        return ParseDict(result.model_dump(), pb.RunGraderResponse())


def _sent(request: Any, *names: str) -> dict[str, Any]:
    return {name: plain_object(getattr(request, name)) for name in names if request.HasField(name)}
