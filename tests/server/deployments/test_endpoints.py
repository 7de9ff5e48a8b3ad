"""The REST routes of deployments: the life of a name, and what is said of a bad body."""

from __future__ import annotations

import httpx
import pytest

from tests.support.administration import Installation, client
from tests.support.artifacts import publish_base_model
from tests.support.registry import publish_tuned_model

ONE = "ft:toy-base:default:one:aaaaaaaa"


@pytest.fixture
async def key(installation: Installation) -> str:
    """A key of the default project, in which ONE can be deployed."""
    base_revision = await publish_base_model(installation.core)
    await publish_tuned_model(installation.core, ONE, base_revision)
    return await installation.key()


async def test_the_life_of_a_name(installation: Installation, key: str) -> None:
    async with client(installation.application, key) as http:
        body = {"name": "bot", "targets": [{"model": ONE}], "pinned": True}
        made = (await http.post("/v1/deployments", json=body)).json()
        target = {"model": ONE, "weight": 1, "state": "not_loaded"}
        assert made | {"created_at": 0, "updated_at": 0} == {
            "name": "bot",
            "object": "deployment",
            "created_at": 0,
            "updated_at": 0,
            "version": 1,
            "targets": [target],
            "pinned": True,
        }
        canary = {"targets": [{"model": ONE, "weight": 9}, {"model": "toy-base", "weight": 1}]}
        assert (await http.post("/v1/deployments/bot", json=canary)).json()["version"] == 2
        back = (await http.post("/v1/deployments/bot/rollback")).json()
        assert (back["version"], back["targets"]) == (3, [target])
        assert (await http.post("/v1/deployments/bot/rollback", json={"version": 2})).json()["version"] == 4
        versions = (await http.get("/v1/deployments/bot/versions", params={"limit": 1})).json()
        assert versions["data"][0]["targets"] == canary["targets"]
        assert (versions["data"][0]["version"], versions["has_more"]) == (4, True)
        assert [each["name"] for each in (await http.get("/v1/deployments")).json()["data"]] == ["bot"]
        assert (await http.delete("/v1/deployments/bot")).json() == {
            "name": "bot",
            "object": "deployment.deleted",
            "deleted": True,
        }
        assert error(await http.get("/v1/deployments/bot")) == (404, "deployment_not_found", "name")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "ft:bot", "targets": [{"model": ONE}]}, "name"),
        ({"name": "bot", "targets": []}, "targets"),
        ({"name": "bot", "targets": [{"model": ONE, "weight": -1}]}, "targets.0.weight"),
        ({"name": "bot", "targets": [{"model": ONE, "weight": True}]}, "targets.0.weight"),
        ({"name": "bot", "targets": [{"model": ONE}], "pin": True}, "pin"),
    ],
)
async def test_a_bad_body_is_answered_with_its_field(
    installation: Installation, key: str, body: dict[str, object], param: str
) -> None:
    async with client(installation.application, key) as http:
        answer = await http.post("/v1/deployments", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def error(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, code and parameter of a refusal."""
    said = answer.json()["error"]
    return answer.status_code, said["code"], said["param"]
