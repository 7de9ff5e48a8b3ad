"""Owns the gRPC twin of the capture routes.

It must not know rules or SQL; the services decide.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import grpc.aio

from tunesmith_proto.captures.v1 import captures_pb2 as pb
from tunesmith_proto.captures.v1 import captures_pb2_grpc
from tunesmith_server.auth import Authenticator, Principal, authorization_of
from tunesmith_server.captures.datasets import DatasetsService
from tunesmith_server.captures.repository import CaptureFilter
from tunesmith_server.captures.schemas import CreateDataset
from tunesmith_server.captures.service import Capture, CapturesService
from tunesmith_server.error_rendering import read_shape
from tunesmith_server.files.servicer import file_message
from tunesmith_server.metadata import read_metadata

Context = grpc.aio.ServicerContext[Any, Any]


class CapturesServicer(captures_pb2_grpc.CapturesServiceServicer):
    """Implements tunesmith.captures.v1.CapturesService."""

    def __init__(self, captures: CapturesService, datasets: DatasetsService, authenticator: Authenticator) -> None:
        self._captures = captures
        self._datasets = datasets
        self._authenticator = authenticator

    async def ListCaptures(  # noqa: N802
        self, request: pb.ListCapturesRequest, context: Context
    ) -> pb.ListCapturesResponse:
        """Lists captures."""
        principal = await self._principal(context)
        page = await self._captures.list(
            principal,
            CaptureFilter(request.model, read_metadata(request.metadata)),
            limit=request.limit or 20,
            after=request.after or None,
            order=request.order or "asc",
        )
        return pb.ListCapturesResponse(captures=[_message(each) for each in page.captures], has_more=page.has_more)

    async def GetCapture(  # noqa: N802
        self, request: pb.GetCaptureRequest, context: Context
    ) -> pb.GetCaptureResponse:
        """One capture."""
        return pb.GetCaptureResponse(
            capture=_message(await self._captures.get(await self._principal(context), request.id))
        )

    async def UpdateCapture(  # noqa: N802
        self, request: pb.UpdateCaptureRequest, context: Context
    ) -> pb.UpdateCaptureResponse:
        """Gives a capture other metadata."""
        principal = await self._principal(context)
        changed = await self._captures.update(principal, request.id, read_metadata(request.metadata))
        return pb.UpdateCaptureResponse(capture=_message(changed))

    async def DeleteCapture(  # noqa: N802
        self, request: pb.DeleteCaptureRequest, context: Context
    ) -> pb.DeleteCaptureResponse:
        """Deletes a capture."""
        await self._captures.delete(await self._principal(context), request.id)
        return pb.DeleteCaptureResponse(id=request.id)

    async def CreateDataset(  # noqa: N802
        self, request: pb.CreateDatasetRequest, context: Context
    ) -> pb.CreateDatasetResponse:
        """Makes a file of captures."""
        principal = await self._principal(context)
        sent = {field.name: value for field, value in request.ListFields()} | {"metadata": dict(request.metadata)}
        file, counts = await self._datasets.create(principal, read_shape(CreateDataset, sent))
        return pb.CreateDatasetResponse(file=file_message(file), **asdict(counts))

    async def _principal(self, context: Context) -> Principal:
        return await self._authenticator.principal(authorization_of(context))


def _message(capture: Capture) -> pb.Capture:
    row, content = capture.row, capture.content
    return pb.Capture(
        id=row.id,
        model=row.model,
        created=row.created_at,
        request_id=row.request_id,
        metadata=row.user_metadata,
        finish_reason=row.finish_reason,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        messages=json.dumps(content.messages),
        tools=json.dumps(content.tools) if content.tools else "",
        answer=json.dumps(content.answer),
    )
