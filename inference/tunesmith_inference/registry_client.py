"""Owns the talk with the control plane: the followed list of models, files of revisions, who a key belongs to, reports.

It must not know engines or HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field

import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tunesmith_inference.auth import KeyRejected, KeysUnavailable, Principal
from tunesmith_inference.captures import Capture
from tunesmith_inference.errors import GatewayError
from tunesmith_inference.ledger import Batch, ReportFailed
from tunesmith_inference.placement import Peer
from tunesmith_inference.replicas import Aged, ReplicaState, ReportLost
from tunesmith_inference.router import Deployment, Kind, Names, Servable
from tunesmith_proto.registry.v1 import serving_pb2, serving_pb2_grpc

_log = logging.getLogger(__name__)

_KINDS = {
    serving_pb2.SERVABLE_KIND_BASE: Kind.BASE,
    serving_pb2.SERVABLE_KIND_ADAPTER: Kind.ADAPTER,
    serving_pb2.SERVABLE_KIND_FULL: Kind.FULL,
}
_STATES = {
    ReplicaState.FETCHING: serving_pb2.REPLICA_STATE_FETCHING,
    ReplicaState.LOADING: serving_pb2.REPLICA_STATE_LOADING,
    ReplicaState.PROBING: serving_pb2.REPLICA_STATE_PROBING,
    ReplicaState.READY: serving_pb2.REPLICA_STATE_READY,
    ReplicaState.DRAINING: serving_pb2.REPLICA_STATE_DRAINING,
    ReplicaState.FAILED: serving_pb2.REPLICA_STATE_FAILED,
}
_REFUSALS = {grpc.StatusCode.UNAUTHENTICATED: 401, grpc.StatusCode.PERMISSION_DENIED: 403}
_CALL_SECONDS = 10.0
_REPORT_SECONDS = 60.0
_MAX_BACKOFF_SECONDS = 5.0
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Finds a control plane whose machine vanished; servers refuse pings more frequent than five minutes.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a revision: relative path, size in bytes, SHA-256 in hex, and a URL to GET it from."""

    path: str
    size: int
    sha256: str
    url: str


class RevisionUnavailable(Exception):
    """The control plane could not be asked, or does not know the revision."""


