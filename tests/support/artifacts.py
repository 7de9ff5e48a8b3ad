"""Owns small artifacts for tests: real safetensors bytes, PEFT configs, base models in object storage."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from tunesmith_server.core import Core
from tunesmith_server.registry import repository
from tunesmith_server.registry.catalogue import CatalogueEntry
from tunesmith_server.registry.manifest import ManifestFile, base_manifest, revision_id

BASE_ID = "toy-base"
BASE_SHAPES = {
    "model.embed_tokens.weight": (32, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
}


def safetensors_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32", fill: int = 0) -> bytes:
    """A safetensors file with the named tensors, every byte of which is `fill`."""
    width = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * width
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes([fill]) * position


def adapter_config(**changes: Any) -> dict[str, Any]:
    """The adapter_config.json of a plain LoRA adapter of rank 2 on the toy base model."""
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": BASE_ID,
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "up_proj"],
        "bias": "none",
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    return config | changes


def adapter_shapes(rank: int = 2) -> dict[str, tuple[int, ...]]:
    """Tensors of an adapter of this rank that fits the toy base model."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (out, width) in list(BASE_SHAPES.items())[1:]:
        module = name.removesuffix(".weight")
        shapes[f"base_model.model.{module}.lora_A.weight"] = (rank, width)
        shapes[f"base_model.model.{module}.lora_B.weight"] = (out, rank)
    return shapes


def golden() -> dict[str, Any]:
    """A golden.json of one prompt."""
    prompt = {
        "prompt_token_ids": [1, 2, 3],
        "token_ids": [4, 5],
        "logprobs": [-0.5, -0.25],
        "base_token_ids": [6],
        "base_logprobs": [-1.0],
    }
    return {"dtype": "float32", "prompts": [prompt]}


def adapter_files(fill: int = 0, **config: Any) -> dict[str, bytes]:
    """The files of an adapter by name; another `fill` gives another revision."""
    return {
        "adapter_model.safetensors": safetensors_bytes(adapter_shapes(), fill=fill),
        "adapter_config.json": json.dumps(adapter_config(**config)).encode(),
        "golden.json": json.dumps(golden()).encode(),
    }


def full_files(**config: Any) -> dict[str, bytes]:
    """The files of a fully tuned toy model by name."""
    return {
        "model.safetensors": safetensors_bytes(BASE_SHAPES),
        "config.json": json.dumps({"model_type": "llama"} | config).encode(),
        "golden.json": json.dumps(golden()).encode(),
    }


def declared(files: Mapping[str, bytes]) -> list[ManifestFile]:
    """What a run would say about these files."""
    return [ManifestFile(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()]


async def upload(core: Core, prefix: str, files: Mapping[str, bytes]) -> list[ManifestFile]:
    """Puts the files below the prefix, as a run does, and returns what it would say about them."""
    for path, content in files.items():
        await core.store.put_bytes(f"{prefix}/{path}", content)
    return declared(files)


async def publish_base_model(
    core: Core,
    *aliases: str,
    model_id: str = BASE_ID,
    context_length: int = 64,
    texts: Mapping[str, bytes] | None = None,
) -> str:
    """Makes a toy base model ready, in object storage and in the database, and returns its revision."""
    contents = dict(texts or {}) | {
        "config.json": json.dumps({"max_position_embeddings": context_length}).encode(),
        "model.safetensors": safetensors_bytes(BASE_SHAPES),
    }
    files = declared(contents)
    manifest = base_manifest(model_id, files)
    revision = revision_id(manifest)
    await upload(core, f"base_models/{revision}", contents | {"manifest.json": manifest})
    entry = CatalogueEntry(id=model_id, source="toy", aliases=aliases)
    async with core.database.write() as session:
        await repository.sync_base_model(session, entry, int(core.clock()))
        await session.flush()
        await repository.finish_import(
            session, model_id, "toy", revision=revision, files=tuple(files), context_length=context_length
        )
    return revision
