"""What graders give, rule by rule; the routes are in test_endpoints.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.graders.gateway import completion
from tests.server.graders.graders import BOTH, CLOSE, EXACT, JUDGE, PYTHON, SERVER_ERROR, flagged
from tests.support.loopback_http import Answer
from tunesmith_server.errors import InvalidRequestError, TunesmithError, UnavailableError
from tunesmith_server.graders.model_scoring import AskModel
from tunesmith_server.graders.schemas import GraderErrors, RunGrader, RunResult, ValidateGrader
from tunesmith_server.graders.service import GradersService


@pytest.fixture(scope="module")
def service() -> Iterator[GradersService]:
    made = GradersService()
    yield made
    made.close()


def saying(answer: str | Answer | TunesmithError) -> AskModel:
    """A model that says this."""

    async def ask(_body: bytes) -> tuple[int, bytes]:
        if isinstance(answer, TunesmithError):
            raise answer
        reply = completion(answer) if isinstance(answer, str) else answer
        return reply.status, reply.body

    return ask


async def run(
    service: GradersService, grader: dict[str, Any], sample: str = "Paris", ask: AskModel | None = None
) -> RunResult:
    body = RunGrader.model_validate({"grader": grader, "model_sample": sample, "item": {"answer": "Paris"}})
    return await service.run(body, ask or saying("0.5"))


@pytest.mark.parametrize(
    ("operation", "sample", "reward"),
    [
        ("eq", "Paris", 1),
        ("eq", "paris", 0),
        ("ne", "Rome", 1),
        ("like", "It is Paris.", 1),
        ("like", "It is paris.", 0),
        ("ilike", "It is PARIS.", 1),
        ("ilike", "Rome", 0),
    ],
)
async def test_string_checks(service: GradersService, operation: str, sample: str, reward: float) -> None:
    result = await run(service, EXACT | {"operation": operation}, sample)

    assert (result.reward, result.metadata.errors) == (reward, GraderErrors())


@pytest.mark.parametrize(
    ("answer", "flags"),
    [
        ("0.25", set()),
        ("I say 1.", {"model_grader_parse_error"}),
        ('{"result": true}', {"model_grader_parse_error"}),
        ('{"result": "1"}', {"model_grader_parse_error"}),
        ('{"result": 2}', {"model_grader_parse_error"}),
        ('{"result": NaN}', {"model_grader_parse_error"}),
        ("1" * 400, {"model_grader_parse_error"}),
        ("[" * 100_000, {"model_grader_parse_error"}),
        (completion(None), {"model_grader_parse_error"}),
        (completion("1", refusal="No."), {"model_grader_refusal_error"}),
        (
            Answer(429, b'{"error": {"message": "slow"}}'),
            SERVER_ERROR,
        ),
        (Answer(200, b"[]"), SERVER_ERROR),
        (UnavailableError("inference_unavailable", "Try again."), SERVER_ERROR),
    ],
    ids=lambda value: repr(sorted(value) if isinstance(value, set) else value)[:40],  # the same to both workers
)
async def test_whatever_a_model_answers_is_a_flag_at_most(
    service: GradersService, answer: str | Answer | TunesmithError, flags: set[str]
) -> None:
    result = await run(service, JUDGE, ask=saying(answer))

    assert (result.reward, flagged(result.metadata.errors)) == (0.0 if flags else 0.25, flags)


@pytest.mark.parametrize(
    ("grader", "sample", "flags"),
    [
        (EXACT | {"reference": "{{item.missing}}"}, "x", {"invalid_variable_error"}),
        (EXACT | {"input": "{{sample.output_json.x}}"}, "no json", {"sample_parse_error"}),
        (EXACT | {"input": "{{sample.output_text}}"}, "x" * 40_000, {"truncated_observation_error"}),
        (CLOSE | {"evaluation_metric": "meteor"}, "a " * 5000, {"truncated_observation_error"}),
        (JUDGE | {"input": [{"role": "user", "content": "{{item.missing}}"}]}, "x", {"invalid_variable_error"}),
        (JUDGE | {"input": JUDGE["input"] * 100}, "x" * 30_000, {"truncated_observation_error"}),
        (BOTH | {"graders": {"exact": EXACT}}, "x", {"formula_parse_error"}),
        (BOTH | {"calculate_output": "1 / exact"}, "x", {"formula_parse_error"}),
        (BOTH | {"calculate_output": "exact; import os"}, "x", {"formula_parse_error"}),
        (
            BOTH | {"graders": {"exact": EXACT | {"reference": "{{item.missing}}"}}, "calculate_output": "exact"},
            "x",
            {"invalid_variable_error"},
        ),
    ],
)
async def test_faults_of_the_data_are_flags(
    service: GradersService, grader: dict[str, Any], sample: str, flags: set[str]
) -> None:
    result = await run(service, grader, sample)

    assert (result.reward, flagged(result.metadata.errors)) == (0.0, flags)


@pytest.mark.parametrize(
    ("grader", "code", "param"),
    [
        (PYTHON, "unsupported_grader", "grader.type"),
        ({"type": "label_model", "name": "l", "labels": []}, "unsupported_grader", "grader.type"),
        (BOTH | {"graders": {"p": PYTHON}}, "unsupported_grader", "grader.graders.p.type"),
        (CLOSE | {"evaluation_metric": "cosine"}, "unsupported_metric", "grader.evaluation_metric"),
    ],
)
async def test_what_is_not_offered_is_refused_by_both_verbs(
    service: GradersService, grader: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(InvalidRequestError) as validating:
        await service.validate(ValidateGrader.model_validate({"grader": grader}))
    with pytest.raises(InvalidRequestError) as running:
        await run(service, grader)

    for caught in (validating, running):
        assert (caught.value.code, caught.value.param) == (code, param)
