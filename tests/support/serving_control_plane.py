"""Owns a control plane for gateways under test: ServingService over real gRPC, and the files of revisions over HTTP.

It must not know the gateway's inside. Everything it answers is set by the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.asgi_server import serving
from tests.support.ports import free_port
from tunesmith_proto.registry.v1 import serving_pb2, serving_pb2_grpc

SERVICE_TOKEN = "service-token"
Context = grpc.aio.ServicerContext[Any, Any]


class ServingControlPlane(serving_pb2_grpc.ServingServiceServicer):
    """`models`, `revisions` (revision → file name → bytes) and `keys` (API key → project) are what it knows.

    `limits` (API key → requests_per_minute, tokens_per_minute) are what keys may use, `reports` what gateways
    reported of use, `replicas` and `presence` what one said last of its engines and itself, `peers` what it is told of
    others, and `captures` what came of the keys that are `capturing`.
    """

    def __init__(self) -> None:
        self.models: dict[str, serving_pb2.ServableModel] = {}
        self.deployments: dict[tuple[str, str], serving_pb2.Deployment] = {}
        self.revisions: dict[str, dict[str, bytes]] = {}
        self.keys: dict[str, str] = {}
        self.limits: dict[str, dict[str, int]] = {}
        self.without_scope: set[str] = set()
        self.capturing: set[str] = set()
        self.captures: list[serving_pb2.Capture] = []
        self.reports: list[serving_pb2.ReportUsageRequest] = []
        self.replicas: list[serving_pb2.Replica] = []
        self.presence: serving_pb2.Presence | None = None
        self.peers: list[serving_pb2.Peer] = []
        self.downloads = 0
        self.authentications = 0
        self.announced: dict[str, serving_pb2.RevisionFile] = {}
        self.address = f"127.0.0.1:{free_port()}"
        self._watchers: list[asyncio.Queue[serving_pb2.WatchModelsResponse]] = []
        self._files_url = ""

    def upsert(self, model: serving_pb2.ServableModel) -> None:
        """Adds or changes a model and tells every gateway."""
        self.models[model.name] = model
        self._tell(serving_pb2.WatchModelsResponse(upserted=model))

    def delete(self, name: str) -> None:
        """Removes a model and tells every gateway."""
        del self.models[name]
        self._tell(serving_pb2.WatchModelsResponse(deleted=name))

    def deploy(self, name: str, *targets: tuple[str, int], pinned: bool = False, project_id: str = "p1") -> None:
        """Makes the name stand for these models, as its next version, and tells every gateway."""
        before = self.deployments.get((project_id, name))
        deployment = serving_pb2.Deployment(
            name=name,
            project_id=project_id,
            targets=[serving_pb2.DeploymentTarget(model=model, weight=weight) for model, weight in targets],
            version=1 if before is None else before.version + 1,
            pinned=pinned,
        )
        self.deployments[project_id, name] = deployment
        self._tell(serving_pb2.WatchModelsResponse(deployment_upserted=deployment))

    def undeploy(self, name: str, project_id: str = "p1") -> None:
        """Ends the name and tells every gateway."""
        del self.deployments[project_id, name]
        ended = serving_pb2.DeletedDeployment(project_id=project_id, name=name)
        self._tell(serving_pb2.WatchModelsResponse(deployment_deleted=ended))

    def add_revision(self, files: dict[str, bytes]) -> str:
        """Stores a revision's files and returns its id."""
        digest = hashlib.sha256()
        for name in sorted(files):
            digest.update(name.encode() + b"\0" + files[name])
        self.revisions[digest.hexdigest()] = files
        return digest.hexdigest()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ServingControlPlane]:
        """Serves gRPC at `address` inside the block; may be entered again, like a restart."""
        async with self._file_server():
            self._server = grpc.aio.server()
            serving_pb2_grpc.add_ServingServiceServicer_to_server(self, self._server)
            self._server.add_insecure_port(self.address)
            await self._server.start()
            try:
                yield self
            finally:
                await self.stop()

    async def stop(self) -> None:
        """Ends gRPC, as a crash would."""
        await self._server.stop(None)
        self._watchers.clear()

    async def WatchModels(  # noqa: N802
        self, request: serving_pb2.WatchModelsRequest, context: Context
    ) -> AsyncIterator[serving_pb2.WatchModelsResponse]:
        """Every model, `snapshot_complete`, then changes."""
        await _check_token(context)
        changes: asyncio.Queue[serving_pb2.WatchModelsResponse] = asyncio.Queue()
        self._watchers.append(changes)
        for model in list(self.models.values()):
            yield serving_pb2.WatchModelsResponse(upserted=model)
        for deployment in list(self.deployments.values()):
            yield serving_pb2.WatchModelsResponse(deployment_upserted=deployment)
        yield serving_pb2.WatchModelsResponse(snapshot_complete=True)
        while True:
            yield await changes.get()

    async def GetRevision(  # noqa: N802
        self, request: serving_pb2.GetRevisionRequest, context: Context
    ) -> serving_pb2.GetRevisionResponse:
        """The files of a revision; `announced` overrides what is said about one."""
        await _check_token(context)
        files = self.revisions.get(request.revision)
        if files is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such revision")
            raise AssertionError
        return serving_pb2.GetRevisionResponse(
            files=[
                self.announced.get(
                    name,
                    serving_pb2.RevisionFile(
                        path=name,
                        size=len(content),
                        sha256=hashlib.sha256(content).hexdigest(),
                        url=f"{self._files_url}/{request.revision}/{name}",
                    ),
                )
                for name, content in files.items()
            ]
        )

    async def Authenticate(  # noqa: N802
        self, request: serving_pb2.AuthenticateRequest, context: Context
    ) -> serving_pb2.AuthenticateResponse:
        """The project of a key."""
        await _check_token(context)
        self.authentications += 1
        if request.api_key in self.without_scope:
            await _refuse(context, "missing_scope", "This key lacks the scope inference.")
        project = self.keys.get(request.api_key)
        if project is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such key")
            raise AssertionError
        return serving_pb2.AuthenticateResponse(
            project_id=project,
            key_id=f"key-{project}",
            capture=request.api_key in self.capturing,
            **self.limits.get(request.api_key, {}),
        )

    async def ReportUsage(  # noqa: N802
        self, request: serving_pb2.ReportUsageRequest, context: Context
    ) -> serving_pb2.ReportUsageResponse:
        """Keeps the report, once if it comes again."""
        await _check_token(context)
        if request not in self.reports:
            self.reports.append(request)
        return serving_pb2.ReportUsageResponse()

    async def ReportReplicas(  # noqa: N802
        self, request: serving_pb2.ReportReplicasRequest, context: Context
    ) -> serving_pb2.ReportReplicasResponse:
        """Keeps the last report."""
        await _check_token(context)
        self.replicas = list(request.replicas)
        self.presence = request.presence if request.HasField("presence") else None
        return serving_pb2.ReportReplicasResponse(peers=self.peers)

    async def ReportCaptures(  # noqa: N802
        self, request: serving_pb2.ReportCapturesRequest, context: Context
    ) -> serving_pb2.ReportCapturesResponse:
        """Keeps the captures."""
        await _check_token(context)
        self.captures += request.captures
        return serving_pb2.ReportCapturesResponse()

    def _tell(self, change: serving_pb2.WatchModelsResponse) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(change)

    @contextlib.asynccontextmanager
    async def _file_server(self) -> AsyncIterator[None]:
        async def file(request: Request) -> Response:
            self.downloads += 1
            content = self.revisions[request.path_params["revision"]].get(request.path_params["name"])
            return Response(status_code=404) if content is None else Response(content)

        async with serving(Starlette(routes=[Route("/{revision}/{name:path}", file)])) as url:
            self._files_url = url
            yield


async def _refuse(context: Context, reason: str, message: str) -> None:
    status = status_pb2.Status(code=grpc.StatusCode.PERMISSION_DENIED.value[0], message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="tunesmith"))
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, message, details)


async def _check_token(context: Context) -> None:
    sent = dict(context.invocation_metadata() or ()).get("authorization")
    if sent != f"Bearer {SERVICE_TOKEN}":
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not a gateway")
