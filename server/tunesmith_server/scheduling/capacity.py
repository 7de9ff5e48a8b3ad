"""Owns the policy of the queue: which waiting jobs start now, on which devices, and which runs make room. Pure.

It must not know the database or executors. Order: priority, then the project with the least for its share, then age.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heapify, heappop, heappush
from math import inf

MIN_RUN_SECONDS = 300.0
"""A run that has not had so long yet is not asked to make room: loading alone takes minutes."""
ESTIMATE_MARGIN = 1.5
"""How much longer than expected a job may take that is let past the head of the queue."""

_UNKNOWN_DURATION_SECONDS = 600.0


class RunKind(StrEnum):
    """What an attempt does."""

    PREFLIGHT = "preflight"
    TRAINING = "training"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that could start."""

    job_id: str
    project_id: str
    priority: int = 0
    position: int = 0
    """Age: the smaller, the older."""
    devices: int = 1
    expected_seconds: float | None = None
    """How long its run is expected to take; None: nobody knows."""


@dataclass(frozen=True, slots=True)
class Running:
    """A training run that holds devices."""

    attempt_id: str
    job_id: str
    project_id: str
    devices: tuple[str, ...]
    started_at: float
    """Unix seconds."""
    priority: int = 0
    remaining_seconds: float | None = None
    """None: nobody knows."""
    saved_at: float = 0.0
    """Unix seconds of its job's newest checkpoint; 0 without any."""
    leaving: bool = False
    """It ends soon by itself: it was asked to save and stop, or its job has ended."""


@dataclass(frozen=True, slots=True)
class Project:
    """What fairness and quotas know of a project."""

    share: float = 1.0
    used: float = 0.0
    """Device-seconds, those long ago counting less."""
    max_running: int | None = None
    device_seconds_left: float | None = None
    """Of its quota; None: no limit."""


