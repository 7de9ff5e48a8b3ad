"""Trains on a workload with the trainer's own parts and prints a measurement as JSON: one process, one measurement.

.venv/bin/python -m tests.benchmarks.training.ours WORKLOAD {float32|bfloat16} {eager|compiled} [profile]
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as runs do, before torch looks

import numpy as np  # noqa: E402  what is imported from here on is part of the cold start
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from tests.support.onlooker import Onlooker  # noqa: E402
from tunesmith_trainer import allocator, compilation, lora  # noqa: E402
from tunesmith_trainer.base_shapes import BaseShapes, build_empty, read_shapes  # noqa: E402
from tunesmith_trainer.checkpoint import Progress  # noqa: E402
from tunesmith_trainer.config import TrainingConfig  # noqa: E402
from tunesmith_trainer.data import indices_of_step  # noqa: E402
from tunesmith_trainer.example import Example  # noqa: E402
from tunesmith_trainer.loop import Loop, Metrics  # noqa: E402
from tunesmith_trainer.machine import memory_of, survey  # noqa: E402
from tunesmith_trainer.memory_ladder import Rung, ladder_of  # noqa: E402
from tunesmith_trainer.model import Hardware, choose_hardware, load, load_in_four_bits  # noqa: E402
from tunesmith_trainer.optim import Optimizer  # noqa: E402
from tunesmith_trainer.recompute import recompute  # noqa: E402
from tunesmith_trainer.time_plan import ADAPTERS, FULL, operations  # noqa: E402


class Watch(Onlooker):
    """Notes when each step ended."""

    def __init__(self) -> None:
        super().__init__()
        self.stamps = [time.perf_counter()]

    def step_done(self, metrics: Metrics, remaining_seconds: float) -> bool:
        """As always, with the time."""
        self.stamps.append(time.perf_counter())
        return super().step_done(metrics, remaining_seconds)


def main() -> None:
    """Trains and prints."""
    work = json.loads(Path(sys.argv[1]).read_text())
    dtype, is_compiled = sys.argv[2], sys.argv[3] == "compiled"
    config, hardware = _config(work), choose_hardware(dtype)
    gpu = hardware.device.type == "cuda"
    examples = _in_the_order_of_the_loop(work["steps"], config.seed)
    shapes = read_shapes(build_empty(Path(work["base"])))
    rung = _rung(shapes, config, examples, hardware)
    if not gpu or rung.offloaded:
        allocator.keep_freed_memory()
    model = _model(work, config, hardware, rung)
    if is_compiled and (refused := compilation.compile_layers(model, Path(sys.argv[1]).parent / "compiled")):
        raise SystemExit(refused)
    watch = Watch()
    optimizer = Optimizer(model.named_parameters(), offloaded=rung.offloaded)
    recompute(model, rung.recomputed_layers)
    ahead = 1 if gpu else 0
    loop = Loop(model, optimizer, config, examples, examples[:1], rung.pack_tokens, watch, steps_ahead=ahead)
    with _profiled(gpu=gpu) if "profile" in sys.argv else nullcontext():
        loop.run(Progress(0, 0, dtype, []))
    print(
        json.dumps(
            {
                "seconds": [after - before for before, after in pairwise(watch.stamps)],
                "losses": [metrics.train_loss for metrics in watch.metrics],
                "cold_start": watch.stamps[1] - STARTED,
                "peak_bytes": _peak_bytes(gpu=gpu),
                "way": str(rung),
                "used": _used(shapes, config, examples) if gpu else None,
            }
        )
    )


def _rung(shapes: BaseShapes, config: TrainingConfig, examples: list[Example], hardware: Hardware) -> Rung:
    """The way of computing that a job would take here."""
    ladder = ladder_of(
        shapes,
        config,
        examples,
        examples[:1],
        hardware.dtype,
        hardware.pack_tokens,
        main_memory=memory_of(torch.device("cpu"))[1],
        gpu=hardware.device.type == "cuda",
        merged=False,
    )
    return ladder.choose(*memory_of(hardware.device)).rung


def _model(work: dict[str, Any], config: TrainingConfig, hardware: Hardware, rung: Rung) -> nn.Module:
    base = Path(work["base"])
    model = load_in_four_bits(base, hardware) if rung.in_four_bits else load(base, hardware)
    if not config.full_weights:
        lora.attach(model, config.lora_rank, config.lora_alpha, config.seed)
    return model


def _peak_bytes(*, gpu: bool) -> int:
    if gpu:
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _used(shapes: BaseShapes, config: TrainingConfig, examples: list[Example]) -> float | None:
    """Of the GPU's products of a second, as its maker gives them, what a token needs: times tokens/s it is the MFU."""
    flops = survey().flops
    needed = operations(shapes, examples, FULL if config.full_weights else ADAPTERS)
    return flops and needed / sum(len(example.token_ids) for example in examples) / flops


@contextmanager
def _profiled(*, gpu: bool) -> Iterator[None]:
    """Prints to standard error where the time of all steps went."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as recorded:
        yield
    order = "self_cuda_time_total" if gpu else "self_cpu_time_total"
    print(recorded.key_averages().table(sort_by=order, row_limit=20), file=sys.stderr)


def _config(work: dict[str, Any]) -> TrainingConfig:
    steps = len(work["steps"])
    return TrainingConfig(
        method="supervised",
        full_weights=work["weights"] == "full",
        seed=work["seed"],
        n_epochs=1,
        batch_size=len(work["steps"][0]),
        learning_rate_multiplier=1.0,
        learning_rate=work["learning_rates"][0],
        warmup_steps=1,
        total_steps=steps,
        steps_per_pass=steps + 1,  # so that no pass ends: neither evaluation nor saving is measured
        lora_rank=work["lora_rank"],
        lora_alpha=work["lora_alpha"],
        lora_targets=(),
        use_rslora=False,
        beta=0.1,
        early_stopping_patience=None,
        context_length=work["pack_tokens"],
    )


def _in_the_order_of_the_loop(steps: list[Any], seed: int) -> list[Example]:
    """Lays the rows so that the loop's own shuffling deals out the workload's steps."""
    per_step = len(steps[0])
    laid: list[Example | None] = [None] * (len(steps) * per_step)
    for number, step in enumerate(steps, start=1):
        for index, row in zip(indices_of_step(len(laid), per_step, seed, number), step, strict=True):
            laid[index] = Example(index + 1, np.array(row["input_ids"], np.int32), np.array(row["labelled"], np.bool_))
    return [one for one in laid if one is not None]


if __name__ == "__main__":
    main()
