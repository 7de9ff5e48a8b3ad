"""Every public route and rpc has a row in the table, and the row is what is enforced."""

from __future__ import annotations

import pytest

from tests.support.administration import Installation
from tunesmith_server.projects.scopes import (
    ADMIN,
    EVERYTHING,
    INFERENCE,
    PROJECT,
    SCOPES,
    access_to,
    granted,
    has_row,
    unknown,
)


@pytest.mark.parametrize(
    ("scopes", "needed", "may"),
    [
        ([EVERYTHING], ADMIN, True),
        ([EVERYTHING], "files.read", True),
        ([PROJECT], "files.write", True),
        ([PROJECT], ADMIN, False),
        (["files.write"], "files.read", False),
        (["files.read", ADMIN], "files.read", True),
        ([ADMIN], "files.read", False),
        (["files.read"], PROJECT, False),
        ([], "files.read", False),
        ([INFERENCE], access_to("GET /v1/models").scope, True),
        ([INFERENCE], access_to("GET /v1/models/{model}").scope, True),
        (["models.read"], access_to("GET /v1/models").scope, True),
        (["models.read"], access_to("POST /v1/responses").scope, False),
        ([INFERENCE], access_to("GET /v1/model_archives/{model}").scope, False),
    ],
)
def test_what_scopes_grant(scopes: list[str], needed: str, may: bool) -> None:
    assert granted(scopes, needed) is may


def test_names_that_are_no_scopes_are_found() -> None:
    assert unknown([*SCOPES, "files.*", ""]) == ["files.*", ""]


def test_an_operation_that_nobody_thought_of_needs_the_whole_project() -> None:
    assert access_to("GET /v1/new").scope == PROJECT


READING = {
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    "POST /v1/embeddings",
    "POST /v1/fine_tuning/alpha/graders/run",
    "POST /v1/fine_tuning/alpha/graders/validate",
    # A part of an upload is nothing by itself, and a test message is seen where it arrives.
    "POST /v1/uploads/{upload_id}/parts",
    "POST /v1/webhook_endpoints/{endpoint_id}/test",
}


async def test_the_table_has_every_public_route_and_rpc_and_is_enforced(installation: Installation) -> None:
    routes = installation.routes()
    missing = {operation for operation in routes | installation.rpcs() if not has_row(operation)}
    assert not missing, f"{missing}: say in projects/scopes.py what they need and how the audit log calls them"

    changing = {route for route in routes if not route.startswith("GET ")} - READING
    unnamed = {route for route in changing if access_to(route).action is None}
    assert not unnamed, f"{unnamed}: the audit log could not say that somebody did this"

    opened = {route for route in sorted(routes) if not await is_closed(installation, route)}
    assert not opened, f"{opened}: they answer a key that lacks their scope; take CurrentPrincipal as a parameter"


async def is_closed(installation: Installation, route: str) -> bool:
    """Whether a key with every scope but the route's own is refused."""
    needed = access_to(route).scope
    if needed == INFERENCE:
        return True  # the gateway asks for the scope of its callers itself
    others = [scope for scope in SCOPES if scope not in (EVERYTHING, PROJECT, *needed.split(" or "))]
    method, path = route.split(" ")
    async with await installation.http(*others) as client:
        answer = await client.request(method, path.replace("{", "x").replace("}", "x"), json={})
    return (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_scope")
