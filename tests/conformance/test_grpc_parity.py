"""The same call over REST and over gRPC leaves the same rows and is refused for the same reason."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from tests.conformance.twins import GrpcTwin, Refused, RestTwin, Twin
from tests.support.administration import Installation
from tests.support.archives import tar_of
from tests.support.artifacts import BASE_ID, adapter_files, publish_base_model
from tunesmith_server.db.tables import (
    EventRow,
    FileRow,
    FineTuneRow,
    UploadPartRow,
    UploadRow,
    WebhookEndpointRow,
)
from tunesmith_server.projects.administration import Administration

ROWS = b'{"prompt": "Say a.", "completion": "a"}\n' * 10
# What no two calls share, by whichever way they come.
DRAWN = {"id", "project_id", "key_id", "name_id", "position", "storage_key", "body_hash"}
ADAPTER = tar_of({name: content for name, content in adapter_files().items() if name != "golden.json"})
_numbers = itertools.count()


@dataclass
class Side:
    """One twin with what it has made so far, in order."""

    twin: Twin
    made: dict[str, list[str]] = field(default_factory=dict)

    def id_of(self, kind: str, number: int) -> str:
        """The id of something that was made, or of nothing."""
        known = self.made.get(kind, [])
        return known[number % len(known)] if known and number < 8 else "nothing-of-ours"

    async def do(self, action: Action) -> Refused | None:
        """Performs the action; tells how it was refused."""
        kind, name, arguments = action
        resolved = [self._resolve(argument) for argument in arguments]
        try:
            made = await getattr(self.twin, name)(*resolved)
        except Refused as refused:
            return refused
        if name.startswith(("create_", "add_")):
            known = self.made.setdefault(kind, [])
            if made not in known:
                known.append(made)
        return None

    def _resolve(self, argument: Any) -> Any:
        if isinstance(argument, Ref):
            return self.id_of(argument.kind, argument.number)
        if isinstance(argument, dict):
            return {name: self._resolve(value) for name, value in argument.items()}
        if isinstance(argument, list):
            return [self._resolve(value) for value in argument]
        return argument


@dataclass(frozen=True)
class Ref:
    """Stands for the id of something that each side has made for itself."""

    kind: str
    number: int


Action = tuple[str, str, tuple[Any, ...]]


def ref(kind: str) -> st.SearchStrategy[Ref]:
    """Something that was made, or now and then nothing."""
    return st.builds(Ref, st.just(kind), st.integers(0, 8))


def action(kind: str, name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Action]:
    """A call of a method of both twins."""
    return st.tuples(st.just(kind), st.just(name), st.tuples(*arguments))


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of these fields. An empty text and 0 are left out: to gRPC they are the same as nothing."""
    return st.fixed_dictionaries({}, optional=fields)


