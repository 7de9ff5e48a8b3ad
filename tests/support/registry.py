"""Owns tuned models for tests: a job, a revision and a name that points at it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from tests.support.artifacts import BASE_ID
from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FileRow, FineTuneRow, ProjectRow
from tunesmith_server.registry import repository
from tunesmith_server.registry.manifest import ArtifactKind, ManifestFile
from tunesmith_server.registry.repository import Revision

DEFAULT = Principal(project_id="default", key_id="key_1")
OTHER = Principal(project_id="other", key_id="key_2")


async def publish_tuned_model(
    core: Core,
    name: str,
    base_revision: str,
    project_id: str = "default",
    *,
    content: bytes = b"tuned",
    files: Mapping[str, bytes] | None = None,
    kind: ArtifactKind = ArtifactKind.ADAPTER,
) -> str:
    """Makes `name` point at a revision of one file with this content, or of `files`; returns the revision's id."""
    contents = files or {"adapter_model.safetensors": content}
    listed = tuple(ManifestFile(path, len(each), hashlib.sha256(each).hexdigest()) for path, each in contents.items())
    revision_id = max(listed, key=lambda file: file.path).sha256
    revision = Revision(revision_id, kind, BASE_ID, base_revision, listed)
    for path, each in contents.items():
        await core.store.put_bytes(f"revisions/{revision.id}/{path}", each)
    now = int(core.clock())
    async with core.database.write() as session:
        for row in _job_rows(project_id, now):
            if await session.get(type(row), row.id) is None:
                session.add(row)
                await session.flush()
        await repository.record_revision(session, revision, now)
        await repository.publish_model(
            session,
            name=name,
            project_id=project_id,
            job_id=f"ftjob-{project_id}",
            revision_id=revision.id,
            checkpoint=False,
            now=now,
        )
    return revision.id


def _job_rows(project_id: str, now: int) -> tuple[ProjectRow, FileRow, FineTuneRow]:
    file_id = f"file-{project_id}"
    return (
        ProjectRow(id=project_id, created_at=now),
        FileRow(
            id=file_id,
            project_id=project_id,
            filename="train.jsonl",
            purpose="fine-tune",
            bytes=1,
            sha256="0" * 64,
            status="processed",
            storage_key=f"files/{project_id}/{file_id}",
            created_at=now,
        ),
        FineTuneRow(
            id=f"ftjob-{project_id}",
            project_id=project_id,
            state="succeeded",
            epoch=1,
            cancel_requested=False,
            not_before=0.0,
            retries={},
            base_model_id=BASE_ID,
            training_file_id=file_id,
            method="supervised",
            name_id="aaaaaaaa",
            seed=0,
            requested={},
            last_sequence=0,
            event_count=0,
            result_file_ids=[],
            position=1,
            created_at=now,
        ),
    )
