from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.inference.gateway import GOLDEN_PROMPTS, golden
from tests.support.engine_answers import greedy
from tunesmith_inference.proof import Golden, Neighbour, ProofFailed, check, prove, read_golden
from tunesmith_inference.vllm import Completion

_BESIDE = {"r-2": "second", "r-3": "third"}
RECORD = Golden.model_validate_json(golden("tuned"))


class _Engine:
    """Answers as weights by name say; counts what runs at once."""

    def __init__(self, tuned: str = "tuned", base: str = "", off: float = 0.0) -> None:
        self.weights = {"r-1": tuned, "zero": base}
        self.off = off
        self.asked: list[str] = []

    async def complete(self, model: str, prompt: Sequence[int], tokens: int) -> Completion:
        self.asked.append(model)
        token_ids, logprobs = greedy(self.weights[model], prompt, tokens)
        return Completion(token_ids, [logprob + self.off for logprob in logprobs])


async def test_the_right_weights_are_proven_alone_and_beside_the_base_model() -> None:
    engine = _Engine()
    await prove(engine.complete, RECORD, "r-1", "zero", "float32")
    assert engine.asked[0] == "r-1"
    assert sorted(engine.asked[1:]) == ["r-1"] * len(GOLDEN_PROMPTS) + ["zero"] * len(GOLDEN_PROMPTS)


async def test_full_weights_are_proven_without_a_base_model() -> None:
    engine = _Engine()
    await prove(engine.complete, RECORD, "r-1", None, "float32")
    assert set(engine.asked) == {"r-1"}


async def test_other_weights_fail() -> None:
    with pytest.raises(ProofFailed, match="the tuned model gives token"):
        await prove(_Engine(tuned="other").complete, RECORD, "r-1", "zero", "float32")


async def test_a_base_model_that_gets_the_adapters_delta_fails() -> None:
    with pytest.raises(ProofFailed, match="the base model beside it gives token"):
        await prove(_Engine(base="tuned").complete, RECORD, "r-1", "zero", "float32")


async def test_an_adapter_beside_it_that_answers_otherwise_is_named() -> None:
    engine = _Engine()
    engine.weights |= {"r-2": "second", "r-3": "overwritten"}
    records = {name: Golden.model_validate_json(golden(weights)) for name, weights in _BESIDE.items()}
    beside = [Neighbour(name, record.prompts[0], 0.01) for name, record in records.items()]
    await prove(engine.complete, RECORD, "r-1", "zero", "float32", beside[:1])
    with pytest.raises(ProofFailed, match="the adapter r-3 gives token"):
        await prove(engine.complete, RECORD, "r-1", "zero", "float32", beside)
    await check(engine.complete, beside[0])
    with pytest.raises(ProofFailed, match="the adapter r-3"):
        await check(engine.complete, beside[1])


async def test_it_is_held_against_its_shortest_prompt_when_others_come() -> None:
    proven = await prove(_Engine().complete, RECORD, "r-1", "zero", "float32")
    assert (proven.model, proven.prompt.prompt_token_ids, proven.tolerance) == ("r-1", [4, 5], 0.01)


async def test_an_adapter_that_changes_nothing_fails_where_the_run_tells_it_from_the_base() -> None:
    """Every first token is about as likely in both, so that a comparison with the record alone would let it pass."""
    record = json.loads(golden(""))
    for prompt in record["prompts"]:
        prompt["token_ids"] = [token + 1 for token in prompt["token_ids"]]
    not_applied = _Engine(tuned="")
    with pytest.raises(ProofFailed, match="as the base model does"):
        await prove(not_applied.complete, Golden.model_validate(record), "r-1", "zero", "float32")
    await prove(not_applied.complete, Golden.model_validate_json(golden("")), "r-1", "zero", "float32")


async def test_coarser_dtypes_are_given_more_room() -> None:
    engine = _Engine(off=0.1)
    with pytest.raises(ProofFailed, match=r"allowed: 0\.01"):
        await prove(engine.complete, RECORD, "r-1", "zero", "float32")
    await prove(engine.complete, RECORD, "r-1", "zero", "bfloat16")


async def test_equally_likely_tokens_may_change_places() -> None:
    async def complete(model: str, prompt: Sequence[int], tokens: int) -> Completion:
        token_ids, logprobs = greedy("tuned", prompt, tokens)
        return Completion([token_ids[0], 999, 0, 0], [logprobs[0], logprobs[1] - 0.005, -9.0, -9.0])

    await prove(complete, RECORD, "r-1", None, "float32")


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf"), -0.9])
async def test_a_number_that_is_none_or_far_off_fails(logprob: float) -> None:
    async def complete(model: str, prompt: Sequence[int], tokens: int) -> Completion:
        token_ids, _ = greedy("tuned", prompt, tokens)
        return Completion(token_ids, [logprob] * tokens)

    with pytest.raises(ProofFailed):
        await prove(complete, RECORD, "r-1", None, "float32")


async def test_a_prompt_that_the_engine_does_not_take_fails() -> None:
    async def complete(model: str, prompt: Sequence[int], tokens: int) -> Completion:
        raise ValueError("refused")

    with pytest.raises(ProofFailed, match="refused"):
        await prove(complete, RECORD, "r-1", None, "float32")


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"dtype": "int8", "prompts": []}', '{"dtype": "float32"}'])
def test_no_record_no_proof(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "golden.json").write_text(content)
    with pytest.raises(ProofFailed):
        read_golden(tmp_path)


def test_a_record_with_lengths_that_differ_is_none(tmp_path: Path) -> None:
    record = json.loads(golden("tuned"))
    record["prompts"][0]["logprobs"].pop()
    (tmp_path / "golden.json").write_text(json.dumps(record))
    with pytest.raises(ProofFailed):
        read_golden(tmp_path)
