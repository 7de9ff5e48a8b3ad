"""Who may start now, on which devices, and who makes room."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tunesmith_server.scheduling.capacity import (
    ESTIMATE_MARGIN,
    MIN_RUN_SECONDS,
    Project,
    Running,
    Start,
    Waiting,
    free_devices,
    in_order,
    pick_preflights,
    plan,
)

NOW = 1_000_000.0
INVENTORY = tuple(f"gpu-{number}" for number in range(4))

seconds = st.none() | st.integers(1, 1000).map(float)
project_ids = st.sampled_from(["a", "b", "c"])
jobs = st.builds(
    Waiting,
    job_id=st.uuids().map(str),
    project_id=project_ids,
    priority=st.integers(-1, 1),
    position=st.integers(0, 9),
    devices=st.integers(1, 5),
    expected_seconds=seconds,
)
projects = st.dictionaries(
    project_ids,
    st.builds(
        Project,
        share=st.sampled_from([0.5, 1.0, 2.0]),
        used=st.integers(0, 5000).map(float),
        max_running=st.none() | st.integers(0, 3),
        device_seconds_left=st.none() | st.integers(-100, 2000).map(float),
    ),
)


@st.composite
def houses(draw: st.DrawFn) -> list[Running]:
    """Runs that hold some of the devices, none twice."""
    devices = list(draw(st.permutations(INVENTORY)))
    found = []
    for number, size in enumerate(draw(st.lists(st.integers(1, 3), max_size=4))):
        held, devices = tuple(devices[:size]), devices[size:]
        if held:
            found.append(
                Running(
                    attempt_id=f"attempt-{number}",
                    job_id=f"job-{number}",
                    project_id=draw(project_ids),
                    devices=held,
                    started_at=NOW - draw(st.integers(0, 1000)),
                    priority=draw(st.integers(-1, 1)),
                    remaining_seconds=draw(seconds),
                    saved_at=draw(st.integers(0, 9)),
                    leaving=draw(st.booleans()),
                )
            )
    return found


@given(st.lists(jobs, max_size=8), houses(), projects)
def test_no_device_is_given_twice_and_every_job_gets_all_or_none(
    waiting: list[Waiting], running: list[Running], shares: dict[str, Project]
) -> None:
    starts = plan(waiting, running, shares, INVENTORY, NOW).starts
    given_out = [device for start in starts for device in start.devices]
    assert len(given_out) == len(set(given_out))
    assert set(given_out) <= set(free_devices(INVENTORY, running))
    assert all(len(start.devices) == start.job.devices for start in starts)
    assert len({start.job.job_id for start in starts}) == len(starts)


@given(st.lists(jobs, max_size=8), houses(), projects)
def test_quotas_hold(waiting: list[Waiting], running: list[Running], shares: dict[str, Project]) -> None:
    starts = plan(waiting, running, shares, INVENTORY, NOW).starts
    for project_id in {start.job.project_id for start in starts}:
        project = shares.get(project_id, Project())
        live = sum(run.project_id == project_id for run in running)
        started = sum(start.job.project_id == project_id for start in starts)
        assert project.max_running is None or live + started <= project.max_running
        assert project.device_seconds_left is None or project.device_seconds_left > 0


@given(st.lists(jobs, max_size=8), houses(), projects)
def test_nobody_is_passed_by_a_job_that_could_delay_it(
    waiting: list[Waiting], running: list[Running], shares: dict[str, Project]
) -> None:
    """If all runs end when they are expected to, the head of the queue starts when it would have without the rest."""
    starts = plan(waiting, running, shares, INVENTORY, NOW).starts
    started = {start.job.job_id for start in starts}
    order = [job for job in in_order(waiting, running, shares) if job.devices <= len(INVENTORY)]
    head = next((job for job in order if job.job_id not in started), None)
    if head is None:
        return
    before = [start for start in starts if order.index(start.job) < order.index(head)]
    assert earliest(head, running, starts) == earliest(head, running, before)


@given(st.lists(jobs, max_size=8), houses(), projects)
def test_a_job_that_fits_is_only_passed_by_priority_or_for_the_head(
    waiting: list[Waiting], running: list[Running], shares: dict[str, Project]
) -> None:
    starts = plan(waiting, running, shares, INVENTORY, NOW).starts
    order = [job for job in in_order(waiting, running, shares) if job.devices <= len(INVENTORY)]
    assert [job.priority for job in order] == sorted((job.priority for job in order), reverse=True)
    if order and order[0].devices <= len(free_devices(INVENTORY, running)):
        assert starts[0].job == order[0]


@given(st.lists(jobs, max_size=8), houses(), projects)
def test_only_lower_priorities_make_room_after_their_time_and_only_when_it_helps(
    waiting: list[Waiting], running: list[Running], shares: dict[str, Project]
) -> None:
    decided = plan(waiting, running, shares, INVENTORY, NOW)
    if not decided.victims:
        return
    started = {start.job.job_id for start in decided.starts}
    order = [job for job in in_order(waiting, running, shares) if job.devices <= len(INVENTORY)]
    head = next(job for job in order if job.job_id not in started)
    before = [start for start in decided.starts if order.index(start.job) < order.index(head)]
    free = len(free_devices(INVENTORY, running)) - sum(start.job.devices for start in before)
    free += sum(len(run.devices) for run in running if run.leaving)
    gained = [len(victim.devices) for victim in decided.victims]
    assert all(victim.priority < head.priority and not victim.leaving for victim in decided.victims)
    assert all(NOW - victim.started_at >= MIN_RUN_SECONDS for victim in decided.victims)
    assert free < head.devices <= free + sum(gained)
    assert free + sum(gained) - min(gained) < head.devices, "one victim would not have been needed"


def test_equal_projects_take_turns_and_the_oldest_comes_first() -> None:
    waiting = [job("a", 1), job("a", 2), job("a", 3), job("b", 4), job("b", 5)]
    assert names(in_order(waiting, [], {})) == ["a1", "b4", "a2", "b5", "a3"]


def test_the_project_that_had_less_for_its_share_comes_first() -> None:
    waiting = [job("a", 1), job("b", 2)]
    had = {"a": Project(share=1.0, used=100.0), "b": Project(share=3.0, used=240.0)}
    assert names(in_order(waiting, [], had)) == ["b2", "a1"]
    assert names(in_order([replace(waiting[0], priority=1), waiting[1]], [], had)) == ["a1", "b2"]


def test_a_short_job_fills_a_gap_before_the_head_and_a_long_one_does_not() -> None:
    busy = [run("x", 3, remaining_seconds=600.0)]
    head = job("a", 1, devices=4)
    short = job("a", 2, expected_seconds=600.0 / ESTIMATE_MARGIN)
    long = job("a", 3, expected_seconds=600.0)
    assert started(plan([head, long, short], busy, {}, INVENTORY, NOW).starts) == ["a2"]
    unknown = [replace(busy[0], remaining_seconds=None)]
    assert plan([head, short], unknown, {}, INVENTORY, NOW).starts == ()


def test_what_the_head_leaves_over_may_be_taken_for_long() -> None:
    busy = [run("x", 2, remaining_seconds=600.0)]
    waiting = [job("a", 1, devices=3), job("a", 2), job("a", 3)]
    assert started(plan(waiting, busy, {}, INVENTORY, NOW).starts) == ["a2"]


def test_a_job_that_is_larger_than_the_machine_holds_nobody_up() -> None:
    assert started(plan([job("a", 1, devices=5), job("a", 2)], [], {}, INVENTORY, NOW).starts) == ["a2"]


def test_a_run_that_names_no_device_holds_one() -> None:
    nameless = replace(run("x", 1), devices=())
    assert len(free_devices(INVENTORY, [nameless])) == 3


def test_victims_are_the_lowest_and_among_them_who_saved_last() -> None:
    running = [
        replace(run("x", 1, priority=0), saved_at=9.0),
        replace(run("y", 1, priority=-1), saved_at=5.0),
        replace(run("z", 1, priority=-1), saved_at=7.0),
        replace(run("young", 1, priority=-1), started_at=NOW),
    ]
    house = [replace(each, devices=(device,)) for each, device in zip(running, INVENTORY, strict=True)]
    urgent = job("a", 1, priority=5)
    assert [each.attempt_id for each in plan([urgent], house, {}, INVENTORY, NOW).victims] == ["z"]
    two = replace(urgent, devices=2)
    assert [each.attempt_id for each in plan([two], house, {}, INVENTORY, NOW).victims] == ["z", "y"]
    assert plan([replace(urgent, devices=4)], house, {}, INVENTORY, NOW).victims == ()
    leaving = [replace(house[0], leaving=True), *house[1:]]
    assert plan([urgent], leaving, {}, INVENTORY, NOW).victims == (), "one is on its way out already"


def test_shares_are_kept_in_the_long_run() -> None:
    used = {"a": 0.0, "b": 0.0}
    for turn in range(300):
        waiting = [replace(job(name, 2 * turn + number), expected_seconds=None) for number, name in enumerate("ab")]
        had = {"a": Project(share=2.0, used=used["a"]), "b": Project(share=1.0, used=used["b"])}
        (start,) = plan(waiting, [], had, ("gpu-0",), NOW).starts
        used[start.job.project_id] += 100.0 if start.job.project_id == "a" else 170.0
    assert 1.9 < used["a"] / used["b"] < 2.1


def test_preflights_take_turns_between_projects() -> None:
    waiting = [job("a", 1), job("b", 2), replace(job("c", 3), priority=1)]
    assert names(pick_preflights(waiting, 2, {"a": 5.0})) == ["c3", "b2"]
    assert pick_preflights(waiting, -1, {}) == []


def job(project_id: str, position: int, **changes: object) -> Waiting:
    """A job with a name that says where it stands."""
    return replace(Waiting(f"{project_id}{position}", project_id, position=position), **changes)  # type: ignore[arg-type]


def run(name: str, devices: int, **changes: object) -> Running:
    """A run that has had its time."""
    held = INVENTORY[:devices]
    return replace(Running(name, f"job-{name}", "other", held, NOW - MIN_RUN_SECONDS), **changes)  # type: ignore[arg-type]


def names(found: object) -> list[str]:
    """Ids of jobs."""
    return [each.job_id for each in found]  # type: ignore[attr-defined]


def started(starts: tuple[Start, ...]) -> list[str]:
    """Ids of the jobs that start."""
    return [start.job.job_id for start in starts]


def earliest(head: Waiting, running: list[Running], starts: object) -> float | None:
    """In how many seconds enough devices are free for the head, counting only what is known."""
    ends = [(0.0 if each.leaving else each.remaining_seconds, len(each.devices)) for each in running]
    ends += [(start.job.expected_seconds, start.job.devices) for start in starts]  # type: ignore[attr-defined]
    free = len(INVENTORY) - sum(count for _, count in ends)
    for end, count in [(0.0, 0), *sorted((end, count) for end, count in ends if end is not None)]:
        free += count
        if free >= head.devices:
            return end
    return None
