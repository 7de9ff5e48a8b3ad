"""Owns how a job becomes the TrainingSpec of one attempt, with URLs minted for it.

It must not know leases or transports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.config import Settings
from tunesmith_server.db.tables import CheckpointRow, FileRow, FineTuneRow
from tunesmith_server.files.dataset_check import is_plain_text
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.fine_tunes.views import chooses_devices
from tunesmith_server.registry.manifest import ArtifactKind
from tunesmith_server.registry.service import SignedFile
from tunesmith_server.storage.base import ObjectStore
from tunesmith_server.training.outcomes import Cause

WEIGHTS = {"lora": pb.WEIGHTS_LORA, "full": pb.WEIGHTS_FULL}
LONG_ROWS = {"fail": pb.LONG_ROWS_FAIL, "cut": pb.LONG_ROWS_CUT, "drop": pb.LONG_ROWS_DROP}

_NUMBERS = (
    "n_epochs",
    "batch_size",
    "learning_rate_multiplier",
    "lora_rank",
    "lora_alpha",
    "context_length",
    "beta",
    "early_stopping_patience",
    "lora_targets",
    "use_rslora",
)
_KINDS = {ArtifactKind.ADAPTER: pb.ARTIFACT_KIND_ADAPTER, ArtifactKind.FULL: pb.ARTIFACT_KIND_FULL}


@dataclass(frozen=True, slots=True)
class Inputs:
    """The rows and files that a spec is made of."""

    job: FineTuneRow
    training_file: FileRow
    validation_file: FileRow | None
    base_revision: str
    base_files: list[SignedFile]
    start_kind: ArtifactKind | None
    """Of the tuned model that the job goes on from."""
    start_files: list[SignedFile]
    checkpoint: CheckpointRow | None
    checkpoint_files: list[Mapping[str, Any]]
    """path, size and sha256 below the checkpoint's prefix: weights and training state."""


def attempt_prefix(identity: AttemptIdentity) -> str:
    """The only place in object storage that a run may write to, without a slash at the end."""
    return f"runs/{identity.job_id}/e{identity.epoch}"


async def build(identity: AttemptIdentity, inputs: Inputs, store: ObjectStore, settings: Settings) -> pb.TrainingSpec:
    """The spec of this attempt; after preflight it carries every number."""
    job = inputs.job
    preflight = job.state == State.VALIDATING_FILES
    spec = pb.TrainingSpec(
        job_id=job.id,
        attempt_id=identity.attempt_id,
        epoch=identity.epoch,
        kind=pb.RUN_KIND_PREFLIGHT if preflight else pb.RUN_KIND_TRAINING,
        base_model=base_model(job.base_model_id, inputs.base_revision, inputs.base_files),
        training_file=await _dataset(inputs.training_file, store, settings),
        method=job.method,
        weights=WEIGHTS[job.requested["weights"]],
        hyperparameters=_hyperparameters(job.resolved or job.requested),
        seed=job.seed,
        heartbeat_interval_seconds=settings.heartbeat_interval_seconds,
        url_ttl_seconds=settings.url_ttl_seconds,
        max_lora_rank=settings.max_lora_rank,
        max_context_length=settings.max_context_length,
        long_rows=LONG_ROWS[job.requested.get("long_rows", "fail")],
        memory_failures=job.retries.get(Cause.OUT_OF_MEMORY, 0),
        devices=0 if preflight and chooses_devices(job) else job.devices,
        day=datetime.fromtimestamp(job.created_at, UTC).date().isoformat(),
    )
    if job.resolved is not None:
        spec.learning_rate = job.resolved["learning_rate"]
    if inputs.validation_file is not None:
        spec.validation_file.CopyFrom(await _dataset(inputs.validation_file, store, settings))
    if inputs.start_kind is not None:
        start = pb.WarmStart(kind=_KINDS[inputs.start_kind], files=_remote_files(inputs.start_files))
        spec.warm_start.CopyFrom(start)
    if inputs.checkpoint is not None and spec.kind == pb.RUN_KIND_TRAINING:
        files = [
            SignedFile(**file, url=(await _get_url(store, f"{inputs.checkpoint.prefix}/{file['path']}", settings)))
            for file in inputs.checkpoint_files
        ]
        spec.resume.CopyFrom(pb.Resume(step=inputs.checkpoint.step, files=_remote_files(files)))
    return spec


async def build_import(
    identity: AttemptIdentity,
    archive: FileRow,
    base_model: pb.BaseModel,
    store: ObjectStore,
    settings: Settings,
) -> pb.TrainingSpec:
    """The spec of an attempt that imports an uploaded model."""
    url = await _get_url(store, archive.storage_key, settings)
    return pb.TrainingSpec(
        job_id=identity.job_id,
        attempt_id=identity.attempt_id,
        epoch=identity.epoch,
        kind=pb.RUN_KIND_IMPORT,
        base_model=base_model,
        model_archive=pb.RemoteFile(path=f"{archive.id}.tar", size=archive.bytes, sha256=archive.sha256, url=url),
        heartbeat_interval_seconds=settings.heartbeat_interval_seconds,
        url_ttl_seconds=settings.url_ttl_seconds,
        max_lora_rank=settings.max_lora_rank,
    )


def base_model(model_id: str, revision: str, files: Iterable[SignedFile]) -> pb.BaseModel:
    """A base model as runs are told of it."""
    return pb.BaseModel(id=model_id, revision=revision, files=_remote_files(files))


def _hyperparameters(numbers: Mapping[str, Any]) -> pb.Hyperparameters:
    return pb.Hyperparameters(**{name: numbers[name] for name in _NUMBERS if numbers.get(name) is not None})


async def _dataset(file: FileRow, store: ObjectStore, settings: Settings) -> pb.RemoteFile:
    url = await _get_url(store, file.storage_key, settings)
    # The user's own file name stays here: the run gets one that is safe as a path, and tells text from rows.
    suffix = ".txt" if is_plain_text(file.filename) else ".jsonl"
    return pb.RemoteFile(path=f"{file.id}{suffix}", size=file.bytes, sha256=file.sha256, url=url)


async def _get_url(store: ObjectStore, key: str, settings: Settings) -> str:
    return (await store.presign_get(key, settings.url_ttl_seconds)).url


def _remote_files(files: Iterable[SignedFile]) -> list[pb.RemoteFile]:
    return [pb.RemoteFile(path=file.path, size=file.size, sha256=file.sha256, url=file.url) for file in files]
