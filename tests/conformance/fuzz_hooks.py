"""Owns what schemathesis cannot know: ids of things that exist, and which of them a run must not destroy.

It must not know any check. schemathesis loads it by the path in SCHEMATHESIS_HOOKS; the ids come as JSON in FUZZ_KNOWN.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

import schemathesis

_KNOWN: dict[str, list[Any]] = json.loads(os.environ.get("FUZZ_KNOWN", "{}"))
_KEPT_PROJECTS: list[str] = _KNOWN.get("kept_projects", [])


@schemathesis.hook
def map_case(_context: Any, case: Any) -> Any:
    """About half of the ids and names in calls that are meant to be right are those of things that exist."""
    if case.meta is not None and case.meta.generation.mode is schemathesis.GenerationMode.POSITIVE:
        case.path_parameters = _with_known(case.path_parameters)
        if isinstance(case.body, dict):
            case.body = _with_known(case.body)
    return case


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: dict[str, Any]) -> None:
    """What the run itself lives on is never changed, even when a list has taught its id; and no call waits long."""
    if case.operation.path == "/v1/fine_tuning/estimates":
        case.query = {**(case.query or {}), "wait_seconds": 0}
    if case.operation.path.endswith("/events"):
        # The stream of a job that waits has no end.
        case.query = {name: value for name, value in (case.query or {}).items() if name != "stream"}
        case.headers = {name: value for name, value in (case.headers or {}).items() if name.lower() != "accept"}
    if case.method != "GET" and case.path_parameters.get("project_id") in _KEPT_PROJECTS:
        case.path_parameters["project_id"] = _KNOWN["project_id"][0]


def _with_known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _perhaps_known(name, value) for name, value in (values or {}).items()}


def _perhaps_known(name: str, value: Any) -> Any:
    known = _KNOWN.get(name)
    chance = zlib.crc32(f"{name}={value!r}".encode("utf-8", "replace"))
    if not known or chance % 2:
        return value
    return known[chance // 2 % len(known)]
