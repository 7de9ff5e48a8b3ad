"""Each rule that an engine applies to adapters has its code, and plain adapters pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.artifacts import BASE_ID, BASE_SHAPES, adapter_config, adapter_shapes
from tunesmith_server.registry.adapter_rules import config_problems, tensor_problems
from tunesmith_server.registry.safetensors_header import Tensor

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def codes(config: object, max_rank: int = 8) -> set[str]:
    return {problem.code for problem in config_problems(config, base_model_id=BASE_ID, max_rank=max_rank)}


def tensor_codes(changes: dict[str, Tensor | None], base: dict[str, Any] | None = None, **config: Any) -> set[str]:
    tensors = {name: Tensor("F32", shape) for name, shape in adapter_shapes().items()} | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    problems = tensor_problems(adapter_config(**config), kept, BASE_SHAPES if base is None else base)
    return {problem.code for problem in problems}


def test_a_plain_adapter_passes() -> None:
    assert codes(adapter_config()) == set()
    assert tensor_codes({}) == set()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"r": 9}, "adapter_rank_too_high"),
        ({"rank_pattern": {"q_proj": 9}}, "adapter_rank_too_high"),
        ({"r": 0}, "adapter_rank_invalid"),
        ({"r": True}, "adapter_rank_invalid"),
        ({"r": None}, "adapter_rank_invalid"),
        ({"r": "2"}, "adapter_rank_invalid"),
        ({"rank_pattern": {"q_proj": 0}}, "adapter_rank_invalid"),
        ({"rank_pattern": {"(a+)+$": 2}}, "adapter_pattern_invalid"),
        ({"alpha_pattern": ["q_proj"]}, "adapter_pattern_invalid"),
        ({"alpha_pattern": {"." * 70_000: 2}}, "adapter_pattern_invalid"),
        ({"lora_alpha": 0}, "adapter_alpha_invalid"),
        ({"lora_alpha": math.nan}, "adapter_alpha_invalid"),
        ({"lora_alpha": math.inf}, "adapter_alpha_invalid"),
        ({"lora_alpha": None}, "adapter_alpha_invalid"),
        ({"alpha_pattern": {"q_proj": -1}}, "adapter_alpha_invalid"),
        ({"use_dora": True}, "adapter_uses_dora"),
        ({"bias": "all"}, "adapter_has_bias"),
        ({"lora_bias": True}, "adapter_feature_unsupported"),
        ({"alora_invocation_tokens": [1]}, "adapter_feature_unsupported"),
        ({"layer_replication": [[0, 1]]}, "adapter_feature_unsupported"),
        ({"use_bdlora": {"a": 1}}, "adapter_feature_unsupported"),
        ({"use_qalora": True}, "adapter_feature_unsupported"),
        ({"modules_to_save": ["lm_head"]}, "adapter_saves_modules"),
        ({"init_lora_weights": "pissa"}, "adapter_init_unsupported"),
        ({"init_lora_weights": "olora"}, "adapter_init_unsupported"),
        ({"init_lora_weights": 3}, "adapter_init_unsupported"),
        ({"peft_type": "IA3"}, "adapter_type_unsupported"),
        ({"base_model_name_or_path": "/models/toy"}, "adapter_base_mismatch"),
        ({"target_modules": "all-linear"}, "adapter_targets_invalid"),
        ({"target_modules": []}, "adapter_targets_invalid"),
        ({"target_modules": [1]}, "adapter_targets_invalid"),
    ],
)
def test_each_violation_of_the_config_has_its_code(changes: dict[str, Any], code: str) -> None:
    assert codes(adapter_config(**changes)) == {code}


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "Gaussian", "eva", "orthogonal", "mica", "lora_ga"])
def test_inits_that_leave_the_base_alone_pass(init: object) -> None:
    assert codes(adapter_config(init_lora_weights=init)) == set()


def test_every_violation_is_told_at_once() -> None:
    assert codes(adapter_config(r=64, use_dora=True, bias="all")) == {
        "adapter_rank_too_high",
        "adapter_uses_dora",
        "adapter_has_bias",
    }


@given(rank=st.integers(1, 64), pattern=st.dictionaries(st.sampled_from(["q_proj", "up_proj"]), st.integers(1, 64)))
def test_the_highest_rank_decides(rank: int, pattern: dict[str, int]) -> None:
    refused = codes(adapter_config(r=rank, rank_pattern=pattern), max_rank=32) == {"adapter_rank_too_high"}

    assert refused == (max(rank, *pattern.values(), 0) > 32)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(adapter_config())), JSON_VALUES) | JSON_VALUES)
def test_no_config_crashes_the_rules(changes: Any) -> None:
    config = (
        adapter_config(**changes) if isinstance(changes, dict) and set(changes) <= set(adapter_config()) else changes
    )

    if not codes(config):
        tensor_problems(config, {name: Tensor("F32", shape) for name, shape in adapter_shapes().items()}, BASE_SHAPES)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": Tensor("F32", (2, 8))}, "adapter_tensor_name"),
        ({f"{Q}.lora_magnitude_vector": Tensor("F32", (8,))}, "adapter_tensor_name"),
        ({"base_model.model.lm_head.weight": Tensor("F32", (8, 8))}, "adapter_tensor_name"),
        ({f"{Q}.lora_A.weight": Tensor("I8", (2, 8))}, "adapter_tensor_dtype"),
        ({f"{Q}.lora_A.weight": None}, "adapter_tensor_unpaired"),
        ({f"{Q}.lora_A.weight": Tensor("F32", (3, 8))}, "adapter_rank_mismatch"),
        ({f"{Q}.lora_B.weight": Tensor("F32", (8, 3))}, "adapter_rank_mismatch"),
        ({f"{Q}.lora_B.weight": Tensor("F32", (8,))}, "adapter_rank_mismatch"),
        ({f"{Q}.lora_A.weight": Tensor("F32", (2, 7))}, "adapter_shape_mismatch"),
        ({f"{Q}.lora_A.weight": None, f"{Q}.lora_B.weight": None}, "adapter_target_missing"),
    ],
)
def test_each_violation_of_the_tensors_has_its_code(changes: dict[str, Tensor | None], code: str) -> None:
    assert tensor_codes(changes) == {code}


def test_tensors_of_other_modules_are_refused() -> None:
    assert tensor_codes({}, target_modules=["q_proj"]) == {"adapter_target_unlisted"}


def test_modules_that_the_base_does_not_have_are_refused() -> None:
    base = {name: shape for name, shape in BASE_SHAPES.items() if "q_proj" not in name}

    assert tensor_codes({}, base=base) == {"adapter_module_unknown"}


def test_ranks_by_module_are_followed() -> None:
    pair = {f"{Q}.lora_A.weight": Tensor("F32", (5, 8)), f"{Q}.lora_B.weight": Tensor("F32", (8, 5))}

    assert tensor_codes(dict(pair), rank_pattern={"q_proj": 5}) == set()
    assert tensor_codes(dict(pair)) == {"adapter_rank_mismatch"}


@pytest.mark.parametrize(
    ("key", "fits"),
    [
        ("q.proj", True),
        ("self.attn.q_proj", True),
        ("model.layers...self_attn.q_proj", True),
        (".elf_attn.q_proj", True),
        ("_proj", False),
        ("elf_attn.q_proj", False),
        ("x.model.layers.0.self_attn.q_proj", False),
        (".model.layers.0.self_attn.q_proj", False),
    ],
)
def test_dots_of_a_pattern_are_any_character_as_to_peft(key: str, fits: bool) -> None:
    pair = {f"{Q}.lora_A.weight": Tensor("F32", (5, 8)), f"{Q}.lora_B.weight": Tensor("F32", (8, 5))}

    assert tensor_codes(dict(pair), rank_pattern={key: 5}) == (set() if fits else {"adapter_rank_mismatch"})


@pytest.mark.parametrize("prefix", ["", "language_model.model."])
def test_base_weights_may_be_published_under_another_prefix(prefix: str) -> None:
    base = {prefix + name.removeprefix("model."): shape for name, shape in BASE_SHAPES.items()}

    assert tensor_codes({}, base=base) == set()


def test_transposed_base_weights_are_understood() -> None:
    base = {name: shape[::-1] for name, shape in BASE_SHAPES.items()}

    assert tensor_codes({}, base=base, fan_in_fan_out=True) == set()
    assert tensor_codes({}, base=base) == {"adapter_shape_mismatch"}
