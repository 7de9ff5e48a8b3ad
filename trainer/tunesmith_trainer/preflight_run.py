"""Owns the course of a preflight run: data, adapter, memory, time, and what is reported of them.
Must not know how any of them is told."""

from collections.abc import Callable
from pathlib import Path

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer import workspace
from tunesmith_trainer.adapter_check import adapter_problems
from tunesmith_trainer.base_shapes import build_empty, read_shapes
from tunesmith_trainer.delivery import deliver
from tunesmith_trainer.errors import BadData, Problem
from tunesmith_trainer.findings import Findings
from tunesmith_trainer.machine import Machine, survey
from tunesmith_trainer.memory_ladder import TIGHT, Ladder, ladder_of
from tunesmith_trainer.memory_plan import Plan, gib
from tunesmith_trainer.preflight import Prepared
from tunesmith_trainer.preflight_report import (
    completion,
    data_report,
    wire_choice,
    wire_findings,
    wire_memory,
    write_rejects,
)
from tunesmith_trainer.reporter import Reporter
from tunesmith_trainer.time_plan import expected_seconds

_MARGIN = 1.3  # the prediction is within 30 % of what was measured: beyond that, a run cannot fit


def run_preflight(
    spec: pb.TrainingSpec,
    base: Path,
    cache: Path,
    work: Path,
    reporter: Reporter,
    look: Callable[[], Machine] = survey,
) -> None:
    """Looks for everything that is wrong with a job and reports all of it. Raises BadData when it cannot be trained."""

    def watch(done: int, rows: int) -> None:
        reporter.check()
        reporter.report(phase="validating", step=done, total_steps=rows)

    examined = workspace.examine_run(spec, base, cache, work, watch)
    findings, prepared = examined.findings, examined.prepared
    report = data_report(examined)
    if prepared is not None:
        _foresee(base, prepared, look(), findings, report, devices=max(1, spec.devices))
    report.findings.extend(wire_findings(findings))
    if findings.rejects:
        write_rejects(findings, work / "rejects")
        (rejects,) = deliver(work / "rejects", "", reporter)
        report.rejects.CopyFrom(rejects)
    reporter.attach(report)
    if prepared is None or findings.problems():
        raise BadData(*findings.problems())
    reporter.complete_preflight(completion(prepared, findings))


def _foresee(
    base: Path, prepared: Prepared, machine: Machine, findings: Findings, report: pb.PreflightReport, *, devices: int
) -> None:
    """What the run would be like: will its result be served, does it fit, how long does it take."""
    config = prepared.config
    empty = build_empty(base)
    shapes = read_shapes(empty)
    if not config.full_weights:
        for problem in adapter_problems(base, empty, config, merged=prepared.merged):
            findings.add(problem)
    examples = [*prepared.training, *prepared.evaluation]
    machine = machine.for_each_of(devices)
    ladder = ladder_of(shapes, config, examples, machine.dtype, machine.pack_tokens, gpu=machine.is_gpu, ranks=devices)
    choice = ladder.choose(machine.available, machine.capacity)
    report.memory.CopyFrom(wire_memory(choice.need, machine))
    report.resolved.append(wire_choice(choice))
    _check_memory(ladder, choice.need, machine, findings)
    if machine.flops is not None:
        report.seconds = expected_seconds(
            shapes,
            config,
            prepared.training,
            prepared.evaluation,
            machine.flops * devices,
            gpu=machine.is_gpu,
            recomputed_layers=choice.rung.recomputed_layers,
        )


def _check_memory(ladder: Ladder, need: Plan, machine: Machine, findings: Findings) -> None:
    """A run is refused only where it could never fit: what is free now may be more by the time it starts."""
    least = ladder.least
    if least.needed > machine.capacity * _MARGIN:
        message = f"{_told(least)}; {machine.device} has {gib(machine.capacity)}. {ladder.advice}."
        findings.add(Problem("insufficient_memory", message, "training_file"))
    elif need.needed > machine.available * TIGHT:
        free = f"{gib(machine.available)} of {machine.device} are free now"
        findings.add(Problem("memory_tight", f"{_told(need)}; {free}. {ladder.advice} if it fails."), "warning")


def _told(need: Plan) -> str:
    largest = ", ".join(f"{name} {gib(size)}" for name, size in list(need.terms.items())[:3])
    return f"The run needs about {gib(need.needed)} at its peak ({largest})"
