"""Owns what is kept of a preflight: its report on the job, and the file of rows that it refused, cut or dropped.

It must not know whether the job goes on or fails.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.files import repository as files
from tunesmith_server.fine_tunes.events import finite
from tunesmith_server.registry.manifest import ManifestFile
from tunesmith_server.storage.base import ObjectStore
from tunesmith_server.training import deliveries
from tunesmith_server.training.results import result_file
from tunesmith_server.training.spec import attempt_prefix

_MAX_FINDINGS = 200
_MAX_ROWS = 100
_MAX_TERMS = 50


async def verified_rejects(
    store: ObjectStore, identity: AttemptIdentity, report: pb.PreflightReport
) -> ManifestFile | None:
    """The uploaded rejects file, if the report has one; raises InvalidRequestError unless it is as declared."""
    if not report.HasField("rejects"):
        return None
    checked = deliveries.checked_files([report.rejects])
    await deliveries.require_identical(store, attempt_prefix(identity), checked)
    return checked[0]


async def keep(
    session: AsyncSession,
    job: FineTuneRow,
    identity: AttemptIdentity,
    report: pb.PreflightReport,
    rejects: ManifestFile | None,
    now: int,
) -> dict[str, Any]:
    """Makes the rejects a file of the project, and returns the columns to write together with the job's next state."""
    changes: dict[str, Any] = {"report": stored(report)}
    if rejects is not None:
        row = result_file(job, attempt_prefix(identity), rejects, now)
        await files.insert(session, row)
        changes |= {"rejects_file_id": row.id, "result_file_ids": [row.id]}
    return changes


def stored(report: pb.PreflightReport) -> dict[str, Any]:
    """The report as users see it later."""
    return {
        "counts": _counts(report.counts),
        "findings": [_finding(finding) for finding in report.findings[:_MAX_FINDINGS]],
        "memory": _memory(report.memory) if report.HasField("memory") else None,
        "seconds": finite(report.seconds) if report.HasField("seconds") else None,
        "resolved": resolved(report),
    }


def resolved(report: pb.PreflightReport) -> list[dict[str, str]]:
    """What every "auto" became, each with its reason."""
    return [{"name": each.name, "value": each.value, "reason": each.reason} for each in report.resolved]


def _counts(counts: pb.PreflightCounts) -> dict[str, Any]:
    plain = {
        field.name: getattr(counts, field.name)
        for field in pb.PreflightCounts.DESCRIPTOR.fields
        if field.name != "token_histogram"
    }
    histogram = [
        {"least_tokens": each.least_tokens, "below_tokens": each.below_tokens, "rows": each.rows}
        for each in counts.token_histogram
    ]
    return {**plain, "token_histogram": histogram}


def _finding(finding: pb.Finding) -> dict[str, Any]:
    return {
        "code": _clean(finding.code, 100),
        "message": _clean(finding.message, 4000),
        "severity": "error" if finding.severity == pb.SEVERITY_ERROR else "warning",
        "param": _clean(finding.param, 100) if finding.HasField("param") else None,
        "rows": list(finding.rows[:_MAX_ROWS]),
        "count": finding.count,
    }


def _memory(memory: pb.MemoryFit) -> dict[str, Any]:
    return {
        "needed_bytes": memory.needed_bytes,
        "available_bytes": memory.available_bytes,
        "capacity_bytes": memory.capacity_bytes,
        "fits": memory.fits,
        "device": _clean(memory.device, 100),
        "terms": [{"name": _clean(term.name, 100), "bytes": term.bytes} for term in memory.terms[:_MAX_TERMS]],
    }


def _clean(text: str, length: int) -> str:
    return text.replace("\x00", "")[:length]
