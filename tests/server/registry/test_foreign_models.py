"""A model is checked as it is uploaded, all that is wrong is told at once, and no tensor is loaded for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.archives import tar_of
from tests.support.artifacts import BASE_SHAPES, adapter_config, adapter_shapes, safetensors_bytes
from tunesmith_server.registry.foreign_models import model_problems

WEIGHTS = "adapter_model.safetensors"


def adapter(**config: Any) -> dict[str, bytes]:
    """The files of an adapter as PEFT writes it, with settings of its config replaced."""
    settings = adapter_config(base_model_name_or_path="/home/somebody/models/base", **config)
    return {"adapter_config.json": json.dumps(settings).encode(), WEIGHTS: safetensors_bytes(adapter_shapes())}


def whole(**config: Any) -> dict[str, bytes]:
    """The files of a whole model."""
    settings = {"model_type": "llama"} | config
    return {"config.json": json.dumps(settings).encode(), "model.safetensors": safetensors_bytes(BASE_SHAPES)}


@pytest.fixture
def problems(tmp_path: Path) -> Any:
    """What is found wrong with an archive of these files."""

    def check(files: Mapping[str, bytes]) -> list[str]:
        path = tmp_path / "model.tar"
        path.write_bytes(tar_of(files))
        return [problem.code for problem in model_problems(path, max_lora_rank=8)]

    return check


@pytest.mark.parametrize(
    "files",
    [
        adapter(),
        adapter(target_modules="all-linear"),
        adapter(target_modules=r".*\.q_proj", layers_to_transform=[0]),
        adapter(r=1, rank_pattern={"q_proj": 2, "up_proj": 2}),
        adapter() | {"tokenizer.json": b"{}", "generation_config.json": b"{}"},
        whole(),
        whole() | {"tokenizer.json": b"{}", "chat_template.jinja": b"x"},
        {
            "config.json": b"{}",
            "model-00001-of-00002.safetensors": safetensors_bytes({"a": (2, 2)}, "BF16"),
            "model-00002-of-00002.safetensors": safetensors_bytes({"b": (2, 2)}, "BF16"),
            "model.safetensors.index.json": b"{}",
        },
    ],
)
def test_what_peft_and_transformers_write_passes(problems: Any, files: dict[str, bytes]) -> None:
    assert problems(files) == []


@pytest.mark.parametrize(
    ("files", "codes"),
    [
        ({}, ["file_missing"]),
        ({"model.safetensors": safetensors_bytes(BASE_SHAPES)}, ["file_missing"]),
        ({"adapter_config.json": b"{}"}, ["file_missing"]),
        ({"config.json": b"{}"}, ["file_missing"]),
        (adapter() | {"optimizer.pt": b"x"}, ["file_not_allowed"]),
        (adapter() | {"adapter_model.bin": b"x"}, ["file_not_allowed"]),
        (adapter() | {"model.py": b"x"}, ["file_not_allowed"]),
        (adapter() | {"golden.json": b"{}"}, ["file_not_allowed"]),
        (adapter() | {"model.safetensors": safetensors_bytes(BASE_SHAPES)}, ["file_not_allowed"]),
        (adapter() | {"vocab.json": b""}, ["size_invalid"]),
        (adapter() | {WEIGHTS: b"x"}, ["safetensors_invalid"]),
        (adapter() | {WEIGHTS: b"\xff" * 8}, ["safetensors_invalid"]),
        (adapter() | {WEIGHTS: safetensors_bytes({})}, ["weights_empty"]),
        (adapter() | {WEIGHTS: safetensors_bytes({"lm_head.weight": (2, 2)})}, ["adapter_tensor_name"]),
        (adapter() | {WEIGHTS: safetensors_bytes(adapter_shapes(), "I64")}, ["adapter_tensor_dtype"] * 4),
        (
            adapter() | {WEIGHTS: safetensors_bytes(dict(list(adapter_shapes().items())[1:]))},
            ["adapter_tensor_unpaired"],
        ),
        (adapter(r=3), ["adapter_rank_mismatch"] * 2),
        (adapter(r=9), ["adapter_rank_too_high"]),
        (adapter(use_dora=True, bias="all"), ["adapter_uses_dora", "adapter_has_bias"]),
        (adapter(modules_to_save=["lm_head"]), ["adapter_saves_modules"]),
        (adapter(init_lora_weights="pissa"), ["adapter_init_unsupported"]),
        (adapter(rank_pattern={"(a+)+$": 2}), ["adapter_pattern_invalid"]),
        (adapter(peft_type="IA3"), ["adapter_type_unsupported"]),
        (adapter() | {"adapter_config.json": b"[" * 100_000}, ["adapter_config_invalid"]),
        (adapter() | {"adapter_config.json": b" " * 1_100_000}, ["adapter_config_invalid"]),
        (whole() | {"config.json": b"[]"}, ["config_invalid"]),
        (whole(auto_map={"AutoModel": "code.Model"}), ["config_has_code"]),
        (whole() | {"model.safetensors": safetensors_bytes(BASE_SHAPES, "I64")}, ["weights_dtype"]),
        (
            {"config.json": b"{}"}
            | {f"model-0000{n}-of-00002.safetensors": safetensors_bytes(BASE_SHAPES) for n in (1, 2)},
            ["tensor_repeated"],
        ),
    ],
)
def test_each_rule_has_its_code(problems: Any, files: dict[str, bytes], codes: list[str]) -> None:
    assert problems(files) == codes


def test_headers_are_read_within_bounds(problems: Any) -> None:
    """Tensors without data cost their sender nothing."""
    shards = {
        f"model-0000{shard}-of-00003.safetensors": safetensors_bytes({f"{shard}.{n}": (0,) for n in range(30_000)})
        for shard in range(1, 4)
    }
    assert problems({"config.json": b"{}"} | shards) == ["safetensors_invalid"]
    del shards["model-00003-of-00003.safetensors"]
    assert problems({"config.json": b"{}"} | shards) == []


def test_what_is_no_archive_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "model.tar").write_bytes(b"\x1f\x8b" * 300)
    assert [problem.code for problem in model_problems(tmp_path / "model.tar", 8)] == ["archive_invalid"]


def test_no_more_than_a_hundred_problems_are_listed(problems: Any) -> None:
    assert len(problems(adapter() | {WEIGHTS: safetensors_bytes({f"t{n}": (1,) for n in range(150)})})) == 100