class RegistryClient:
    """Follows the control plane's names. `names` is the newest complete list; it outlives the control plane."""

    def __init__(self, channel: grpc.aio.Channel, service_token: str) -> None:
        self._stub = serving_pb2_grpc.ServingServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {service_token}"),)
        self._gateway_id = secrets.token_hex(16)
        self._complete = asyncio.Event()
        self.names = Names({}, {})

    async def known(self) -> Names:
        """The names, as soon as the list has been complete once."""
        await self._complete.wait()
        return self.names

    async def current(self) -> Names:
        """The names as the control plane has them now, or the followed list when it cannot be asked.

        A name may be in use before the change has arrived here: a client that sees its job succeed asks at once.
        """
        gathered = _Gathered()
        changes = self._stub.WatchModels(
            serving_pb2.WatchModelsRequest(), metadata=self._metadata, timeout=_CALL_SECONDS
        )
        try:
            async for response in changes:
                if not _apply(response, gathered):
                    changes.cancel()
                    return gathered.names()
        except grpc.aio.AioRpcError as error:
            _log.warning("the list of models could not be asked for: %s", error.code().name)
        return self.names

    async def follow(self, changed: Callable[[], None]) -> None:
        """Keeps `names` up to date and calls `changed` after each change, for ever."""
        backoff = 0.1
        while True:
            try:
                async for _ in self._changes():
                    backoff = 0.1
                    changed()
            except grpc.aio.AioRpcError as error:
                _log.warning("the list of models is not followed: %s", error.code().name)
            backoff = min(backoff * 2, _MAX_BACKOFF_SECONDS)
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311  # spreads reconnects, no secret

    async def revision_files(self, revision: str) -> list[RemoteFile]:
        """The files of a revision with URLs minted now; raises RevisionUnavailable."""
        request = serving_pb2.GetRevisionRequest(revision=revision)
        try:
            answer = await self._stub.GetRevision(request, metadata=self._metadata, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise RevisionUnavailable(f"the control plane answered {error.code().name}") from error
        return [RemoteFile(file.path, file.size, file.sha256, file.url) for file in answer.files]

    async def authenticate(self, api_key: str) -> Principal:
        """Who the key belongs to; raises KeyRejected or KeysUnavailable."""
        request = serving_pb2.AuthenticateRequest(api_key=api_key.encode("utf-8", "replace").decode())
        try:
            answer = await self._stub.Authenticate(request, metadata=self._metadata, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSALS:
                raise KeyRejected(_refusal(error)) from None
            raise KeysUnavailable(error.code().name) from error
        return Principal(
            answer.project_id,
            answer.key_id,
            answer.requests_per_minute if answer.HasField("requests_per_minute") else None,
            answer.tokens_per_minute if answer.HasField("tokens_per_minute") else None,
            answer.capture,
        )

    async def report_usage(self, batch: Batch) -> None:
        """Delivers what keys have used; raises ReportFailed when nobody can tell whether it has arrived."""
        lines = [
            serving_pb2.UsageLine(
                project_id=use.project_id,
                key_id=use.key_id,
                model=use.model,
                hour=use.hour,
                requests=total.requests,
                input_tokens=total.input_tokens,
                output_tokens=total.output_tokens,
            )
            for use, total in batch.sums.items()
        ]
        request = serving_pb2.ReportUsageRequest(gateway_id=self._gateway_id, sequence=batch.sequence, lines=lines)
        try:
            await self._stub.ReportUsage(request, metadata=self._metadata, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise ReportFailed(error.code().name) from error

    async def report_replicas(self, replicas: Sequence[Aged], presence: Peer | None) -> list[Peer]:
        """Says what this gateway's engines hold, and what others are to know; gives these. Raises ReportLost."""
        rows = [
            serving_pb2.Replica(
                revision=aged.replica.revision,
                engine=aged.replica.engine,
                state=_STATES[aged.replica.state],
                reason=aged.replica.reason,
                since=aged.since,
                in_flight=aged.replica.in_flight,
            )
            for aged in replicas
        ]
        request = serving_pb2.ReportReplicasRequest(
            gateway_id=self._gateway_id, replicas=rows, presence=None if presence is None else _presence(presence)
        )
        try:
            answer = await self._stub.ReportReplicas(request, metadata=self._metadata, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise ReportLost(error.code().name) from error
        return [_peer(peer) for peer in answer.peers]

    async def report_captures(self, captures: Sequence[Capture]) -> int:
        """Delivers captures and tells how many were refused for good; raises ReportFailed as `report_usage` does."""
        request = serving_pb2.ReportCapturesRequest(captures=[serving_pb2.Capture(**asdict(each)) for each in captures])
        try:
            answer = await self._stub.ReportCaptures(request, metadata=self._metadata, timeout=_REPORT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise ReportFailed(error.code().name) from error
        refused: int = answer.refused
        return refused

    async def _changes(self) -> AsyncIterator[None]:
        """One connection's changes, applied. The old list stays until the new one is complete."""
        gathered = _Gathered()
        complete = False
        async for response in self._stub.WatchModels(serving_pb2.WatchModelsRequest(), metadata=self._metadata):
            complete = not _apply(response, gathered) or complete
            if complete:
                self.names = gathered.names()
                self._complete.set()
                yield


@asynccontextmanager
async def connect(address: str, service_token: str) -> AsyncIterator[RegistryClient]:
    """A client over one channel to `address` (host:port)."""
    async with grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS) as channel:
        yield RegistryClient(channel, service_token)


def _refusal(error: grpc.aio.AioRpcError) -> GatewayError | None:
    """The control plane's own words to the sender of the key; None when it gave none."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    if status is None or not any(detail.Unpack(info) for detail in status.details):
        return None
    return GatewayError(_REFUSALS[error.code()], info.reason, status.message)


@dataclass(slots=True)
class _Gathered:
    """What one connection has said so far."""

    models: dict[str, Servable] = field(default_factory=dict)
    deployments: dict[tuple[str, str], Deployment] = field(default_factory=dict)

    def names(self) -> Names:
        return Names(dict(self.models), dict(self.deployments))


def _apply(response: serving_pb2.WatchModelsResponse, gathered: _Gathered) -> bool:
    """Makes one change in `gathered`; returns False for the mark that the list is complete."""
    change = response.WhichOneof("change")
    if change == "upserted" and response.upserted.kind in _KINDS:
        gathered.models[response.upserted.name] = _servable(response.upserted)
    elif change == "deleted":
        gathered.models.pop(response.deleted, None)
    elif change == "deployment_upserted":
        deployment = _deployment(response.deployment_upserted)
        gathered.deployments[deployment.project_id, deployment.name] = deployment
    elif change == "deployment_deleted":
        ended = response.deployment_deleted
        gathered.deployments.pop((ended.project_id, ended.name), None)
    return change != "snapshot_complete"


def _presence(peer: Peer) -> serving_pb2.Presence:
    return serving_pb2.Presence(
        name=peer.name,
        address=peer.address,
        in_flight=peer.in_flight,
        has_room=peer.has_room,
        on_demand=sorted(peer.on_demand),
    )


def _peer(peer: serving_pb2.Peer) -> Peer:
    return Peer(
        name=peer.presence.name,
        address=peer.presence.address,
        in_flight=peer.presence.in_flight,
        has_room=peer.presence.has_room,
        ready=frozenset(peer.ready),
        coming=frozenset(peer.coming),
        on_demand=frozenset(peer.presence.on_demand),
    )


def _deployment(deployment: serving_pb2.Deployment) -> Deployment:
    targets = tuple((target.model, target.weight) for target in deployment.targets)
    return Deployment(deployment.project_id, deployment.name, deployment.version, targets, deployment.pinned)


def _servable(model: serving_pb2.ServableModel) -> Servable:
    return Servable(
        name=model.name,
        project_id=model.project_id,
        kind=_KINDS[model.kind],
        revision=model.revision,
        base_model_id=model.base_model_id,
        base_revision=model.base_revision,
        created=model.created,
        checkpoint=model.checkpoint,
        shared_with=frozenset(model.shared_with_project_ids),
    )
