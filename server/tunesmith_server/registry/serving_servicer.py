"""Owns what gateways ask and report over gRPC: the feed of models, files, whose a key is, usage, replicas, captures.

It must not know rules or SQL; service.py, changes.py, auth.py and captures/ decide.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import grpc.aio

from tunesmith_proto.registry.v1 import serving_pb2, serving_pb2_grpc
from tunesmith_server.auth import Authenticator, authorization_of
from tunesmith_server.captures.reports import read_capture
from tunesmith_server.captures.service import CapturesService
from tunesmith_server.projects.usage import UsageService
from tunesmith_server.projects.usage_repository import UsageLine
from tunesmith_server.registry.changes import Change, Deleted, Deployed, Servable, Undeployed
from tunesmith_server.registry.replicas import Peer, Presence, Replica, ReplicaState
from tunesmith_server.registry.service import RegistryService

Context = grpc.aio.ServicerContext[Any, Any]

_KINDS = {
    "base": serving_pb2.SERVABLE_KIND_BASE,
    "adapter": serving_pb2.SERVABLE_KIND_ADAPTER,
    "full": serving_pb2.SERVABLE_KIND_FULL,
}
_STATES = {
    serving_pb2.REPLICA_STATE_FETCHING: ReplicaState.FETCHING,
    serving_pb2.REPLICA_STATE_LOADING: ReplicaState.LOADING,
    serving_pb2.REPLICA_STATE_PROBING: ReplicaState.PROBING,
    serving_pb2.REPLICA_STATE_READY: ReplicaState.READY,
    serving_pb2.REPLICA_STATE_DRAINING: ReplicaState.DRAINING,
    serving_pb2.REPLICA_STATE_FAILED: ReplicaState.FAILED,
}


class ServingServicer(serving_pb2_grpc.ServingServiceServicer):
    """ServingService, for gateways that present the service token."""

    def __init__(
        self, service: RegistryService, authenticator: Authenticator, usage: UsageService, captures: CapturesService
    ) -> None:
        self._service = service
        self._authenticator = authenticator
        self._usage = usage
        self._captures = captures

    async def WatchModels(  # noqa: N802
        self, request: serving_pb2.WatchModelsRequest, context: Context
    ) -> AsyncIterator[serving_pb2.WatchModelsResponse]:
        """Every model, `snapshot_complete`, then changes until the server stops."""
        self._authenticator.service(authorization_of(context))
        async for change in self._service.changes.follow():
            yield _response(change)

    async def GetRevision(  # noqa: N802
        self, request: serving_pb2.GetRevisionRequest, context: Context
    ) -> serving_pb2.GetRevisionResponse:
        """The files of a tuned or base revision, with URLs minted now."""
        self._authenticator.service(authorization_of(context))
        files = await self._service.revision_files(request.revision)
        return serving_pb2.GetRevisionResponse(
            files=[
                serving_pb2.RevisionFile(path=file.path, size=file.size, sha256=file.sha256, url=file.url)
                for file in files
            ]
        )

    async def Authenticate(  # noqa: N802
        self, request: serving_pb2.AuthenticateRequest, context: Context
    ) -> serving_pb2.AuthenticateResponse:
        """Whose an API key is and how much it may use; refuses one that is nobody's or may not infer."""
        self._authenticator.service(authorization_of(context))
        principal = await self._authenticator.inference_principal(request.api_key)
        return serving_pb2.AuthenticateResponse(
            project_id=principal.project_id,
            key_id=principal.key_id,
            requests_per_minute=principal.limits.requests_per_minute,
            tokens_per_minute=principal.limits.tokens_per_minute,
            capture=principal.capture,
        )

    async def ReportUsage(  # noqa: N802
        self, request: serving_pb2.ReportUsageRequest, context: Context
    ) -> serving_pb2.ReportUsageResponse:
        """Takes what a gateway metered; the same batch again changes nothing."""
        self._authenticator.service(authorization_of(context))
        lines = [
            UsageLine(
                line.project_id,
                line.key_id,
                line.model,
                "inference",
                line.hour,
                line.requests,
                line.input_tokens,
                line.output_tokens,
            )
            for line in request.lines
        ]
        await self._usage.take_report(request.gateway_id, request.sequence, lines)
        return serving_pb2.ReportUsageResponse()

    async def ReportReplicas(  # noqa: N802
        self, request: serving_pb2.ReportReplicasRequest, context: Context
    ) -> serving_pb2.ReportReplicasResponse:
        """Takes what a gateway's engines hold, in the place of what it said before, and tells it of the others."""
        self._authenticator.service(authorization_of(context))
        replicas = [
            Replica(
                revision=replica.revision,
                gateway=request.gateway_id,
                engine=replica.engine,
                state=_STATES[replica.state],
                reason=replica.reason or None,
                since=replica.since,
                in_flight=replica.in_flight,
            )
            for replica in request.replicas
            if replica.state in _STATES
        ]
        presence = _presence(request.presence) if request.HasField("presence") else None
        peers = await self._service.replicas.take(request.gateway_id, replicas, presence)
        return serving_pb2.ReportReplicasResponse(peers=[_peer(peer) for peer in peers])

    async def ReportCaptures(  # noqa: N802
        self, request: serving_pb2.ReportCapturesRequest, context: Context
    ) -> serving_pb2.ReportCapturesResponse:
        """Stores captures; those that are stored already stay as they are."""
        self._authenticator.service(authorization_of(context))
        captures = [capture for sent in request.captures if (capture := read_capture(sent)) is not None]
        refused = len(request.captures) - len(captures) + await self._captures.take(captures)
        return serving_pb2.ReportCapturesResponse(refused=refused)


def _presence(sent: serving_pb2.Presence) -> Presence:
    return Presence(sent.name, sent.address, sent.in_flight, sent.has_room, list(sent.on_demand))


def _peer(peer: Peer) -> serving_pb2.Peer:
    presence = serving_pb2.Presence(**asdict(peer.presence))
    return serving_pb2.Peer(presence=presence, ready=peer.ready, coming=peer.coming)


def _response(change: Change) -> serving_pb2.WatchModelsResponse:
    if isinstance(change, Servable):
        return serving_pb2.WatchModelsResponse(
            upserted=serving_pb2.ServableModel(
                name=change.name,
                project_id=change.project_id or "",
                kind=_KINDS[change.kind],
                revision=change.revision,
                base_model_id=change.base_model_id,
                base_revision=change.base_revision,
                created=change.created,
                checkpoint=change.checkpoint,
                shared_with_project_ids=change.shared_with,
            )
        )
    if isinstance(change, Deleted):
        return serving_pb2.WatchModelsResponse(deleted=change.name)
    if isinstance(change, Deployed):
        return serving_pb2.WatchModelsResponse(
            deployment_upserted=serving_pb2.Deployment(
                name=change.name,
                project_id=change.project_id,
                targets=[serving_pb2.DeploymentTarget(model=model, weight=weight) for model, weight in change.targets],
                version=change.version,
                pinned=change.pinned,
            )
        )
    if isinstance(change, Undeployed):
        ended = serving_pb2.DeletedDeployment(project_id=change.project_id, name=change.name)
        return serving_pb2.WatchModelsResponse(deployment_deleted=ended)
    return serving_pb2.WatchModelsResponse(snapshot_complete=True)
