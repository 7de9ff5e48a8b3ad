"""Owns finding trl's fastest settings on a machine, by trying on a few steps.
Must not know our trainer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.training.measuring import MeasurementFailed, measure

_PACKED = {"per_device_train_batch_size": 1, "packing": True}


def fastest_settings(work: Path, dtype: str, command: Sequence[str], *, gpu: bool) -> dict[str, Any]:
    """Over SFTConfig: how rows are batched, what computes in bfloat16, and on GPUs whose kernels do."""
    search = _Search(work, command)
    start: dict[str, Any] = {"gradient_checkpointing": False, "bf16": False}
    if dtype == "bfloat16":
        start["model_init_kwargs"] = {"dtype": "bfloat16"}
    print("| trl's settings | tokens/s | peak GB |\n|---|---|---|")
    batched = _batched(start, gpu=gpu)
    best = search.fastest(batched) or search.fastest(
        {f"{name}, checkpointed": {**one, "gradient_checkpointing": True} for name, one in batched.items()}
    )
    if best is None:
        raise SystemExit("trl runs with none of these settings.")
    if dtype == "bfloat16":
        autocast = {**best, "bf16": True}
        only = {**autocast, "model_init_kwargs": {**autocast["model_init_kwargs"], "dtype": "float32"}}
        best = search.fastest({"the fastest again": best, "and autocast": autocast, "autocast only": only}) or best
    if gpu:
        liger, compiled = {**best, "use_liger_kernel": True}, {**best, "torch_compile": True}
        best = search.fastest({"the fastest again": best, "with Liger's kernels": liger, "compiled": compiled}) or best
    return best


def _batched(start: dict[str, Any], *, gpu: bool) -> dict[str, dict[str, Any]]:
    eight = {**start, "per_device_train_batch_size": 8}
    packed = {**start, "per_device_train_batch_size": 1, "packing": True}
    if not gpu:
        alone = {**start, "per_device_train_batch_size": 1}
        return {"a row at a time": alone, "eight rows, padded": eight, "packed": packed}
    flash = {**start.get("model_init_kwargs", {}), "attn_implementation": "kernels-community/flash-attn2"}
    return {
        "eight rows, padded": eight,
        "32 rows, padded": {**eight, "per_device_train_batch_size": 32},
        "packed": packed,
        "packed, flash attention": {**packed, "model_init_kwargs": flash},
    }


class _Search:
    """Tries settings on a few steps of a workload."""

    def __init__(self, work: Path, command: Sequence[str]) -> None:
        self._work = work
        self._command = command

    def fastest(self, candidates: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
        """Of the settings by name; None where memory was too small for all, or what they need is not there."""
        speeds = {}
        for name, settings in candidates.items():
            try:
                run = measure([*self._command, str(self._work), json.dumps(settings)], self._work)
            except MeasurementFailed as failure:
                print(f"| {name} | {failure.reason} | |", flush=True)
                continue
            print(f"| {name} | {run.speed:.0f} | {run.peak_bytes / 1e9:.2f} |", flush=True)
            speeds[name] = run.speed
        return candidates[max(speeds, key=lambda name: speeds[name])] if speeds else None
