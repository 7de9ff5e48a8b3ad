"""The conversation with the control plane survives its absence and delivers everything once."""

import threading

import pytest

from tests.support.training_server import TOKEN, TrainingServer
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer.errors import InfrastructureFailed, Problem, Yielded
from tunesmith_trainer.reporter import Reporter


def connect(server: TrainingServer, **options: float) -> Reporter:
    return Reporter(f"127.0.0.1:{server.port}", TOKEN, **options)  # type: ignore[arg-type]  # only numbers are passed


def test_a_run_finds_a_control_plane_that_comes_back_at_another_address(server: TrainingServer) -> None:
    first = f"127.0.0.1:{server.port}"
    reporter = Reporter(first, TOKEN, moved_to=lambda: f"127.0.0.1:{server.port}")
    reporter.add_metrics(pb.StepMetrics(step=1))
    reporter.flush()
    server.stop()
    server.port = 0  # any other
    server.start()
    reporter.add_metrics(pb.StepMetrics(step=2))
    reporter.flush()
    reporter.close()

    assert first != f"127.0.0.1:{server.port}"
    assert [one.step for one in server.metrics] == [1, 2]


def test_metrics_and_events_arrive_once_in_order(server: TrainingServer) -> None:
    reporter = connect(server)
    reporter.report(phase="training", step=2, total_steps=9, remaining_seconds=3.5)
    reporter.add_metrics(pb.StepMetrics(step=1))
    reporter.add_event("hello")
    reporter.flush()
    reporter.add_metrics(pb.StepMetrics(step=2))
    reporter.flush()
    reporter.close()

    assert [one.step for one in server.metrics] == [1, 2]
    assert sorted(server.heartbeats) == [1, 2]
    first = server.heartbeats[1]
    assert (first.phase, first.step, first.total_steps, first.remaining_seconds) == ("training", 2, 9, 3.5)
    assert first.events[0].message == "hello"


def test_an_unanswered_heartbeat_is_repeated_under_its_number(server: TrainingServer) -> None:
    server.forget_replies = 2
    reporter = connect(server)
    reporter.add_metrics(pb.StepMetrics(step=1))
    reporter.flush()
    reporter.close()

    assert list(server.heartbeats) == [1]
    assert [one.step for one in server.metrics] == [1]


def test_a_run_outlives_an_outage_of_the_control_plane(server: TrainingServer) -> None:
    beaten = threading.Event()
    server.on_heartbeat = lambda request: beaten.set()
    reporter = connect(server)
    reporter.start_heartbeats(0.05)
    assert beaten.wait(10)
    server.stop()
    for step in range(1, 4):
        reporter.add_metrics(pb.StepMetrics(step=step))
        reporter.check()  # nothing is wrong with the run
    server.start()
    reporter.flush()
    reporter.close()

    assert [one.step for one in server.metrics] == [1, 2, 3]


def test_an_outage_beyond_patience_ends_the_run(server: TrainingServer) -> None:
    server.stop()
    reporter = connect(server, outage_seconds=0.0)

    with pytest.raises(InfrastructureFailed) as away:
        reporter.get_spec()
    assert away.value.problems[0].code == "control_plane_away"
    reporter.close()
    server.start()


def test_a_fenced_attempt_is_told_by_whatever_it_calls(server: TrainingServer) -> None:
    server.fenced = True
    reporter = connect(server)

    with pytest.raises(Yielded):
        reporter.flush()
    with pytest.raises(Yielded):
        reporter.check()
    with pytest.raises(Yielded):
        reporter.create_uploads([])
    reporter.close()


def test_a_command_is_handed_out_once(server: TrainingServer) -> None:
    server.commands = {0: pb.COMMAND_CHECKPOINT}
    reporter = connect(server)
    reporter.flush()

    assert reporter.take_command() == pb.COMMAND_CHECKPOINT
    assert reporter.take_command() == pb.COMMAND_UNSPECIFIED
    reporter.close()


def test_a_stop_ends_the_run_at_its_next_check(server: TrainingServer) -> None:
    server.commands = {0: pb.COMMAND_STOP}
    reporter = connect(server)
    reporter.flush()

    with pytest.raises(Yielded):
        reporter.check()
    reporter.close()


def test_a_wrong_token_is_not_retried(server: TrainingServer) -> None:
    reporter = Reporter(f"127.0.0.1:{server.port}", "wrong")

    with pytest.raises(InfrastructureFailed, match=r"refused a call of the run \(unauthenticated\): unknown token"):
        reporter.get_spec()
    reporter.close()


def test_failures_carry_parameter_and_row(server: TrainingServer) -> None:
    reporter = connect(server)
    reporter.fail(
        pb.FAILURE_CAUSE_USER, [Problem("row_too_long", "Row 3 is long.", "training_file", 3), Problem("x", "y")]
    )
    reporter.close()

    assert server.failed is not None
    first, second = server.failed.failures
    assert (first.code, first.param, first.row) == ("row_too_long", "training_file", 3)
    assert not second.HasField("param")
    assert not second.HasField("row")


def test_what_is_queued_arrives_before_the_failure(server: TrainingServer) -> None:
    reporter = connect(server)
    reporter.add_metrics(pb.StepMetrics(step=1, train_loss=9.0))
    reporter.fail(pb.FAILURE_CAUSE_USER, [Problem("loss_not_finite", "The loss is not a number.")])
    reporter.close()

    assert [one.step for one in server.metrics] == [1]
    assert server.failed is not None