@dataclass(frozen=True, slots=True)
class Start:
    """A job and the devices that its run gets."""

    job: Waiting
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now."""

    starts: tuple[Start, ...] = ()
    victims: tuple[Running, ...] = ()
    """Runs to be asked to save and make room for the head of the queue."""


def plan(
    waiting: Iterable[Waiting],
    running: Sequence[Running],
    projects: Mapping[str, Project],
    inventory: Sequence[str],
    now: float,
) -> Plan:
    """Decides for the moment `now` (Unix seconds). A job that asks for more devices than there are is passed over."""
    house = _House(list(free_devices(inventory, running)), list(running), now)
    starts: list[Start] = []
    victims: tuple[Running, ...] = ()
    head: _Reservation | None = None
    for job in in_order(waiting, running, projects):
        if job.devices > len(inventory):
            continue
        if len(house.free) >= job.devices and (head is None or head.admits(job)):
            starts.append(Start(job, house.take(job)))
        elif head is None:
            head = _reserve(job, house)
            victims = _victims(job, house)
    return Plan(tuple(starts), victims)


def pick_preflights(waiting: Iterable[Waiting], room: int, last_served: Mapping[str, float]) -> list[Waiting]:
    """Up to `room` of the jobs whose files are to be checked: by priority, projects in turn, then age.

    `last_served` says when each project last had its turn, in any unit that grows.
    """
    ordered = sorted(
        waiting, key=lambda job: (-job.priority, last_served.get(job.project_id, 0.0), job.position, job.job_id)
    )
    return ordered[: max(room, 0)]


def in_order(
    waiting: Iterable[Waiting], running: Sequence[Running], projects: Mapping[str, Project]
) -> Iterator[Waiting]:
    """The jobs that quotas allow to run, in the order in which they have a right to devices.

    A project is charged for each of its jobs that is passed on, so that equal projects take turns.
    """
    levels: dict[int, dict[str, deque[Waiting]]] = {}
    for job in sorted(waiting, key=lambda each: (each.position, each.job_id)):
        levels.setdefault(job.priority, {}).setdefault(job.project_id, deque()).append(job)
    accounts = {
        project_id: _Account(projects.get(project_id, Project())) for level in levels.values() for project_id in level
    }
    for run in running:
        if run.project_id in accounts:
            accounts[run.project_id].running += 1
    for priority in sorted(levels, reverse=True):
        yield from _in_turns(levels[priority], accounts)


def free_devices(inventory: Sequence[str], running: Iterable[Running]) -> Sequence[str]:
    """The devices that no run holds."""
    runs = list(running)
    held = {device for run in runs for device in run.devices}
    # Runs that a version without this list has started hold one device each, nobody knows which.
    nameless = sum(not run.devices for run in runs)
    return [device for device in inventory if device not in held][nameless:]


@dataclass(slots=True)
class _Account:
    """A project during one decision."""

    project: Project
    charged: float = 0.0
    running: int = 0

    @property
    def burden(self) -> float:
        """What the project has had, in proportion to what it may have."""
        return (self.project.used + self.charged) / self.project.share

    @property
    def may_run(self) -> bool:
        quota, left = self.project.max_running, self.project.device_seconds_left
        return (quota is None or self.running < quota) and (left is None or self.charged < left)

    def charge(self, job: Waiting) -> None:
        self.charged += job.devices * (job.expected_seconds or _UNKNOWN_DURATION_SECONDS)
        self.running += 1


def _in_turns(queues: Mapping[str, deque[Waiting]], accounts: Mapping[str, _Account]) -> Iterator[Waiting]:
    """Jobs of one priority: always of the project with the least burden, among equals the oldest."""
    turns = [(accounts[each].burden, queue[0].position, each) for each, queue in queues.items()]
    heapify(turns)
    while turns:
        _, _, project_id = heappop(turns)
        account, queue = accounts[project_id], queues[project_id]
        if not account.may_run:
            continue
        job = queue.popleft()
        account.charge(job)
        if queue:
            heappush(turns, (account.burden, queue[0].position, project_id))
        yield job


@dataclass(slots=True)
class _House:
    """Devices and runs during one decision."""

    free: list[str]
    running: list[Running]
    now: float
    started: list[Waiting] = field(default_factory=list)

    def take(self, job: Waiting) -> tuple[str, ...]:
        taken, self.free = tuple(self.free[: job.devices]), self.free[job.devices :]
        self.started.append(job)
        return taken

    def releases(self) -> list[tuple[float, int]]:
        """When how many devices become free, soonest first; what nobody knows comes last, at infinity."""
        of_runs = [(_remaining(run), len(run.devices)) for run in self.running]
        of_starts = [(job.expected_seconds or inf, job.devices) for job in self.started]
        return sorted(of_runs + of_starts)


@dataclass(slots=True)
class _Reservation:
    """What the head of the queue is sure of: enough devices in `wait_seconds`, of which `spare` are left over."""

    wait_seconds: float
    spare: int

    def admits(self, job: Waiting) -> bool:
        """Whether the job cannot delay the head: it is over in time, or takes only what the head leaves."""
        over_in = inf if job.expected_seconds is None else job.expected_seconds * ESTIMATE_MARGIN
        if over_in < inf and over_in <= self.wait_seconds < inf:
            return True
        if job.devices > self.spare:
            return False
        self.spare -= job.devices
        return True


def _reserve(head: Waiting, house: _House) -> _Reservation:
    available = len(house.free)
    for wait_seconds, count in house.releases():
        if wait_seconds == inf:
            break
        available += count
        if available >= head.devices:
            return _Reservation(wait_seconds, available - head.devices)
    # Nobody knows when: then whoever takes a free device may take it from the head.
    return _Reservation(inf, 0)


def _victims(head: Waiting, house: _House) -> tuple[Running, ...]:
    """The fewest runs of lower priority that make room for the head; none when they cannot, or need not."""
    missing = head.devices - len(house.free) - sum(len(run.devices) for run in house.running if run.leaving)
    if missing <= 0:
        return ()
    candidates = [
        run
        for run in house.running
        if run.priority < head.priority and not run.leaving and house.now - run.started_at >= MIN_RUN_SECONDS
    ]
    chosen: list[Running] = []
    # Whoever saved last loses least.
    for run in sorted(candidates, key=lambda run: (run.priority, -run.saved_at, run.attempt_id)):
        if missing > 0:
            chosen.append(run)
            missing -= len(run.devices)
    if missing > 0:
        return ()
    # A small one that was taken before a big one may not be needed any more.
    for run in sorted(chosen, key=lambda run: (-run.priority, run.saved_at, run.attempt_id)):
        if missing + len(run.devices) <= 0:
            chosen.remove(run)
            missing += len(run.devices)
    return tuple(chosen)


def _remaining(run: Running) -> float:
    if run.leaving:
        return 0.0
    return inf if run.remaining_seconds is None else run.remaining_seconds
