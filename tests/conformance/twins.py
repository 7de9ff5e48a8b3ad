"""Owns the same call by either way: one class that asks over REST, one that asks over gRPC, method by method the same.

It must not know which calls a test makes. Each method returns the id of what was made, or "".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio
import httpx
from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from tunesmith_proto.files.v1 import files_pb2, files_pb2_grpc, uploads_pb2, uploads_pb2_grpc
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2 as jobs_pb2
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2_grpc as jobs_pb2_grpc
from tunesmith_proto.registry.v1 import models_pb2, models_pb2_grpc
from tunesmith_proto.webhooks.v1 import webhooks_pb2, webhooks_pb2_grpc


@dataclass(frozen=True)
class Refused(Exception):
    """The error as both wires tell it: `error.code` or ErrorInfo.reason, and the parameter at fault."""

    reason: str
    param: str | None


class RestTwin:
    """Asks over REST."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def create_job(self, body: dict[str, Any], key: str) -> str:
        headers = {"Idempotency-Key": key} if key else {}
        return await self._call("POST", "/fine_tuning/jobs", json=body, headers=headers)

    async def change_job(self, verb: str, job_id: str) -> str:
        if verb == "get":
            return await self._call("GET", f"/fine_tuning/jobs/{job_id}")
        return await self._call("POST", f"/fine_tuning/jobs/{job_id}/{verb}")

    async def list_jobs(self, page: dict[str, Any], metadata: dict[str, str]) -> str:
        query = page | {f"metadata[{name}]": value for name, value in metadata.items()}
        return await self._call("GET", "/fine_tuning/jobs", params=query)

    async def list_of_job(self, what: str, job_id: str, page: dict[str, Any]) -> str:
        return await self._call("GET", f"/fine_tuning/jobs/{job_id}/{what}", params=page)

    async def create_file(self, filename: str, purpose: str, content: bytes, expires: dict[str, Any] | None) -> str:
        data = {"purpose": purpose} | {f"expires_after[{name}]": str(value) for name, value in (expires or {}).items()}
        return await self._call("POST", "/files", files={"file": (filename, content)}, data=data)

    async def get_file(self, file_id: str) -> str:
        return await self._call("GET", f"/files/{file_id}")

    async def delete_file(self, file_id: str) -> str:
        return await self._call("DELETE", f"/files/{file_id}")

    async def list_files(self, query: dict[str, Any]) -> str:
        return await self._call("GET", "/files", params=query)

    async def create_upload(self, body: dict[str, Any]) -> str:
        return await self._call("POST", "/uploads", json=body)

    async def add_part(self, upload_id: str, data: bytes) -> str:
        return await self._call("POST", f"/uploads/{upload_id}/parts", files={"data": ("part", data)})

    async def complete_upload(self, upload_id: str, part_ids: Sequence[str], md5: str) -> str:
        body = {"part_ids": list(part_ids)} | ({"md5": md5} if md5 else {})
        return await self._call("POST", f"/uploads/{upload_id}/complete", json=body)

    async def cancel_upload(self, upload_id: str) -> str:
        return await self._call("POST", f"/uploads/{upload_id}/cancel")

    async def create_model(self, body: dict[str, Any], key: str) -> str:
        headers = {"Idempotency-Key": key} if key else {}
        return await self._call("POST", "/models", json=body, headers=headers)

    async def get_model(self, name: str) -> str:
        return await self._call("GET", f"/models/{name}")

    async def delete_model(self, name: str) -> str:
        return await self._call("DELETE", f"/models/{name}")

    async def create_endpoint(self, body: dict[str, Any]) -> str:
        return await self._call("POST", "/webhook_endpoints", json=body)

    async def update_endpoint(self, endpoint_id: str, body: dict[str, Any]) -> str:
        return await self._call("POST", f"/webhook_endpoints/{endpoint_id}", json=body)

    async def delete_endpoint(self, endpoint_id: str) -> str:
        return await self._call("DELETE", f"/webhook_endpoints/{endpoint_id}")

    async def _call(self, method: str, path: str, **options: Any) -> str:
        answer = await self._client.request(method, f"/v1{path}", **options)
        body = answer.json()
        if answer.status_code != 200:
            raise Refused(body["error"]["code"], body["error"]["param"])
        made: str = body.get("id", "")
        return made