# Either good or bad in one way, so that most calls come far.
numbers = optional(
    n_epochs=st.sampled_from([1, 3, 50, 51, -1]),
    batch_size=st.sampled_from([1, 256, 257]),
    learning_rate_multiplier=st.sampled_from([0.5, 2.0, -1.0]),
)
methods = st.sampled_from(["supervised", "supervised", "dpo", "reinforcement", "nonsense"]).flatmap(
    lambda name: st.fixed_dictionaries({"type": st.just(name)}, optional={name: optional(hyperparameters=numbers)})
)
pairs = st.dictionaries(
    st.sampled_from(["a", "b", "k" * 65]), st.sampled_from(["1", "v" * 513, "n\x00"]), min_size=1, max_size=2
)
jobs = st.fixed_dictionaries(
    {
        "model": st.sampled_from([BASE_ID, BASE_ID, "unknown", f"ft:{BASE_ID}:default::nobodys"]),
        "training_file": ref("file"),
        "seed": st.just(7),
    },
    optional={
        "validation_file": ref("file"),
        "suffix": st.sampled_from(["fine", "not fine", "x" * 65]),
        "metadata": pairs,
        "hyperparameters": numbers,
        "method": methods,
        "training": optional(
            weights=st.sampled_from(["lora", "full", "half"]),
            lora_rank=st.sampled_from([4, 4096, -1]),
            lora_targets=st.sampled_from([["attention", "up_proj"], ["no name"]]),
            use_rslora=st.booleans(),
            long_rows=st.sampled_from(["cut", "burn"]),
        ),
        "scheduling": optional(
            priority=st.sampled_from([5, 101]), devices=st.sampled_from([1, 5000]), max_run_seconds=st.just(60)
        ),
        "auto_start": st.booleans(),
        "integrations": st.just([{"type": "wandb", "wandb": {"project": "p"}}]),
    },
)
pages = optional(limit=st.sampled_from([1, 2, 101, -1]), after=st.just("nothing-of-ours"))
contents = st.sampled_from([ROWS, ROWS, ROWS[:-5], b"", b'{"messages": []}\n', ADAPTER])
purposes = st.sampled_from(["fine-tune", "fine-tune", "user_data", "model", "fun"])
imports = st.fixed_dictionaries(
    {"base_model": st.sampled_from([BASE_ID, BASE_ID, "unknown"]), "file": ref("file")},
    optional={"suffix": st.sampled_from(["mine", "not fine"])},
)
expiries = st.fixed_dictionaries(
    {"anchor": st.sampled_from(["created_at", "now"]), "seconds": st.sampled_from([3600, 60])}
)
uploads = st.fixed_dictionaries(
    {
        "filename": st.just("parts.jsonl"),
        "purpose": purposes,
        "bytes": st.sampled_from([len(ROWS), 5, -1]),
        "mime_type": st.just("text/jsonl"),
    },
    optional={"expires_after": expiries},
)
urls = st.sampled_from(["https://93.184.216.34/hook", "https://127.0.0.1/", "ftp://x/", "nonsense"])
types = st.sampled_from([["fine_tuning.job.succeeded"], ["fine_tuning.job.succeeded", "nonsense"]])
checksums = st.sampled_from(["", hashlib.md5(ROWS).hexdigest(), "0" * 32, "zz"])

# One of everything, so that most of the calls that follow are about something.
PRELUDE: list[Action] = [
    ("file", "create_file", ("rows.jsonl", "fine-tune", ROWS, None)),
    ("job", "create_job", ({"model": BASE_ID, "training_file": Ref("file", 0), "seed": 7}, "key-0")),
    ("upload", "create_upload", ({"filename": "a", "purpose": "fine-tune", "bytes": len(ROWS), "mime_type": "b"},)),
    ("part", "add_part", (Ref("upload", 0), ROWS)),
    ("endpoint", "create_endpoint", ({"url": "https://93.184.216.34/", "event_types": ["fine_tuning.job.failed"]},)),
    ("file", "create_file", ("model.tar", "model", ADAPTER, None)),
    ("import", "create_model", ({"base_model": BASE_ID, "file": Ref("file", 1)}, "key-model")),
]

actions = st.one_of(
    action("job", "create_job", jobs, st.sampled_from(["", "", "key-1", "no good"])),
    action("job", "change_job", st.sampled_from(["get", "cancel", "pause", "resume"]), ref("job")),
    action("job", "list_jobs", pages, st.just({}) | pairs),
    action("job", "list_of_job", st.sampled_from(["events", "checkpoints"]), ref("job"), pages),
    action("file", "create_file", st.sampled_from(["rows.jsonl", "../a b"]), purposes, contents, st.none() | expiries),
    action("file", "get_file", ref("file")),
    action("file", "delete_file", ref("file")),
    action("file", "list_files", st.builds(lambda page, more: page | more, pages, optional(order=st.just("up")))),
    action("upload", "create_upload", uploads),
    action("part", "add_part", ref("upload"), contents),
    action("upload", "complete_upload", ref("upload"), st.lists(ref("part"), max_size=2), checksums),
    action("upload", "cancel_upload", ref("upload")),
    action("import", "create_model", imports, st.sampled_from(["", "key-1", "key-model", "no good"])),
    action("import", "get_model", ref("import")),
    action("import", "delete_model", ref("import")),
    action("model", "get_model", st.sampled_from([BASE_ID, "org/unknown"])),
    action("model", "delete_model", st.sampled_from([BASE_ID, "org/unknown"])),
    action("endpoint", "create_endpoint", st.fixed_dictionaries({"url": urls, "event_types": types})),
    action("endpoint", "update_endpoint", ref("endpoint"), optional(url=urls, name=st.just("renamed"))),
    action("endpoint", "delete_endpoint", ref("endpoint")),
    # Not a call: a run has brought the job to where only other calls work.
    st.tuples(st.just("job"), st.just("become"), st.tuples(ref("job"), st.sampled_from(["queued", "paused"]))),
)


