"""Projects know nothing of each other: every route and rpc is tried with another project's ids, and finds nothing.

A route or rpc that is new fails here until somebody has said which ids it takes, or why it takes none.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import grpc
import httpx
from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass

from tests.support.administration import Installation
from tests.support.artifacts import BASE_ID, publish_base_model
from tests.support.captures import capture
from tests.support.factories import store_file
from tests.support.registry import publish_tuned_model
from tunesmith_server.captures.service import CapturesService
from tunesmith_server.core import Core
from tunesmith_server.db import tables
from tunesmith_server.projects.scopes import ADMIN, PROJECT, access_to

MODEL = f"ft:{BASE_ID}:default:mine:aaaaaaaa"
OWNER, STRANGER = "default", "other"

# Path parameters of REST.
PARAMS = {
    "file_id": "file",
    "upload_id": "upload",
    "job_id": "job",
    "fine_tune_id": "job",
    "estimate_id": "estimate",
    "model": "model",
    "endpoint_id": "endpoint",
    "delivery_id": "delivery",
    "name": "deployment",
    "completion_id": "capture",
}
# Bodies that are fine, where an empty one would be refused before anything is looked up.
BODIES: dict[str, dict[str, Any]] = {
    "POST /v1/uploads/{upload_id}/parts": {"files": {"data": b"x"}},
    "POST /v1/uploads/{upload_id}/complete": {"json": {"part_ids": ["part_1"]}},
    "POST /v1/chat/completions/{completion_id}": {"json": {"metadata": {}}},
}
LISTS = {
    "GET /v1/files": "file",
    "GET /v1/fine_tuning/jobs": "job",
    "GET /v1/fine-tunes": None,
    "GET /v1/models": None,
    "GET /v1/deployments": None,
    "GET /v1/chat/completions": "capture",
    "GET /v1/webhook_endpoints": "endpoint",
    "GET /v1/usage": None,
}
"""Lists, and whose id must not be taken as a place in them."""
BY_REFERENCE: dict[str, dict[str, Any]] = {
    "POST /v1/fine_tuning/jobs": {"model": BASE_ID, "training_file": "file"},
    "POST /v1/fine-tunes": {"model": BASE_ID, "training_file": "file"},
    "POST /v1/fine_tuning/estimates": {"model": BASE_ID, "training_file": "file"},
    "POST /v1/models": {"base_model": BASE_ID, "file": "file"},
}
NOTHING_OF_OTHERS = {
    "POST /v1/files",
    "POST /v1/uploads",
    "POST /v1/webhook_endpoints",
    "GET /v1/webhook_event_types",
    "GET /v1/fine_tuning/model_limits",
    # Its targets: tests/server/deployments.
    "POST /v1/deployments",
    # Made of the caller's own captures.
    "POST /v1/capture_datasets",
    "POST /v1/fine_tuning/alpha/graders/validate",
    "POST /v1/fine_tuning/alpha/graders/run",
    # Answered by the gateway, whose own tests ask for other projects' models.
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    "POST /v1/embeddings",
}
"""They take no ids and show nothing that is stored for a project."""

RPC_FIELDS: dict[str, dict[str, Any]] = {
    "FilesService": {"id": "file"},
    "UploadsService": {"upload_id": "upload"},
    "FineTunesService": {"id": "job", "fine_tune_id": "job"},
    "EstimatesService": {"id": "estimate"},
    "ModelsService": {"id": "model"},
    "DeploymentsService": {"name": "deployment"},
    "CapturesService": {"id": "capture"},
    "WebhooksService": {"id": "endpoint", "webhook_endpoint_id": "endpoint", "delivery_id": "delivery"},
}
RPC_LISTS = {
    "ListCaptures",
    "ListDeployments",
    "ListFiles",
    "ListFineTunes",
    "ListModels",
    "ListWebhookEndpoints",
    "GetUsage",
}
RPC_NOTHING_OF_OTHERS = {
    "CreateFile",
    "CreateUpload",
    "CreateFineTune",
    "CreateEstimate",
    "CreateDeployment",
    "CreateDataset",
    "CreateModel",
    "CreateWebhookEndpoint",
    "ListWebhookEventTypes",
    "ListModelLimits",
    "ValidateGrader",
    "RunGrader",
}
"""As above; what they refer to goes through the same service as over REST."""


async def owned(installation: Installation) -> dict[str, str]:
    """Things of every kind that belong to OWNER, by kind."""
    core = installation.core
    base_revision = await publish_base_model(core)
    revision = await publish_tuned_model(core, MODEL, base_revision)
    ids = {"file": await store_file(core), "model": MODEL}
    async with await installation.http(project_id=OWNER) as http:
        job = await http.post("/v1/fine_tuning/jobs", json={"model": BASE_ID, "training_file": ids["file"]})
        names = {"name": "support-bot", "targets": [{"model": MODEL}]}
        ids["deployment"] = (await http.post("/v1/deployments", json=names)).json()["name"]
        parts = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 1, "mime_type": "text/jsonl"}
        ids |= {"job": job.json()["id"], "upload": (await http.post("/v1/uploads", json=parts)).json()["id"]}
    await CapturesService(core).take([capture(1)])
    ids["capture"] = capture(1).id
    await insert_rows(core, ids, revision)
    return ids


async def insert_rows(core: Core, ids: dict[str, str], revision: str) -> None:
    """What cannot be made by a call without a run or a receiver."""
    now = int(core.clock())
    ids |= {"estimate": "ftest-1", "endpoint": "whe_1", "delivery": "whd_1"}
    async with core.database.write() as session:
        job = await session.get(tables.FineTuneRow, ids["job"])
        columns = {column.key: getattr(job, column.key) for column in tables.FineTuneRow.__mapper__.columns}
        outbox = tables.OutboxRow(id="evt_1", project_id=OWNER, type="t", subject_id=ids["job"], created_at=now)
        endpoint = tables.WebhookEndpointRow(
            id=ids["endpoint"],
            project_id=OWNER,
            name="",
            url="https://x",
            event_types=["t"],
            created_at=now,
            updated_at=now,
        )
        session.add_all(
            [outbox, endpoint, tables.FineTuneRow(**(columns | {"id": ids["estimate"], "kind": "estimate"}))]
        )
        await session.flush()
        delivery = {"outbox_id": "evt_1", "endpoint_id": ids["endpoint"], "state": "given_up", "attempts": 1}
        session.add(tables.WebhookDeliveryRow(id=ids["delivery"], not_before=0, created_at=now, **delivery))


async def test_no_route_shows_or_touches_another_projects_things(installation: Installation) -> None:
    ids = await owned(installation)
    before = await stored(installation.core)
    async with await installation.http(project_id=STRANGER) as http:
        for route in sorted(installation.routes()):
            answer = await try_route(http, route, ids)
            if answer is not None:
                assert not any(one in answer.text for one in ids.values() if answer.is_success), route
    assert await stored(installation.core) == before
    async with await installation.http(project_id=OWNER) as http:
        for path in (f"/v1/files/{ids['file']}", f"/v1/uploads/{ids['upload']}", f"/v1/models/{ids['model']}"):
            assert (await http.get(path)).status_code == 200, "the ids are real"


async def try_route(http: httpx.AsyncClient, route: str, ids: dict[str, str]) -> httpx.Response | None:
    """What the route answers to a stranger who knows the ids; None when it takes none."""
    method, path = route.split(" ")
    if access_to(route).scope == ADMIN:
        answer = await http.request(method, path.replace("{", "x").replace("}", "x"), json={})
        assert answer.status_code == 403, f"{route} is for operators"
        return answer
    if "{" in path:
        named = {name: ids[kind] for name, kind in PARAMS.items()}
        answer = await http.request(method, path.format(**named), **BODIES.get(route, {"json": {}}))
        assert answer.status_code == 404, f"{route} answered {answer.status_code}: {answer.text[:200]}"
        return answer
    if route in LISTS:
        cursor = LISTS[route]
        if cursor is not None:
            assert (await http.get(path, params={"after": ids[cursor]})).status_code == 400, (
                f"{route} after a stranger's"
            )
        return await http.get(path, params={"start_time": 0})
    if route in BY_REFERENCE:
        body = {name: ids.get(value, value) for name, value in BY_REFERENCE[route].items()}
        answer = await http.post(path, json=body)
        assert answer.json()["error"]["code"] == "file_not_found", f"{route} took another project's file"
        return answer
    assert route in NOTHING_OF_OTHERS, f"{route}: say here which ids it takes or why it takes none"
    return None


async def test_no_rpc_shows_or_touches_another_projects_things(installation: Installation) -> None:
    ids = await owned(installation)
    before = await stored(installation.core)
    metadata = await installation.metadata(PROJECT, project_id=STRANGER)
    async with installation.channel() as channel:
        for rpc in sorted(installation.rpcs()):
            code, answer = await try_rpc(channel, rpc, ids, metadata)
            if access_to(rpc).scope == ADMIN:
                assert code == grpc.StatusCode.PERMISSION_DENIED, f"{rpc} is for operators"
            elif addressed(rpc):
                assert code == grpc.StatusCode.NOT_FOUND, f"{rpc} answered {code}"
            elif rpc.rpartition("/")[2] in RPC_LISTS:
                assert (code, [one for one in ids.values() if one in answer]) == (grpc.StatusCode.OK, []), rpc
            else:
                known = rpc.rpartition("/")[2] in RPC_NOTHING_OF_OTHERS
                assert known, f"{rpc}: say here which ids it takes or why it takes none"
    assert await stored(installation.core) == before


def addressed(rpc: str) -> list[str]:
    """The fields of a method's request that name something."""
    service, _, method = rpc.removeprefix("/").rpartition("/")
    if method in RPC_NOTHING_OF_OTHERS:
        return []
    named = RPC_FIELDS.get(service.rpartition(".")[2], {})
    names = [field.name for field in descriptor(rpc).input_type.fields]
    return [name for name in names if (name == "id" or name.endswith("_id") or name in named) and name != "request_id"]