class GrpcTwin:
    """Asks over gRPC."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._metadata = metadata
        self._files = files_pb2_grpc.FilesServiceStub(channel)
        self._uploads = uploads_pb2_grpc.UploadsServiceStub(channel)
        self._jobs = jobs_pb2_grpc.FineTunesServiceStub(channel)
        self._models = models_pb2_grpc.ModelsServiceStub(channel)
        self._hooks = webhooks_pb2_grpc.WebhooksServiceStub(channel)

    async def create_job(self, body: dict[str, Any], key: str) -> str:
        method = body.get("method")
        message = {name: value for name, value in body.items() if name not in ("method", "integrations")}
        if method is not None:
            message["method_options"] = _tagged(method)
        message["integrations"] = [_tagged(each) for each in body.get("integrations", [])]
        request = ParseDict(message | {"request_id": key}, jobs_pb2.CreateFineTuneRequest())
        answer = await self._call(self._jobs.CreateFineTune, request)
        return str(answer.fine_tune.id)

    async def change_job(self, verb: str, job_id: str) -> str:
        name = f"{verb.capitalize()}FineTune"
        request = getattr(jobs_pb2, f"{name}Request")(id=job_id)
        return str((await self._call(getattr(self._jobs, name), request)).fine_tune.id)

    async def list_jobs(self, page: dict[str, Any], metadata: dict[str, str]) -> str:
        await self._call(self._jobs.ListFineTunes, jobs_pb2.ListFineTunesRequest(**page, metadata=metadata))
        return ""

    async def list_of_job(self, what: str, job_id: str, page: dict[str, Any]) -> str:
        name = f"List{what.capitalize()}"
        request = getattr(jobs_pb2, f"{name}Request")(fine_tune_id=job_id, **page)
        await self._call(getattr(self._jobs, name), request)
        return ""

    async def create_file(self, filename: str, purpose: str, content: bytes, expires: dict[str, Any] | None) -> str:
        info = files_pb2.FileInfo(filename=filename, purpose=purpose)
        if expires is not None:
            info.expires_after.CopyFrom(files_pb2.ExpiresAfter(**expires))
        head = files_pb2.CreateFileRequest(info=info)
        answer = await self._stream(self._files.CreateFile, head, files_pb2.CreateFileRequest(chunk=content))
        return str(answer.file.id)

    async def get_file(self, file_id: str) -> str:
        return str((await self._call(self._files.GetFile, files_pb2.GetFileRequest(id=file_id))).file.id)

    async def delete_file(self, file_id: str) -> str:
        return str((await self._call(self._files.DeleteFile, files_pb2.DeleteFileRequest(id=file_id))).id)

    async def list_files(self, query: dict[str, Any]) -> str:
        await self._call(self._files.ListFiles, files_pb2.ListFilesRequest(**query))
        return ""

    async def create_upload(self, body: dict[str, Any]) -> str:
        request = ParseDict(body, uploads_pb2.CreateUploadRequest())
        return str((await self._call(self._uploads.CreateUpload, request)).upload.id)

    async def add_part(self, upload_id: str, data: bytes) -> str:
        head = uploads_pb2.AddUploadPartRequest(upload_id=upload_id)
        answer = await self._stream(self._uploads.AddUploadPart, head, uploads_pb2.AddUploadPartRequest(chunk=data))
        return str(answer.part.id)

    async def complete_upload(self, upload_id: str, part_ids: Sequence[str], md5: str) -> str:
        request = uploads_pb2.CompleteUploadRequest(upload_id=upload_id, part_ids=part_ids, md5=md5)
        return str((await self._call(self._uploads.CompleteUpload, request)).upload.id)

    async def cancel_upload(self, upload_id: str) -> str:
        request = uploads_pb2.CancelUploadRequest(upload_id=upload_id)
        return str((await self._call(self._uploads.CancelUpload, request)).upload.id)

    async def create_model(self, body: dict[str, Any], key: str) -> str:
        request = models_pb2.CreateModelRequest(**body, request_id=key)
        return str((await self._call(self._models.CreateModel, request)).model.id)

    async def get_model(self, name: str) -> str:
        return str((await self._call(self._models.GetModel, models_pb2.GetModelRequest(id=name))).model.id)

    async def delete_model(self, name: str) -> str:
        return str((await self._call(self._models.DeleteModel, models_pb2.DeleteModelRequest(id=name))).id)

    async def create_endpoint(self, body: dict[str, Any]) -> str:
        request = webhooks_pb2.CreateWebhookEndpointRequest(**body)
        return str((await self._call(self._hooks.CreateWebhookEndpoint, request)).webhook_endpoint.id)

    async def update_endpoint(self, endpoint_id: str, body: dict[str, Any]) -> str:
        request = webhooks_pb2.UpdateWebhookEndpointRequest(id=endpoint_id, **body)
        return str((await self._call(self._hooks.UpdateWebhookEndpoint, request)).webhook_endpoint.id)

    async def delete_endpoint(self, endpoint_id: str) -> str:
        request = webhooks_pb2.DeleteWebhookEndpointRequest(id=endpoint_id)
        return str((await self._call(self._hooks.DeleteWebhookEndpoint, request)).id)

    async def _call(self, method: Any, request: Any) -> Any:
        return await _answer(method(request, metadata=self._metadata))

    async def _stream(self, method: Any, *requests: Any) -> Any:
        async def stream() -> AsyncIterator[Any]:
            for request in requests:
                yield request

        return await _answer(method(stream(), metadata=self._metadata))


def _tagged(value: dict[str, Any]) -> dict[str, Any]:
    """`{"type": "dpo", "dpo": {…}}` as gRPC has it: the name, and the options if there are any."""
    kind = value["type"]
    return {"type": kind} | ({"options": value[kind]} if kind in value else {})


async def _answer(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        details = rpc_status.from_call(error)
        raise _refused(details, error) from error


def _refused(status: status_pb2.Status | None, error: grpc.aio.AioRpcError) -> Refused:
    assert status is not None, f"an error without details: {error}"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info), f"the first detail is no ErrorInfo: {status}"
    return Refused(info.reason, info.metadata.get("param"))


Twin = RestTwin | GrpcTwin