@pytest.fixture
async def channel_of(installation: Installation) -> AsyncIterator[Any]:
    """A gRPC channel to the installation, which has a base model."""
    await publish_base_model(installation.core)
    async with installation.channel() as channel:
        yield channel


relaxed = settings(
    deadline=None,
    derandomize=True,
    # Shrinking would take minutes; a history is short, and the message names the call that differed.
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
histories = st.lists(actions, min_size=8, max_size=20)


@settings(relaxed, max_examples=25)
@given(steps=histories)
async def test_both_ways_do_the_same(installation: Installation, channel_of: Any, steps: list[Action]) -> None:
    await check(installation, channel_of, steps)


@pytest.mark.soak
@pytest.mark.timeout(900)
@settings(relaxed, max_examples=500)
@given(steps=histories)
async def test_both_ways_do_the_same_for_long(installation: Installation, channel_of: Any, steps: list[Action]) -> None:
    await check(installation, channel_of, steps)


async def check(installation: Installation, channel: Any, steps: list[Action]) -> None:
    """Performs the steps by both ways in two fresh projects and compares every answer, then every row."""
    sides = await make_sides(installation, channel)
    for step in [*PRELUDE, *steps]:
        if step[1] == "become":
            await become(installation, sides, *step[2])
            continue
        by_rest, by_grpc = [await side.do(step) for side in sides]
        event(f"{step[1]}: {'done' if by_rest is None else by_rest.reason}")
        assert by_rest == by_grpc, f"{step}: REST says {by_rest}, gRPC says {by_grpc}"
    rest_rows, grpc_rows = [await rows_of(installation, side) for side in sides]
    assert rest_rows == grpc_rows


async def make_sides(installation: Installation, channel: Any) -> tuple[Side, Side]:
    """Two fresh projects, one for each way."""
    projects = [f"twin-{next(_numbers)}" for _ in range(2)]
    administration = Administration(installation.core, installation.part.keys.lookup)
    for project in projects:
        await administration.create(project, project)
    client = await installation.http(project_id=projects[0])
    return Side(RestTwin(client)), Side(GrpcTwin(channel, await installation.metadata(project_id=projects[1])))


async def become(installation: Installation, sides: tuple[Side, Side], job: Ref, state: str) -> None:
    """Writes the state into both jobs unless they have ended."""
    async with installation.core.database.write() as session:
        for side in sides:
            await session.execute(
                update(FineTuneRow)
                .where(FineTuneRow.id == side.id_of(job.kind, job.number), FineTuneRow.state != "cancelled")
                .values(state=state)
            )


async def rows_of(installation: Installation, side: Side) -> list[dict[str, Any]]:
    """Everything that the side has stored, with ids replaced by their place in the order of creation."""
    names = {made: f"<{kind} {place}>" for kind, ids in side.made.items() for place, made in enumerate(ids)}
    names |= {f"ftimport-{made.rpartition(':')[2]}": named for made, named in names.items() if made.startswith("ft:")}
    tables = {"job": FineTuneRow, "file": FileRow, "upload": UploadRow, "part": UploadPartRow}
    tables["endpoint"] = WebhookEndpointRow
    found = []
    async with installation.core.database.read() as session:
        for kind, table in tables.items():
            for made in side.made.get(kind, []):
                row = await session.get(table, made)
                joined = getattr(row, "file_id", None)
                if joined is not None:
                    names[joined] = f"<file of {names[made]}>"
                    found.append(_plain(await session.get(FileRow, joined), names))
                if row is not None:
                    found.append(_plain(row, names))
        made_by_import = [f"ftimport-{name.rpartition(':')[2]}" for name in side.made.get("import", [])]
        found += [_plain(await session.get(FineTuneRow, made), names) for made in made_by_import]
        for job_id in [*side.made.get("job", []), *made_by_import]:
            events = select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.number)
            found += [_plain(row, names) for row in await session.scalars(events)]
    return found


def _plain(row: Any, names: dict[str, str]) -> dict[str, Any]:
    values = {column.name: getattr(row, column.name) for column in row.__table__.columns if column.name not in DRAWN}
    text = json.dumps(values, default=str, sort_keys=True)
    for made, name in names.items():
        text = text.replace(made, name)
    plain: dict[str, Any] = json.loads(text)
    return plain
