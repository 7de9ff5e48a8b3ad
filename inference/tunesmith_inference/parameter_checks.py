"""Owns which values of parameters are refused here, because an engine would refuse them in words that help nobody.

It must not know HTTP or engines; everything here is pure. What engines refuse in plain words is left to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith_inference.dialect import MAX_TOP_LOGPROBS
from tunesmith_inference.errors import invalid_request, missing_parameter

_MAX_STOPS = 4
_TOOLS_ONLY = "Only tools of the type `function` can be called: yours to run, none is built in."
_FORMS = ("text", "json_object", "json_schema")


def check_values(parameters: Mapping[str, Any]) -> None:
    """Raises 400 with the parameter at fault."""
    _check_stop(parameters.get("stop", []))
    if parameters.get("prompt") in ([], ""):
        raise invalid_request("invalid_value", "`prompt` is empty. Send text or tokens.", "prompt")
    for name in ("top_logprobs", "logprobs"):
        asked = parameters.get(name)
        if isinstance(asked, int) and not 0 <= asked <= MAX_TOP_LOGPROBS:
            raise invalid_request("invalid_value", f"`{name}` is a number from 0 to {MAX_TOP_LOGPROBS}.", name)
    if "response_format" in parameters:
        _check_form(parameters["response_format"])
    if "tools" in parameters:
        _check_tools(parameters["tools"])


def _check_stop(stop: object) -> None:
    texts = stop if isinstance(stop, list) else [stop]
    if len(texts) > _MAX_STOPS or not all(isinstance(text, str) and text for text in texts):
        message = f"`stop` is a text or a list of up to {_MAX_STOPS} texts, none of them empty."
        raise invalid_request("invalid_value", message, "stop")


def _check_form(form: object) -> None:
    if not isinstance(form, dict) or form.get("type") not in _FORMS:
        message = f"`response_format` is an object whose `type` is one of {', '.join(_FORMS)}."
        at = "response_format.type" if isinstance(form, dict) else "response_format"
        raise invalid_request("invalid_value", message, at)
    if form["type"] != "json_schema":
        return
    at = "response_format.json_schema"
    given = form.get("json_schema")
    if not isinstance(given, dict):
        raise missing_parameter(at)
    for name, kind in (("name", str), ("schema", dict)):
        if name not in given:
            raise missing_parameter(f"{at}.{name}")
        if not isinstance(given[name], kind):
            what = "a text" if kind is str else "an object, a JSON schema"
            raise invalid_request("invalid_type", f"`{at}.{name}` is {what}.", f"{at}.{name}")


def _check_tools(tools: object) -> None:
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise invalid_request("invalid_type", "`tools` is a list of objects.", "tools")
    for place, tool in enumerate(tools):
        if tool.get("type") != "function":
            raise invalid_request("unsupported_tool", _TOOLS_ONLY, f"tools.{place}.type")
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid_request("invalid_type", "A tool has a `function` with a `name`.", f"tools.{place}.function")
