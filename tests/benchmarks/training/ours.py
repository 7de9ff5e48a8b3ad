"""Trains on a workload with the trainer's own parts and prints a measurement as JSON: one process, one measurement.

.venv/bin/python -m tests.benchmarks.training.ours WORKLOAD {float32|bfloat16} {eager|compiled} [profile]
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import numpy as np  # noqa: E402  what is imported from here on is part of the cold start
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from tests.support.onlooker import Onlooker  # noqa: E402
from tunesmith_trainer import allocator, compilation, lora  # noqa: E402
from tunesmith_trainer.checkpoint import Progress  # noqa: E402
from tunesmith_trainer.config import TrainingConfig  # noqa: E402
from tunesmith_trainer.data import indices_of_step  # noqa: E402
from tunesmith_trainer.loop import Loop, Metrics  # noqa: E402
from tunesmith_trainer.model import choose_hardware, load  # noqa: E402
from tunesmith_trainer.optim import Optimizer  # noqa: E402
from tunesmith_trainer.rendering import Example  # noqa: E402


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
    config = _config(work)
    allocator.keep_freed_memory()
    model = load(Path(work["base"]), choose_hardware(dtype))
    if not config.full_weights:
        lora.attach(model, config.lora_rank, config.lora_alpha, config.seed)
    if is_compiled and (refused := compilation.compile_layers(model, Path(sys.argv[1]).parent / "compiled")):
        raise SystemExit(refused)
    examples = _in_the_order_of_the_loop(work["steps"], config.seed)
    watch = Watch()
    optimizer = Optimizer(model.named_parameters())
    loop = Loop(model, optimizer, config, examples, examples[:1], work["pack_tokens"], watch)
    with _profiled() if "profile" in sys.argv else nullcontext():
        loop.run(Progress(0, 0, dtype, []))
    print(
        json.dumps(
            {
                "seconds": [after - before for before, after in pairwise(watch.stamps)],
                "losses": [metrics.train_loss for metrics in watch.metrics],
                "cold_start": watch.stamps[1] - STARTED,
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


@contextmanager
def _profiled() -> Iterator[None]:
    """Prints to standard error where the time of all steps went."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        yield
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=20), file=sys.stderr)


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
