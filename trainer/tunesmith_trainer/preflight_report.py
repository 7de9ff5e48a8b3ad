"""Owns the shapes in which a preflight's results leave: messages of the contract, and the file of rejected rows.
Must not know how anything was found."""

import json
from collections import Counter
from pathlib import Path

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer.config import Resolution
from tunesmith_trainer.example import labelled_tokens
from tunesmith_trainer.findings import Finding, Findings
from tunesmith_trainer.machine import Machine
from tunesmith_trainer.memory_ladder import Choice
from tunesmith_trainer.memory_plan import Plan
from tunesmith_trainer.preflight import Examined, Prepared

REJECTS_FILE = "rejects.jsonl"
_SEVERITIES = {"error": pb.SEVERITY_ERROR, "warning": pb.SEVERITY_WARNING}
_MAX_FINDINGS = 200


def data_report(examined: Examined) -> pb.PreflightReport:
    """What the files hold and what is wrong; memory, time and rejects are added by who knows them."""
    prepared = examined.prepared
    return pb.PreflightReport(
        counts=_counts(examined), resolved=_resolved(prepared.resolutions) if prepared is not None else []
    )


def wire_findings(findings: Findings) -> list[pb.Finding]:
    """The findings, the gravest first."""
    return [_finding(finding) for finding in findings.listed()[:_MAX_FINDINGS]]


def wire_choice(choice: Choice) -> pb.Resolved:
    """How a step will be computed, told like the other numbers that the job did not name."""
    return pb.Resolved(name="memory", value=str(choice.rung), reason=choice.reason)


def wire_memory(plan: Plan, machine: Machine) -> pb.MemoryFit:
    """What a run needs beside what its machine has."""
    return pb.MemoryFit(
        needed_bytes=plan.needed,
        available_bytes=machine.available,
        capacity_bytes=machine.capacity,
        fits=plan.needed <= machine.available,
        device=machine.device,
        terms=[pb.MemoryTerm(name=name, bytes=size) for name, size in plan.terms.items()],
    )


def completion(prepared: Prepared, findings: Findings, devices: int) -> pb.CompletePreflightRequest:
    """What a preflight says that found nothing in the way of a run on `devices`; its report travels with it."""
    config = prepared.config
    return pb.CompletePreflightRequest(
        hyperparameters=pb.Hyperparameters(
            n_epochs=config.n_epochs,
            batch_size=config.batch_size,
            learning_rate_multiplier=config.learning_rate_multiplier,
            lora_rank=config.lora_rank,
            lora_alpha=config.lora_alpha,
            context_length=config.context_length,
            beta=config.beta if config.method == "dpo" else None,
            lora_targets=config.lora_targets,
            use_rslora=None if config.full_weights else config.use_rslora,
            early_stopping_patience=config.early_stopping_patience,
        ),
        learning_rate=config.learning_rate,
        rows=len(prepared.training),
        tokens=prepared.tokens,
        labelled_tokens=prepared.labelled_tokens,
        total_steps=config.total_steps,
        devices=devices,
        warnings=[
            *(pb.RunEvent(level="info", message=note) for note in prepared.notes),
            *(_event(finding) for finding in findings.listed()),
        ],
    )


def write_rejects(findings: Findings, folder: Path) -> None:
    """Writes one line per rejected row: where it is and why, never its text, which its owner has."""
    folder.mkdir()
    with (folder / REJECTS_FILE).open("w") as file:
        for one in findings.rejects:
            line = {
                "line": one.line,
                "param": one.param,
                "code": one.code,
                "message": one.message,
                "action": one.action,
            }
            file.write(json.dumps(line) + "\n")


def _counts(examined: Examined) -> pb.PreflightCounts:
    training, validation, findings = examined.training, examined.validation, examined.findings
    files = [training] if validation is None else [training, validation]
    prepared = examined.prepared
    return pb.PreflightCounts(
        rows=training.rows,
        trained_rows=len(prepared.training) if prepared else 0,
        evaluation_rows=len(prepared.evaluation) if prepared else 0,
        tokens=prepared.tokens if prepared else sum(len(one.token_ids) for one in training.examples),
        labelled_tokens=prepared.labelled_tokens if prepared else labelled_tokens(training.examples),
        longest_row_tokens=max((length for file in files for length in file.lengths), default=0),
        refused_rows=findings.rejected("refused"),
        cut_rows=findings.rejected("cut"),
        dropped_rows=findings.rejected("dropped"),
        duplicate_rows=sum(file.duplicates for file in files),
        token_histogram=_histogram(training.lengths),
    )


def _histogram(lengths: list[int]) -> list[pb.HistogramBin]:
    """Rows by length; each bin reaches from a power of two to the next."""
    bins = Counter(max(length, 1).bit_length() for length in lengths)
    return [
        pb.HistogramBin(least_tokens=2 ** (bits - 1), below_tokens=2**bits, rows=bins[bits]) for bits in sorted(bins)
    ]


def _finding(finding: Finding) -> pb.Finding:
    return pb.Finding(
        code=finding.code,
        message=finding.message,
        severity=_SEVERITIES[finding.severity],
        param=finding.param,
        rows=finding.rows,
        count=finding.count,
    )


def _event(finding: Finding) -> pb.RunEvent:
    event = pb.RunEvent(level="warn", message=finding.message)
    event.data.update(
        {"code": finding.code, "param": finding.param, "rows": list(finding.rows), "count": finding.count}
    )
    return event


def _resolved(resolutions: list[Resolution]) -> list[pb.Resolved]:
    return [pb.Resolved(name=one.name, value=one.value, reason=one.reason) for one in resolutions]
