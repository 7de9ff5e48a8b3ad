"""Owns the gRPC view of a project's usage, the twin of /v1/usage.

It must not know rules or SQL; usage.py decides.
"""

from __future__ import annotations

from typing import Any

import grpc.aio

from tunesmith_proto.projects.v1 import usage_pb2, usage_pb2_grpc
from tunesmith_server.auth import Authenticator, authorization_of
from tunesmith_server.projects.usage import UsageService
from tunesmith_server.projects.usage_messages import bucket_messages, usage_query
from tunesmith_server.projects.usage_repository import UsageFilter

Context = grpc.aio.ServicerContext[Any, Any]


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """UsageService, for the caller's project."""

    def __init__(self, service: UsageService, authenticator: Authenticator) -> None:
        self._service = service
        self._authenticator = authenticator

    async def GetUsage(  # noqa: N802
        self, request: usage_pb2.GetUsageRequest, context: Context
    ) -> usage_pb2.GetUsageResponse:
        """Sums per key, model and kind."""
        principal = await self._authenticator.principal(authorization_of(context))
        which = UsageFilter(project_ids=(principal.project_id,))
        page = await self._service.read(usage_query(request.range, ("kind", "api_key_id", "model"), which))
        return usage_pb2.GetUsageResponse(buckets=bucket_messages(page), next_page=page.next_page or "")
