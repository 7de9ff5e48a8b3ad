"""Jobs under any order of calls, deaths and silences: the state table is the oracle, the database the witness.

Everything is real but the clock and the executor, which does what a rule says.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.faults.job_witness import JobWitness
from tests.server.training.test_results import checkpoint_request, complete
from tests.support.clock import MovableClock
from tests.support.core import open_core
from tests.support.executor import GONE, UNREACHABLE, exited
from tests.support.factories import PRINCIPAL, Platform, make_platform, preflight_report, step_report
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server import ids
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.db.guards import FROZEN_COLUMNS
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.errors import FencedError, InvalidRequestError
from tunesmith_server.executors.base import RunState
from tunesmith_server.fine_tunes import views
from tunesmith_server.fine_tunes.announcements import EVENT_TYPES
from tunesmith_server.fine_tunes.state import TERMINAL, State, may_follow
from tunesmith_server.scheduling.reconciler import Reconciler
from tunesmith_server.training.outcomes import chosen_exit

LEASED = {State.RUNNING, State.PAUSING}
FREE = {State.QUEUED, State.PAUSED, *TERMINAL}
STEPS = 6
MAX_JOBS = 4

T = TypeVar("T")


class Draws(random.Random):
    """Repeatable draws where ids are drawn."""

    def randbelow(self, limit: int) -> int:
        """A whole number from 0 up to but without `limit`."""
        return self.randrange(limit)


class Jobs(RuleBasedStateMachine):
    """Rules are what users, runs, machines and time do."""

    @initialize()
    def begin(self) -> None:
        """An empty platform."""
        # Some orders follow from ids; the same steps must lead to the same draws.
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(ids, "secrets", Draws(0))
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        folder = "/dev/shm" if Path("/dev/shm").is_dir() else None  # nothing here has to survive a power cut
        self.folder = tempfile.TemporaryDirectory(dir=folder, prefix="tunesmith-jobs-")
        self.clock = MovableClock()
        self.platform: Platform = self.run(self._open())
        self.sequence = 0
        self.identities: list[AttemptIdentity] = []
        self.ended: dict[str, dict[str, Any]] = {}
        self.restart()
        self.run(self.platform.create())
        self.schedule()

    async def _open(self) -> Platform:
        core = await self.stack.enter_async_context(
            open_core(Path(self.folder.name) / "home", self.clock, max_concurrent_preflights=2)
        )
        platform = await make_platform(core)
        platform.executor.devices = ("slot-0", "slot-1")
        self.witness = JobWitness(core.database)
        await self.witness.watch()
        return platform

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Does it on the machine's own loop."""
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        """Every job can still come to an end; then all is closed."""
        if not hasattr(self, "loop"):
            return
        try:
            self._finish_all()
        finally:
            self.run(self.stack.aclose())
            self.loop.close()
            self.folder.cleanup()
            self.patches.undo()

    # What users do.

    @precondition(lambda self: len(self.rows()) < MAX_JOBS)
    @rule(auto_start=st.booleans(), priority=st.integers(0, 2), limited=st.booleans())
    def create(self, auto_start: bool, priority: int, limited: bool) -> None:
        """A job; the same call repeated is answered with the same."""
        key = f"key-{len(self.rows())}"
        wishes: dict[str, Any] = {"priority": priority}
        if limited:
            wishes["max_run_seconds"] = 100
        request = self.platform.request(auto_start=auto_start, scheduling=wishes)
        made = self.run(self.platform.fine_tunes.create(PRINCIPAL, request, key))
        again = self.run(self.platform.fine_tunes.create(PRINCIPAL, request, key))
        assert made.id == again.id

    @rule(data=st.data(), action=st.sampled_from(["cancel", "pause", "pause", "resume"]))
    def steer(self, data: st.DataObject, action: str) -> None:
        """What the user asks for is granted or refused, and the answer says what is stored."""
        job = data.draw(st.sampled_from(sorted(self.rows())))
        with suppress(InvalidRequestError):
            shown = self.run(getattr(self.platform.fine_tunes, action)(PRINCIPAL, job))
            assert shown.status == views.status(self.rows()[job])

    # What the control plane does by itself.

    @rule()
    def schedule(self) -> None:
        """Starts what may start."""
        self.run(self.platform.scheduler.run_once())
        self._meet_new_runs()

    @rule()
    def reconcile(self) -> None:
        """Looks at what runs, and does what follows from it: a run is lost on two witnesses only."""
        before = {job.lease_token: job for job in self.rows().values() if job.lease_token is not None}
        seen = {attempt_id: self.run(self.platform.executor.observe(attempt_id)) for attempt_id in before}
        self.run(self._reconcile())
        leased = {job.lease_token for job in self.rows().values()}
        for attempt_id, job in before.items():
            ended_by_itself = seen[attempt_id].exit_code is not None and chosen_exit(seen[attempt_id].exit_code or 0)
            if attempt_id not in leased and not job.cancel_requested and not ended_by_itself:
                assert seen[attempt_id].state is not RunState.RUNNING, "a run that runs was given up"
                assert self.clock.now >= (job.lease_expires_at or 0), "a run was lost before its lease had expired"
        self._meet_new_runs()

    @rule()
    def restart(self) -> None:
        """The control plane dies and comes back; runs live on."""
        self.reconciler = Reconciler(self.platform.core, self.platform.executor, lambda: True, lambda: None)

    @rule(seconds=st.sampled_from([1, 6, 31, 61, 301]))
    def wait(self, seconds: int) -> None:
        """Time passes, and the control plane uses it."""
        self.clock.advance(seconds)
        self.reconcile()
        self.schedule()

    # What runs do; also those that were given up.

    @rule(data=st.data(), steps=st.lists(st.integers(1, STEPS), max_size=2))
    def heartbeat(self, data: st.DataObject, steps: list[int]) -> None:
        """A run says where it is."""
        self.sequence += 1
        metrics = [step_report(step) for step in sorted(set(steps))]
        request = pb.HeartbeatRequest(sequence=self.sequence, phase="training", total_steps=STEPS, metrics=metrics)
        self._speak(data, lambda identity: self.platform.training.heartbeat(identity, request))

    @rule(data=st.data(), step=st.sampled_from([2, 4, 6]))
    def checkpoint(self, data: st.DataObject, step: int) -> None:
        """A run delivers a checkpoint."""

        async def commit(identity: AttemptIdentity) -> None:
            request = await checkpoint_request(self.platform, identity, step, fill=step)
            await self.platform.training.commit_checkpoint(identity, request)

        self._speak(data, commit)

    @rule(data=st.data())
    def complete_preflight(self, data: st.DataObject) -> None:
        """A preflight is done."""
        report = preflight_report()
        self._speak(
            data,
            lambda identity: self.platform.training.complete_preflight(identity, report),
            repeats=True,
            only_in=State.VALIDATING_FILES,
        )

    @rule(data=st.data(), step=st.sampled_from([2, 4, 6]))
    def complete_training(self, data: st.DataObject, step: int) -> None:
        """A run is done with a checkpoint that it may or may not have committed."""
        self._speak(data, lambda identity: self._complete(identity, step), repeats=True)

    @rule(data=st.data(), cause=st.sampled_from([1, 2, 3]))
    def fail_run(self, data: st.DataObject, cause: int) -> None:
        """A run gives up."""
        request = pb.FailRunRequest(cause=pb.FailureCause.ValueType(cause))
        self._speak(data, lambda identity: self.platform.training.fail_run(identity, request), repeats=True)

    # What machines do.

    @precondition(lambda self: self._running())
    @rule(data=st.data(), code=st.sampled_from([0, 1, 64, 70, 75, 137]))
    def run_exits(self, data: st.DataObject, code: int) -> None:
        """A process ends."""
        self._become(data, exited(code))

    @precondition(lambda self: self._running())
    @rule(data=st.data())
    def run_vanishes(self, data: st.DataObject) -> None:
        """A machine dies with all that it had."""
        self._become(data, GONE)

    @precondition(lambda self: self._running())
    @rule(data=st.data())
    def executor_falls_silent(self, data: st.DataObject) -> None:
        """Nobody can tell what became of a run."""
        self._become(data, UNREACHABLE)

    @precondition(lambda self: UNREACHABLE in self.platform.executor.observations.values())
    @rule()
    def executor_is_back(self) -> None:
        """All can be told again."""
        seen = self.platform.executor.observations
        for attempt_id in [each for each, observation in seen.items() if observation == UNREACHABLE]:
            del seen[attempt_id]

    @rule()
    def executor_refuses_or_not(self) -> None:
        """Launches fail from now on, or work again."""
        self.platform.executor.refuses = not self.platform.executor.refuses

    # What must hold at every moment.

    @invariant()
    def every_move_is_in_the_table(self) -> None:
        """Epochs grow by one with each claim, and only then; the ended never move."""
        for job, old, new, epochs, old_lease, new_lease, events in self.run(self.witness.take_moves()):
            assert old == new or may_follow(State(old), State(new)), f"{job}: {old} → {new}"
            claimed = old_lease is None and new_lease is not None
            assert epochs == (1 if claimed else 0), f"{job}: {epochs} epochs at once"
            assert old_lease is None or new_lease in (old_lease, None), f"{job}: taken from {old_lease} by {new_lease}"
            assert events >= 0
            assert State(old) not in TERMINAL, f"{job} changed after its end"

    @invariant()
    def leases_and_attempts_agree(self) -> None:
        """At most one attempt of a job lives, and a lease is always a live attempt's."""
        attempts = self.run(self.witness.attempts())
        for job in self.rows().values():
            own = [attempt for attempt in attempts if attempt.job_id == job.id]
            live = [attempt for attempt in own if attempt.state == "live"]
            assert sorted(attempt.epoch for attempt in own) == list(range(1, job.epoch + 1))
            assert len(live) <= 1, f"{len(live)} live attempts"
            assert job.lease_token is None or [attempt.id for attempt in live] == [job.lease_token]
            assert job.state not in LEASED or job.lease_token is not None, f"{job.state} without a run"
            assert job.state not in FREE or job.lease_token is None, f"{job.state} with a lease"

    @invariant()
    def what_ended_stays_and_is_told_once(self) -> None:
        """The wire, the history and the outbox tell one story."""
        for job in self.rows().values():
            gone = job.cancel_requested or job.state == State.CANCELLED
            assert views.status(job) == (State.CANCELLED if gone else job.state)
            assert (job.finished_at is not None) == (gone or job.state in TERMINAL)
            told = self.run(self.witness.told(job.id))
            expected = [EVENT_TYPES[State(views.status(job))]] if gone or job.state in TERMINAL else []
            assert told == expected, f"{views.status(job)}, but the outside hears {told}"
            numbers, steps = self.run(self.witness.history(job.id))
            assert numbers == list(range(1, job.event_count + 1))
            assert len(steps) == len(set(steps)), f"steps are told twice: {steps}"
            if job.state in TERMINAL:
                now = {column: getattr(job, column) for column in (*FROZEN_COLUMNS, "event_count")}
                assert self.ended.setdefault(job.id, now) == now

    def rows(self) -> dict[str, FineTuneRow]:
        """All jobs as they are stored."""
        return self.run(self.witness.rows())

    def _speak(self, data: st.DataObject, call: Any, *, repeats: bool = False, only_in: State | None = None) -> None:
        """One call of a run; one that does not own its job changes nothing and is fenced, unless it said it before."""
        # Those that own their jobs speak more often than those that were given up.
        owning = [each for each in self.identities if self.rows()[each.job_id].lease_token == each.attempt_id]
        identity = data.draw(st.sampled_from(3 * owning + self.identities))
        before = self.rows()[identity.job_id]
        current = before.lease_token == identity.attempt_id
        try:
            self.run(call(identity))
        except FencedError:
            assert not current or before.cancel_requested or (only_in is not None and before.state != only_in)
            fenced = True
        except InvalidRequestError:
            fenced = False
        else:
            assert current or repeats, "a run without a job was listened to"
            fenced = False
        after = self.rows()[identity.job_id]
        if not current or (fenced and not before.cancel_requested):
            columns = FineTuneRow.__table__.columns.keys()
            assert {c: getattr(before, c) for c in columns} == {c: getattr(after, c) for c in columns}

    def _become(self, data: st.DataObject, observation: Any) -> None:
        self.platform.executor.observations[data.draw(st.sampled_from(self._running()))] = observation

    def _running(self) -> list[str]:
        executor = self.platform.executor
        return [
            attempt
            for attempt in sorted(executor.launches)
            if executor.observations.get(attempt, UNREACHABLE).state is RunState.UNREACHABLE
        ]

    def _meet_new_runs(self) -> None:
        signer = self.platform.core.signer
        for launch in self.platform.executor.launches.values():
            identity = signer.read_attempt_token(launch.token)
            assert identity is not None
            if identity not in self.identities:
                self.identities.append(identity)

    def _finish_all(self) -> None:
        """Good machines and honest runs from now on: nothing may be stuck."""
        self.platform.executor.refuses = False
        self.executor_is_back()
        for _ in range(60):
            open_jobs = [job for job in self.rows().values() if job.state not in {*TERMINAL, State.PAUSED}]
            live = [attempt for attempt in self.run(self.witness.attempts()) if attempt.state == "live"]
            if not open_jobs and not live:
                return
            for identity in self.identities:
                job = self.rows()[identity.job_id]
                if job.lease_token == identity.attempt_id:
                    self.run(self._work_honestly(identity, job))
                    # Its process is still there; nothing else may start for the job before it has gone.
                    self.schedule()
                    self.leases_and_attempts_agree()
                self.platform.executor.observations.setdefault(identity.attempt_id, exited(0))
            self.clock.advance(100)
            self.reconcile()
            self.schedule()
            self.every_move_is_in_the_table()
            self.leases_and_attempts_agree()
            self.what_ended_stays_and_is_told_once()
        raise AssertionError(f"stuck: {[(job.id, job.state) for job in open_jobs]}, {[each.id for each in live]}")

    async def _work_honestly(self, identity: AttemptIdentity, job: FineTuneRow) -> None:
        ended = self.platform.executor.observations.get(identity.attempt_id)
        if ended is not None:
            return
        with suppress(FencedError):
            if job.state == State.VALIDATING_FILES:
                await self.platform.training.complete_preflight(identity, preflight_report())
            else:
                request = await checkpoint_request(self.platform, identity, 6, fill=6)
                await self.platform.training.commit_checkpoint(identity, request)
                await self._complete(identity, 6)

    async def _complete(self, identity: AttemptIdentity, step: int) -> None:
        request = await checkpoint_request(self.platform, identity, step, fill=step)
        await complete(self.platform, identity, step, request.artifact)

    async def _reconcile(self) -> None:
        await self.reconciler.run_once()
        await asyncio.gather(*self.reconciler._background.values())


@pytest.mark.parametrize(
    ("examples", "steps"),
    [
        pytest.param(10, 25, marks=pytest.mark.timeout(900)),
        pytest.param(150, 50, marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
def test_jobs_follow_the_table_whatever_happens(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Jobs,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
