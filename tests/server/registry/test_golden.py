"""golden.json is held to its shape, because an engine's proof is only as good as the record."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.artifacts import golden
from tunesmith_server.registry.golden import golden_problems


def changed(**prompt: Any) -> bytes:
    value = golden()
    value["prompts"][0] |= prompt
    return json.dumps(value).encode()


def test_a_plain_record_passes() -> None:
    assert golden_problems(json.dumps(golden()).encode()) == []


def test_a_frame_for_completions_may_stand_beside_the_prompts() -> None:
    frame = {"before": "user: ", "after": "", "trimmed": False}
    assert golden_problems(json.dumps({**golden(), "completion_frame": frame}).encode()) == []


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({**golden(), "completion_frame": {"before": "user: "}}).encode(),
        json.dumps({**golden(), "completion_frame": {"before": "", "after": "", "trimmed": 1}}).encode(),
        json.dumps({**golden(), "completion_frame": {"before": "", "after": "x" * 100_001, "trimmed": True}}).encode(),
        b"",
        b"{}",
        b'{"dtype":"float32","prompts":[]}',
        b'{"dtype":"int4","prompts":[]}',
        changed(prompt_token_ids=[]),
        changed(token_ids=[1]),
        changed(token_ids=[-1, 2]),
        changed(token_ids=["1", "2"]),
        changed(logprobs=[0.5, 0.5]),
        changed(logprobs=[float("nan"), -1.0]),
        changed(base_logprobs=[]),
        changed(text="hello"),
    ],
)
def test_anything_else_has_a_problem(content: bytes) -> None:
    assert {problem.code for problem in golden_problems(content)} == {"golden_invalid"}


@given(st.binary(max_size=100))
def test_no_content_crashes_the_check(content: bytes) -> None:
    assert golden_problems(content)
