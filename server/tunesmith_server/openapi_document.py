"""Owns what the published OpenAPI document says beyond the routes: errors, keys, and nothing that is never answered.

It must not know a domain; the routes describe themselves.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.routing import compile_path

_EVERYWHERE = {
    "400": "The request must be changed; `param` names the field.",
    "401": "The API key is missing or wrong.",
    "403": "The API key may not do this.",
    "404": "There is no such thing in this project.",
    "429": "A quota or rate limit is used up; `Retry-After` says when to come back.",
    "503": "A part is away for the moment; `Retry-After` says when to come back.",
}
_OF_CHANGES = {"409": "The state of the thing forbids it; repeating does not help."}
_OF_BODIES = {"413": "The body is too large.", "507": "Nothing can be stored until an operator makes room."}

_NULLABLE_TEXT = {"type": ["string", "null"]}
_PROBLEM = {
    "type": "object",
    "required": ["code", "message", "param", "line"],
    "properties": {
        "code": {"type": "string"},
        "message": {"type": "string"},
        "param": _NULLABLE_TEXT,
        "line": {"type": ["integer", "null"], "description": "Line of the file at fault, from 1."},
    },
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _NULLABLE_TEXT,
                "code": {"type": "string", "description": "Stable, snake_case."},
                "problems": {
                    "type": "array",
                    "items": _PROBLEM,
                    "description": "All that is wrong, when several things are. Our addition.",
                },
            },
        }
    },
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of the app's routes, made once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in document["paths"].values():
            for method, operation in path.items():
                _add_errors(method, operation)
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        # FastAPI's own shape of validation errors; ours are answered with 400.
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas["ErrorResponse"] = _ERROR
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        app.openapi_schema = document
    return app.openapi_schema


def methods_at(app: FastAPI, path: str) -> list[str]:
    """All methods that the document has for the path, in upper case."""
    paths: dict[str, dict[str, Any]] = describe(app)["paths"]
    found = [operations for template, operations in paths.items() if compile_path(template)[0].match(path)]
    return sorted({method.upper() for operations in found for method in operations})


def _add_errors(method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    errors = dict(_EVERYWHERE)
    if method != "get":
        errors |= _OF_CHANGES
    if "requestBody" in operation:
        errors |= _OF_BODIES
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    for status, description in errors.items():
        responses.setdefault(status, {"description": description, "content": content})