async def try_rpc(channel: Any, rpc: str, ids: dict[str, str], metadata: Any) -> tuple[grpc.StatusCode, str]:
    """Status and answer of the method to a stranger who knows the ids."""
    method = descriptor(rpc)
    request = GetMessageClass(method.input_type)()
    if access_to(rpc).scope != ADMIN:
        fields = RPC_FIELDS.get(rpc.split("/")[1].rpartition(".")[2], {})
        for name in addressed(rpc):
            setattr(request, name, ids[fields[name]])
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    answers = GetMessageClass(method.output_type)
    call = getattr(channel, kind)(rpc, lambda sent: sent.SerializeToString(), answers.FromString)
    started = call(iter([request]) if method.client_streaming else request, metadata=metadata, timeout=30)
    try:
        answer = await (started.read() if method.server_streaming else started)
    except grpc.aio.AioRpcError as error:
        return error.code(), str(error.details())
    return grpc.StatusCode.OK, str(answer)


def descriptor(rpc: str) -> Any:
    """What protobuf knows of a method."""
    _, service, method = rpc.split("/")
    return descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]


async def stored(core: Core) -> list[Any]:
    """What a stranger could have changed."""
    things: tuple[type[tables.Base], ...] = (
        tables.FileRow,
        tables.UploadRow,
        tables.FineTuneRow,
        tables.ModelRow,
        tables.WebhookEndpointRow,
        tables.DeploymentRow,
        tables.CaptureRow,
    )
    async with core.database.read() as session:
        return [tuple(row) for kind in things for row in await session.execute(kind.__table__.select())]


async def test_no_key_is_at_rest(installation: Installation) -> None:
    key = await installation.key()
    async with await installation.http("admin") as http:
        new = (await http.post("/v1/organization/projects/default/api_keys", json={"name": "x"})).json()["value"]
        await http.get("/v1/files", headers={"authorization": f"Bearer {key}"})
    await installation.part.audit.flush()
    await installation.part.keys.lookup.write_uses()
    path = installation.core.settings.home / "tunesmith.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    content = b"".join(file.read_bytes() for file in path.parent.glob("tunesmith.db*"))
    assert b"key_" in content
    for secret in (key, new, (installation.core.settings.home / "api_key").read_text().strip()):
        assert secret.encode() not in content
        assert secret[8:30].encode() not in content
