"""Measures what it costs to come in at a gateway that does not have the model, beside the one that has it.

.venv/bin/python -m tests.benchmarks.gateway.across [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path

from tests.benchmarks.gateway.load import Load, Outcome, Place, run
from tests.inference.gateway import until
from tests.support.several_gateways import API_KEY, RunningGateway, SeveralGateways, several_gateways

MODEL = "ft:1"
PACED = "fault:slow one two three"
LOADS = (Load(1, 10, 10, PACED), Load(50, 200, 20, PACED))
FLOOD = Load(50, 400, 20, "one two three")


def main() -> None:
    """Prints a line for each load and place: milliseconds, and for the last load tokens per second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    asyncio.run(_measure(parser.parse_args().rounds))


async def _measure(rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as name:
        folder = Path(name)
        async with several_gateways(folder, f"sqlite:///{folder / 'tunesmith.db'}", control_planes=1) as running:
            await running.until_they_know_each_other()
            await running.publish(MODEL, "one")
            await until(lambda: _is_loaded(running))
            first, second = running.gateways
            has, asks = (first, second) if await first.adapters() else (second, first)
            places = [_place("the gateway that has it", has), _place("the other", asks)]
            print("| load | place | first p50 | first p99 | whole p50 | whole p99 | tokens/s |")
            print("|---|---|---|---|---|---|---|")
            for load in (*LOADS, FLOOD):
                await _compare(places, load, rounds)


async def _compare(places: list[Place], load: Load, rounds: int) -> None:
    """Each place under the same load in turn, so that a slow minute of the machine meets both."""
    found: dict[str, list[Outcome]] = {place.name: [] for place in places}
    for _ in range(rounds):
        for place in places:
            await run(place, Load(load.streams, load.streams, 2, "one two three"))
            found[place.name].append(await run(place, load))
    for name, outcomes in found.items():
        figures = [
            statistics.median(outcome.percentile(share, what) for outcome in outcomes)
            for what in ("first", "whole")
            for share in (0.5, 0.99)
        ]
        speed = statistics.median(load.total * load.tokens / outcome.seconds for outcome in outcomes)
        pace = "as fast as taken" if load is FLOOD else "paced"
        shown = " | ".join(f"{figure:.1f}" for figure in figures)
        print(f"| {load.streams} streams, {pace} | {name} | {shown} | {speed:.0f} |", flush=True)


def _place(name: str, gateway: RunningGateway) -> Place:
    return Place(name, gateway.port, API_KEY, MODEL)


async def _is_loaded(running: SeveralGateways) -> bool:
    return any([await each.adapters() for each in running.gateways])


if __name__ == "__main__":
    main()
