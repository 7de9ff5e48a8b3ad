"""Administration over REST: OpenAI's own client does it unmodified, and so do plain requests with our additions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.administration import Installation, client
from tests.support.asgi_server import serving
from tunesmith_server.projects.scopes import EVERYTHING
from tunesmith_server.projects.usage_repository import UsageLine

PROJECTS = "/v1/organization/projects"


@pytest.fixture
async def admin(installation: Installation) -> AsyncIterator[httpx.AsyncClient]:
    async with await installation.http(EVERYTHING) as made:
        yield made


async def test_openais_client_administers_unmodified(each_installation: Installation) -> None:
    key = await each_installation.key("admin")
    async with (
        await each_installation.http(EVERYTHING) as http,
        serving(each_installation.application.http) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", admin_api_key=key) as sdk,
    ):
        organization = sdk.admin.organization
        made = await organization.projects.create(name="Research")
        assert (made.object, made.status, made.archived_at) == ("organization.project", "active", None)
        assert (await organization.projects.update(made.id, name="R&D")).name == "R&D"
        assert [one.id async for one in organization.projects.list(limit=1)] == ["default", "other", made.id]

        [limit] = [one async for one in organization.projects.rate_limits.list_rate_limits(made.id)]
        changed = await organization.projects.rate_limits.update_rate_limit(
            limit.id, project_id=made.id, max_requests_per_1_minute=60
        )
        assert changed.max_requests_per_1_minute == 60
        assert changed.to_dict()["max_tokens_per_1_minute"] is None

        new = (await http.post(f"{PROJECTS}/{made.id}/api_keys", json={"name": "ci"})).json()
        [made_key] = [one async for one in organization.projects.api_keys.list(made.id)]
        assert (made_key.id, made_key.name, made_key.last_used_at) == (new["id"], "ci", None)
        assert made_key.redacted_value == f"{new['value'][:5]}...{new['value'][-4:]}"
        narrowed = await organization.projects.api_keys.update(made_key.id, project_id=made.id, scopes=["inference"])
        assert narrowed.to_dict()["scopes"] == ["inference"]
        one_key = f"{PROJECTS}/{made.id}/api_keys/{made_key.id}"
        for body in ({"capture": True}, {}):
            assert (await http.post(one_key, json=body)).json()["capture"] is True
        assert (await http.post(one_key, json={"capture": False})).json()["capture"] is False
        refused = await http.post(one_key, json={"capture": "yes"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "capture")
        assert await organization.projects.api_keys.retrieve(made_key.id, project_id=made.id) == narrowed
        assert (await organization.projects.api_keys.delete(made_key.id, project_id=made.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await organization.projects.api_keys.retrieve(made_key.id, project_id=made.id)

        assert (await organization.projects.archive(made.id)).status == "archived"
        assert made.id not in [one.id async for one in organization.projects.list()]
        assert made.id in [one.id async for one in organization.projects.list(include_archived=True)]

        usage = await organization.usage.completions(start_time=0, limit=1, group_by=["model"], project_ids=["other"])
        assert usage.data[0].results == []
        await each_installation.part.audit.flush()
        logs = [one async for one in organization.audit_logs.list(limit=2, project_ids=["default"])]
        assert [one.type for one in logs][:2] == ["project.archived", "api_key.deleted"]
        only = [one async for one in organization.audit_logs.list(event_types=["api_key.created"])]
        assert [one.to_dict()["target_id"] for one in only] == [made_key.id], "the log knows what was created"


@pytest.mark.parametrize("ending", ["[]", ""], ids=["as OpenAI's clients write lists", "as people do"])
async def test_lists_in_queries_are_never_ignored(
    admin: httpx.AsyncClient, installation: Installation, ending: str
) -> None:
    line = UsageLine("default", "k", "m", "inference", int(installation.core.clock()), 1, 2, 3)
    await installation.part.usage.take_report("g", 1, [line])
    installation.core.clock.advance(3600)  # type: ignore[attr-defined]
    await admin.post(PROJECTS, json={"name": "A"})
    await installation.part.audit.flush()
    usage, logs = "/v1/organization/usage/completions", "/v1/organization/audit_logs"

    async def results(path: str, **lists: str) -> list[dict[str, Any]]:
        asked = {f"{name}{ending}": value for name, value in lists.items()}
        data = (await admin.get(path, params={"start_time": line.hour, **asked})).json()["data"]
        return [result for bucket in data for result in bucket["results"]] if path == usage else data

    assert [result["model"] for result in await results(usage, group_by="model", models="m")] == ["m"]
    for name in ("project_ids", "api_key_ids", "models"):
        assert await results(usage, **{name: "another"}) == []
    assert [log["type"] for log in await results(logs, event_types="project.created")] == ["project.created"]
    for name in ("project_ids", "actor_ids", "event_types", "resource_ids"):
        assert await results(logs, **{name: "another"}) == []


async def test_quotas_are_part_of_a_project(admin: httpx.AsyncClient) -> None:
    made = (await admin.post(PROJECTS, json={"name": "A", "id": "team-a", "quotas": {"max_jobs": 3}})).json()
    assert (made["id"], made["quotas"]["max_jobs"], made["quotas"]["share"]) == ("team-a", 3, 1.0)
    changed = await admin.post(f"{PROJECTS}/team-a", json={"quotas": {"share": 2, "max_jobs": None}})
    assert (changed.json()["quotas"]["max_jobs"], changed.json()["quotas"]["share"]) == (None, 2.0)
    assert changed.json()["name"] == "A"


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("", {"name": ""}, "invalid_value"),
        ("", {"name": "x", "id": "With:Colon"}, "invalid_value"),
        ("", {"name": "x", "id": "default"}, "project_exists"),
        ("", {"name": "x", "quotas": {"max_cats": 1}}, "unknown_parameter"),
        ("", {"name": "x", "quotas": {"max_jobs": 1.5}}, "invalid_type"),
        ("", {"name": "x", "quotas": {"max_jobs": -1}}, "invalid_value"),
        ("/default/archive", None, "default_project"),
        ("/none/archive", None, "project_not_found"),
        ("/none", {"name": "x"}, "project_not_found"),
        ("/none/api_keys", {"name": "x"}, "project_not_found"),
        ("/default/api_keys", {"scopes": ["all"]}, "unknown_scope"),
        ("/default/api_keys", {"scopes": []}, "unknown_scope"),
        ("/default/api_keys", {"expires_in_seconds": 0}, "invalid_value"),
        ("/default/api_keys/none/rotate", None, "key_not_found"),
        ("/default/api_keys/none/rotate", {"overlap_seconds": -1}, "invalid_value"),
        ("/default/rate_limits/none", {}, "rate_limit_not_found"),
    ],
)
async def test_what_cannot_be_is_refused(
    admin: httpx.AsyncClient, path: str, body: dict[str, object] | None, code: str
) -> None:
    answer = await admin.post(f"{PROJECTS}{path}", json=body)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize("path", ["", "/default/api_keys"])
async def test_unknown_cursors_are_errors(admin: httpx.AsyncClient, path: str) -> None:
    answer = await admin.get(f"{PROJECTS}{path}", params={"after": "none"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_cursor")


async def test_an_archived_project_is_closed_and_keeps_its_data(installation: Installation) -> None:
    async with await installation.http(EVERYTHING) as admin, await installation.http(project_id="other") as theirs:
        assert (await theirs.get("/v1/files")).status_code == 200
        await admin.post(f"{PROJECTS}/other/archive")
        refused = await theirs.get("/v1/files")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "project_archived")
        assert (await admin.post(f"{PROJECTS}/other", json={"name": "x"})).json()["error"]["code"] == "project_archived"
        assert (await admin.post(f"{PROJECTS}/other/api_keys", json={})).status_code == 404
        assert len((await admin.get(f"{PROJECTS}/other/api_keys")).json()["data"]) == 1


async def test_a_rotated_key_works_beside_the_new_one_for_a_while(
    admin: httpx.AsyncClient, installation: Installation
) -> None:
    made = {"name": "ci", "scopes": ["files.read"], "expires_in_seconds": 7200}
    old = (await admin.post(f"{PROJECTS}/default/api_keys", json=made)).json()
    path = f"{PROJECTS}/default/api_keys/{old['id']}/rotate"
    new = (await admin.post(path, json={"overlap_seconds": 3600})).json()
    assert {name: new[name] for name in ("name", "scopes", "expires_at")} == {
        name: old[name] for name in ("name", "scopes", "expires_at")
    }
    async with client(installation.application, old["value"]) as with_old:
        assert (await with_old.get("/v1/files")).status_code == 200
        assert (await with_old.get("/v1/models")).json()["error"]["code"] == "missing_scope"
        installation.core.clock.advance(3600)  # type: ignore[attr-defined]
        assert (await with_old.get("/v1/files")).json()["error"]["code"] == "api_key_expired"
    async with client(installation.application, new["value"]) as with_new:
        assert (await with_new.get("/v1/files")).status_code == 200
    again = await admin.post(path)
    assert again.json()["error"]["code"] == "api_key_expired"
