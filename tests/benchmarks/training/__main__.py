"""Measures the trainer against trl on this machine: the same rendered rows, weights, steps and learning rates.

.venv/bin/python -m tests.benchmarks.training [--data gsm8k|banking77] [--dtype float32|bfloat16] [--weights lora|full]
    [--model smollm2-135m|llama-1b|llama-8b] [--steps 8] [--seeds 1 2 3] [--defaults-in-float32] [--opponent PYTHON]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tests.benchmarks.training import bases, workload
from tests.benchmarks.training.measuring import WARM_UP, MeasurementFailed, Run, measure
from tests.benchmarks.training.tuning import fastest_settings
from tunesmith_trainer.machine import survey

HERE = Path(__file__).parent
CACHE = Path.home() / ".cache" / "tunesmith"
DATA = HERE.parents[3] / "shared" / "data"


def main() -> None:
    """Prints one table per kind of weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=workload.DATA, default="gsm8k")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: what the trainer chooses here")
    parser.add_argument("--weights", choices=["lora", "full"], action="append")
    parser.add_argument("--model", choices=bases.NAMES, default=bases.BUNDLED, help="the larger ones are for GPUs")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--defaults-in-float32",
        action="store_true",
        help="trl's defaults but for bfloat16, where the processor lacks it",
    )
    parser.add_argument("--opponent", type=Path, help="Python of an environment with trl; default: one is made")
    arguments = parser.parse_args()
    machine = survey()
    dtype = arguments.dtype or machine.dtype
    opponent = arguments.opponent or _opponent(gpu=machine.is_gpu)
    base, size = bases.folder_of(arguments.model, CACHE), workload.SIZES["cuda" if machine.is_gpu else "cpu"]
    defaults = {"bf16": False} if arguments.defaults_in_float32 else {}
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as folder:
        for weights in arguments.weights or ["lora", "full"]:
            works = []
            for seed in arguments.seeds:
                works.append(Path(folder) / f"{weights}-{seed}.json")
                workload.write(works[-1], base, DATA, size, arguments.data, weights, arguments.steps, seed)
            print(f"\n## {arguments.model}, {arguments.data}, {weights}, {dtype}, {machine.device}\n")
            _compare(works, dtype, opponent, defaults, gpu=machine.is_gpu)


def _opponent(*, gpu: bool) -> Path:
    """Python of trl's own environment, made on first use beside the caches."""
    folder = CACHE / "benchmarks" / ("trl-cuda" if gpu else "trl")
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    version = torch.__version__.partition("+")[0]
    subprocess.run([*install, f"torch=={version}"], check=True)  # first: what needs it takes the build that is there
    requirements = "requirements-opponent-cuda.txt" if gpu else "requirements-opponent.txt"
    subprocess.run([*install, "-r", str(HERE / requirements)], check=True)
    return python


def _compare(works: Sequence[Path], dtype: str, opponent: Path, defaults: dict[str, Any], *, gpu: bool) -> None:
    ours = [sys.executable, "-m", "tests.benchmarks.training.ours"]
    theirs = [str(opponent), str(HERE / "opponent.py")]
    short = works[0].with_name("short.json")
    workload.cut(works[0], short, WARM_UP + 2)
    settings = fastest_settings(short, dtype, theirs, gpu=gpu)
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
            try:
                runs[name].append(measure(command(str(work)), work))
            except MeasurementFailed as failure:
                if name != "trl, defaults":  # which may need more memory than there is
                    raise
                print(f"\n{name}: {failure.reason}")
    _print_table(runs)
    _print_losses(runs)


def _print_table(runs: dict[str, list[Run]]) -> None:
    tuned = median(run.speed for run in runs["trl, tuned"])
    defaults = runs["trl, defaults"][0].speed if runs["trl, defaults"] else nan
    print("\n| | tokens/s (each seed) | to trl tuned | to trl's defaults | peak GB | to the end of step 1 |")
    print("|---|---|---|---|---|---|")
    for name, measured in runs.items():
        if not measured:
            continue
        speed = median(run.speed for run in measured)
        each = ", ".join(f"{run.speed:.0f}" for run in measured)
        peak = median(run.peak_bytes for run in measured) / 1e9
        start = median(run.cold_start for run in measured)
        ratios = f"{speed / tuned:.2f} | {speed / defaults:.2f}"
        print(f"| {name} | {speed:.0f} ({each}) | {ratios} | {peak:.2f} | {start:.0f} s |")
    ours = runs["ours, compiled"][0]
    print(f"\nOurs computed in {ours.way}.")
    if ours.used:
        shares = (f"{name} {median(run.speed for run in each) * ours.used:.0%}" for name, each in runs.items() if each)
        print(f"Of the GPU's products (MFU): {', '.join(shares)}.")


def _print_losses(runs: dict[str, list[Run]]) -> None:
    """The first seed's losses beside each other, and the largest difference to trl tuned over all seeds."""
    names = [name for name, measured in runs.items() if measured]
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
