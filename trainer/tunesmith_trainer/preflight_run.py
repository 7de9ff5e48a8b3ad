"""Owns the course of a preflight run: data, adapter, memory, time, and what is reported of them.
Must not know how any of them is told."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer import workspace
from tunesmith_trainer.adapter_check import adapter_problems
from tunesmith_trainer.base_shapes import build_empty, read_shapes
from tunesmith_trainer.delivery import deliver
from tunesmith_trainer.errors import BadData, Problem
from tunesmith_trainer.findings import Findings
from tunesmith_trainer.machine import Machine, survey
from tunesmith_trainer.memory_ladder import Ladder, ladder_of
from tunesmith_trainer.memory_plan import Plan, checkpoint_bytes, gib
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
from tunesmith_trainer.time_plan import computed_part, expected_seconds

_NUMBERS_OF_DEVICES = (2, 4, 8)
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
    devices = spec.devices
    if prepared is not None:
        devices = _foresee(base, prepared, look(), findings, report, devices=devices)
    report.findings.extend(wire_findings(findings))
    if findings.rejects:
        write_rejects(findings, work / "rejects")
        (rejects,) = deliver(work / "rejects", "", reporter)
        report.rejects.CopyFrom(rejects)
    reporter.attach(report)
    if prepared is None or findings.problems():
        raise BadData(*findings.problems())
    reporter.complete_preflight(completion(prepared, findings, devices))


def _foresee(
    base: Path, prepared: Prepared, machine: Machine, findings: Findings, report: pb.PreflightReport, *, devices: int
) -> int:
    """What the run would be like: will its result be served, does it fit, how long does it take.

    Returns on how many devices: on `devices`, or if that is 0, on as few as it fits on.
    """
    config = prepared.config
    empty = build_empty(base)
    shapes = read_shapes(empty)
    if not config.full_weights:
        for problem in adapter_problems(base, empty, config, merged=prepared.merged):
            findings.add(problem)
    machine = machine.for_each_of(devices or 1)

    def ladder_on(ranks: int) -> Ladder:
        return ladder_of(
            shapes,
            config,
            prepared.training,
            prepared.evaluation,
            machine.dtype,
            machine.pack_tokens,
            main_memory=machine.main_memory,
            gpu=machine.is_gpu,
            merged=prepared.merged,
            ranks=ranks,
        )

    if not devices:
        devices, why = _fewest(ladder_on, machine)
        report.resolved.append(pb.Resolved(name="devices", value=str(devices), reason=why))
    ladder = ladder_on(devices)
    choice = ladder.choose(machine.available, machine.capacity)
    report.memory.CopyFrom(wire_memory(choice.need, machine))
    report.resolved.append(wire_choice(choice))
    if not _check_memory(ladder, choice.need, machine, findings):
        findings.add(_too_large(ladder, machine, _enough(ladder_on, devices, machine)))
    elif machine.is_gpu:
        saving = checkpoint_bytes(shapes, config, machine.dtype, choice.need, machine.capacity)
        _check_main_memory(saving, machine, findings)
    if machine.flops is not None:
        report.seconds = expected_seconds(
            shapes,
            config,
            prepared.training,
            prepared.evaluation,
            machine.flops * devices,
            gpu=machine.is_gpu,
            **asdict(choice.rung),
            part=computed_part(shapes, config, prepared.training, choice.rung.pack_tokens, gpu=machine.is_gpu),
        )
    return devices


def _check_memory(ladder: Ladder, need: Plan, machine: Machine, findings: Findings) -> bool:
    """Whether a run could ever fit: what is free now may be more by the time it starts, so a tight one is a warning."""
    if need.needed > machine.available * ladder.tight and ladder.least.needed <= machine.capacity * _MARGIN:
        free = f"{gib(machine.available)} of {machine.device} are free now"
        findings.add(Problem("memory_tight", f"{_told(need)}; {free}. {ladder.advice} if it fails."), "warning")
    return ladder.least.needed <= machine.capacity * _MARGIN


def _check_main_memory(saving: int, machine: Machine, findings: Findings) -> None:
    """A warning: a run may be given another machine's memory than this one's."""
    if saving > machine.main_memory:
        message = (
            f"Saving a checkpoint needs about {gib(saving)} of main memory; this machine has "
            f"{gib(machine.main_memory)}. Run it where there is more, or take a smaller base model."
        )
        findings.add(Problem("main_memory_tight", message, "model"), "warning")


def _too_large(ladder: Ladder, machine: Machine, enough: int | None) -> Problem:
    message = f"{_told(ladder.least)}; {machine.device} has {gib(machine.capacity)}. {ladder.advice}"
    more = f", or set scheduling.devices to {enough}, which would be enough" if enough else ""
    return Problem("insufficient_memory", f"{message}{more}.", "training_file")


def _fewest(ladder_on: Callable[[int], Ladder], machine: Machine) -> tuple[int, str]:
    """The least number of devices that a run fits on, and why; one where no number helps."""
    if not machine.is_gpu:
        return 1, "several would share the processor and its memory"
    needed = ladder_on(1).least.needed
    if needed <= machine.capacity * _MARGIN:
        return 1, "the run fits on one"
    why = f"one has {gib(machine.capacity)}, and {gib(needed)} would be needed there"
    return _enough(ladder_on, 1, machine) or 1, why


def _enough(ladder_on: Callable[[int], Ladder], devices: int, machine: Machine) -> int | None:
    """How many more devices would do, in a number that machines come with; None where no number would."""
    if not machine.is_gpu:
        return None  # ranks on a processor share its memory
    numbers = (number for number in _NUMBERS_OF_DEVICES if number > devices)
    return next((number for number in numbers if ladder_on(number).least.needed <= machine.capacity), None)


def _told(need: Plan) -> str:
    largest = ", ".join(f"{name} {gib(size)}" for name, size in list(need.terms.items())[:3])
    return f"The run needs about {gib(need.needed)} at its peak ({largest})"
