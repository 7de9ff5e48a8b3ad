"""Owns the rows that a benchmark starts from: many ended jobs, and runs that are alive."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Engine, Table, insert

from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.db.tables import AttemptRow, Base, EventRow, FineTuneRow, LeaseRow

CHUNK = 5_000
_FIRST_SECOND = 1_700_000_000


def keep_scheduler_idle(engine: Engine) -> None:
    """Gives the scheduler's lease to nobody, so that what is measured is not disturbed by runs."""
    row = {"name": "scheduler", "token": "benchmark", "expires_at": time.time() + 86_400}
    with engine.begin() as connection:
        connection.execute(insert(LeaseRow), [row])


def ended_jobs(engine: Engine, count: int, base_model: str, file_id: str) -> list[str]:
    """Adds jobs of the default project that have succeeded, each with its attempt and two events; returns their ids."""
    ids: list[str] = []
    for first in range(0, count, CHUNK):
        numbers = range(first, min(first + CHUNK, count))
        jobs = [_job(number, base_model, file_id, "succeeded") for number in numbers]
        with engine.begin() as connection:
            connection.execute(insert(FineTuneRow), jobs)
            connection.execute(insert(AttemptRow), [_attempt(job, "ended") for job in jobs])
            connection.execute(insert(EventRow), [event for job in jobs for event in _events(job)])
        ids += [job["id"] for job in jobs]
    return ids


def live_runs(engine: Engine, count: int, base_model: str, file_id: str) -> list[AttemptIdentity]:
    """Adds running jobs whose attempts hold a lease that lasts; returns who may call for them."""
    jobs = [_job(10_000_000 + number, base_model, file_id, "running") for number in range(count)]
    for job in jobs:
        job |= {"lease_token": _attempt_id(job), "lease_expires_at": time.time() + 86_400, "finished_at": None}
    with engine.begin() as connection:
        connection.execute(insert(FineTuneRow), jobs)
        connection.execute(insert(AttemptRow), [_attempt(job, "live") for job in jobs])
    return [AttemptIdentity(job["id"], _attempt_id(job), 1) for job in jobs]


def queued_jobs(engine: Engine, count: int, base_model: str, file_id: str) -> None:
    """Adds validated jobs that wait to be claimed."""
    jobs = [_job(20_000_000 + number, base_model, file_id, "queued") | {"finished_at": None} for number in range(count)]
    with engine.begin() as connection:
        connection.execute(insert(FineTuneRow), jobs)


def bare_inserts(engine: Engine, count: int) -> float:
    """The opponent: rows per second of one plain INSERT and commit after the other on the same database."""
    table: Table = Base.metadata.tables["leases"]
    started = time.perf_counter()
    for number in range(count):
        with engine.begin() as connection:
            connection.execute(insert(table), [{"name": f"bare-{started}-{number}", "token": "", "expires_at": 0.0}])
    return count / (time.perf_counter() - started)


def _job(number: int, base_model: str, file_id: str, state: str) -> dict[str, Any]:
    resolved = {"weights": "lora", "n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0, "total_steps": 30}
    return {
        "id": f"ftjob-bench{number:09}",
        "project_id": "default",
        "kind": "job",
        "state": state,
        "epoch": 0 if state == "queued" else 1,
        "cancel_requested": False,
        "preempt_requested": False,
        "auto_start": True,
        "priority": 0,
        "devices": 1,
        "run_seconds": 0.0,
        "device_seconds": 0.0,
        "not_before": 0.0,
        "retries": {},
        "base_model_id": base_model,
        "training_file_id": file_id,
        "method": "supervised",
        "name_id": f"b{number}",
        "seed": number,
        "requested": {"weights": "lora"},
        "resolved": resolved | {"context_length": 512, "lora_rank": 8, "lora_alpha": 16.0, "base_revision": "0"},
        "user_metadata": {"team": random.Random(number).choice(["red", "green", "blue"]), "number": str(number)},
        "body_hash": "",
        "last_sequence": 0,
        "event_count": 2,
        "result_file_ids": [],
        "position": (_FIRST_SECOND + number) * 1_000_000,
        "created_at": _FIRST_SECOND + number,
        "finished_at": _FIRST_SECOND + number + 60,
    }


def _attempt(job: Mapping[str, Any], state: str) -> dict[str, Any]:
    times = {"created_at": job["created_at"], "ended_at": job["finished_at"]}
    identity = {"id": _attempt_id(job), "job_id": job["id"], "epoch": 1, "kind": "training", "state": state}
    return identity | times | {"device_ids": []}


def _attempt_id(job: Mapping[str, Any]) -> str:
    return f"attempt-{job['name_id']}"


def _events(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for number, message in enumerate(("Created fine-tuning job", "The job has successfully completed"), start=1):
        identity = {"id": f"ftevent-{job['name_id']}-{number}", "job_id": job["id"], "number": number}
        yield identity | {"created_at": job["created_at"], "level": "info", "type": "message", "message": message}
