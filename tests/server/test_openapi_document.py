"""The published OpenAPI document: every operation says its errors, and nothing that is never answered."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel

from tunesmith_server.openapi_document import describe, methods_at


class Body(BaseModel):
    """Anything."""

    name: str


@pytest.fixture
def app() -> FastAPI:
    router = APIRouter()

    @router.get("/things/{number}")
    async def read(number: int) -> Body:
        raise NotImplementedError

    @router.post("/things")
    async def write(body: Body) -> Body:
        raise NotImplementedError

    @router.delete("/things/{number}")
    async def delete(number: int) -> Body:
        raise NotImplementedError

    app = FastAPI(title="t", version="1")
    app.include_router(router)
    return app


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return describe(app)


def test_every_operation_declares_the_errors_it_can_have(document: dict[str, Any]) -> None:
    read = document["paths"]["/things/{number}"]["get"]["responses"]
    write = document["paths"]["/things"]["post"]["responses"]
    assert set(read) == {"200", "400", "401", "403", "404", "429", "503"}
    assert set(write) == set(read) | {"409", "413", "507"}
    assert write["409"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorResponse"}


def test_the_shape_of_errors_is_openais(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["ErrorResponse"]["properties"]["error"]["required"] == ["message", "type", "param", "code"]
    assert "HTTPValidationError" not in schemas


def test_every_operation_needs_a_key(document: dict[str, Any]) -> None:
    assert document["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_all_methods_of_a_path_are_found(app: FastAPI) -> None:
    assert methods_at(app, "/things/7") == ["DELETE", "GET"]
    assert methods_at(app, "/things/7/8") == []
