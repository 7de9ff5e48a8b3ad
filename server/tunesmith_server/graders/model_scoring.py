"""Owns how a model is asked for a score and how its answer is read.

It must not know the gateway's address: `ask` sends a chat request in the caller's name. What the model says is data
and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from typing import Any

from tunesmith_server.errors import InvalidRequestError, UnavailableError
from tunesmith_server.graders.grading import Grade, failed, rendered
from tunesmith_server.graders.schemas import GraderErrors, ScoreModelGrader

AskModel = Callable[[bytes], Awaitable[tuple[int, bytes]]]
"""Sends the body of a chat completion; gives status and body. Raises TunesmithError when there is no inference."""

_SECONDS = 60.0
_MAX_DETAILS = 500
_ANSWER_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "grade",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"result": {"type": "number"}},
            "required": ["result"],
            "additionalProperties": False,
        },
    },
}


def question(grader: ScoreModelGrader, item: Mapping[str, Any], sample: str) -> bytes | Grade:
    """What the model is asked, or the grade that a fault of the templates gives. Work of the processor."""
    texts = rendered([text for message in grader.input for text in message.texts], item, sample)
    if isinstance(texts, Grade):
        return texts
    remaining = iter(texts)
    messages = [
        # Chat templates of open models know no developer.
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": "\n".join(islice(remaining, len(message.texts))),
        }
        for message in grader.input
    ]
    return _request(grader, messages)


async def grade_by_model(grader: ScoreModelGrader, request: bytes, ask: AskModel) -> Grade:
    """The model's score; raises InvalidRequestError for a model that the caller has not."""
    try:
        async with asyncio.timeout(_SECONDS):
            status, body = await ask(request)
    except TimeoutError:
        details = f"The model did not answer within {_SECONDS:g} seconds."
        return failed(
            model_grader_server_error=True, unresponsive_reward_error=True, model_grader_server_error_details=details
        )
    except UnavailableError as error:
        return failed(model_grader_server_error=True, model_grader_server_error_details=error.message)
    if status == 404:
        message = f"The model {grader.model!r} is not served to this project. GET /v1/models lists those that are."
        raise InvalidRequestError("model_not_found", message, param="grader.model")
    if status != 200:
        return failed(model_grader_server_error=True, model_grader_server_error_details=_details(status, body))
    return _read(grader, body)


def _request(grader: ScoreModelGrader, messages: list[dict[str, str]]) -> bytes:
    sampling = {} if grader.sampling_params is None else grader.sampling_params.model_dump(exclude_none=True)
    limit = sampling.pop("max_completions_tokens", None)
    body = {"model": grader.model, "messages": messages, "response_format": _ANSWER_FORMAT, **sampling}
    if limit is not None:
        body["max_completion_tokens"] = limit
    # ASCII, because a text may hold what UTF-8 cannot.
    return json.dumps(body).encode("ascii")


def _read(grader: ScoreModelGrader, body: bytes) -> Grade:
    answer = _json(body)
    try:
        message, model = answer["choices"][0]["message"], answer["model"]
        usage, refusal, content = answer["usage"]["total_tokens"], message.get("refusal"), message["content"]
    except (KeyError, IndexError, TypeError, AttributeError):
        return failed(model_grader_server_error=True, model_grader_server_error_details="The answer has no message.")
    score = _score(content)
    low, high = grader.bounds
    if refusal:
        errors = GraderErrors(model_grader_refusal_error=True)
    elif score is None or not low <= score <= high:
        errors = GraderErrors(model_grader_parse_error=True)
    else:
        return Grade(score, token_usage=int(usage), model=str(model))
    return Grade(errors=errors, token_usage=int(usage), model=str(model))


def _score(content: object) -> float | None:
    """The number that the text says, bare or as `result` of an object; None when it says none."""
    if not isinstance(content, str):
        return None
    said = _json(content)
    if isinstance(said, dict):
        said = said.get("result", said.get("score"))
    if isinstance(said, bool) or not isinstance(said, int | float):
        return None
    try:
        number = float(said)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _details(status: int, body: bytes) -> str:
    answer = _json(body)
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return f"The model's server answered {status}: {message or 'no message'}"[:_MAX_DETAILS]


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
