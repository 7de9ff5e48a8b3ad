"""Owns the conversation with the control plane: spec, heartbeats in the background, uploads, the end of the run.
Must not know models or data; outlives a control plane that is away."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_proto.training.v1 import training_pb2_grpc
from tunesmith_trainer.errors import InfrastructureFailed, Problem, RunFailed, Yielded

logger = logging.getLogger(__name__)

_CALL_SECONDS = 60.0
_LONG_CALL_SECONDS = 600.0  # the control plane hashes every object of a checkpoint before it answers
_OUTAGE_SECONDS = 1800.0  # how long the control plane may be away before the run gives up
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0
_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
)

_Request = TypeVar("_Request", bound=Message, contravariant=True)
_Answer = TypeVar("_Answer", bound=Message, covariant=True)


class _Method(Protocol[_Request, _Answer]):
    def __call__(
        self, request: _Request, *, timeout: float, metadata: tuple[tuple[str, str], ...], wait_for_ready: bool
    ) -> _Answer: ...


class Reporter:
    """Speaks for one attempt. Every method may wait out an outage of the control plane.

    `target` is the control plane's host:port; where it does not answer, `moved_to` is asked for another one. Methods
    raise Yielded when the attempt is no longer current, and InfrastructureFailed when the control plane stays away or
    refuses.
    """

    def __init__(
        self,
        target: str,
        token: str,
        *,
        moved_to: Callable[[], str | None] = lambda: None,
        outage_seconds: float = _OUTAGE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._moved_to = moved_to
        self._connect(target)
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._outage_seconds = outage_seconds
        self._clock = clock
        self._state = threading.Lock()  # guards everything below; never held during a call
        self._sending = threading.Lock()  # one heartbeat at a time
        self._status = pb.HeartbeatRequest(phase="starting")
        self._outbox = pb.HeartbeatRequest()
        self._in_flight: pb.HeartbeatRequest | None = None
        self._sequence = 0
        self._command = pb.COMMAND_UNSPECIFIED
        self._lost: Exception | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._report: pb.PreflightReport | None = None

    def get_spec(self) -> pb.TrainingSpec:
        """What this run is to do, with fresh URLs."""
        return self._call(lambda stub: stub.GetSpec, pb.GetSpecRequest()).spec

    def start_heartbeats(self, interval_seconds: float) -> None:
        """Begins to renew the lease in the background, at once and then every `interval_seconds`."""
        self._thread = threading.Thread(target=self._keep_beating, args=(interval_seconds,), daemon=True)
        self._thread.start()

    def report(
        self, *, phase: str, step: int = 0, total_steps: int = 0, remaining_seconds: float | None = None
    ) -> None:
        """Says where the run is; travels with the next heartbeat. `phase` is one of the proto's words."""
        with self._state:
            self._status = pb.HeartbeatRequest(
                phase=phase, step=step, total_steps=total_steps, remaining_seconds=remaining_seconds
            )

    def add_metrics(self, metrics: pb.StepMetrics) -> None:
        """Queues one step's numbers; each is delivered once."""
        with self._state:
            self._outbox.metrics.append(metrics)

    def add_event(self, message: str, *, level: str = "info") -> None:
        """Queues a line for the job's event list; each is delivered once."""
        with self._state:
            self._outbox.events.append(pb.RunEvent(level=level, message=message))

    def check(self) -> None:
        """Raises Yielded once the control plane has stopped or replaced this attempt."""
        with self._state:
            if self._lost is not None:
                raise self._lost
            if self._command == pb.COMMAND_STOP:
                raise Yielded("the job was cancelled")

    def take_command(self) -> pb.Command.ValueType:
        """The latest unserved wish of the control plane; a wish is handed out once."""
        self.check()
        with self._state:
            command, self._command = self._command, pb.COMMAND_UNSPECIFIED
            return command

    def flush(self) -> None:
        """Returns once everything queued so far has been delivered."""
        while self._beat():
            pass

    def create_uploads(self, files: Sequence[pb.UploadFile]) -> list[pb.Upload]:
        """Presigned PUTs for files under this attempt's prefix."""
        return list(self._call(lambda stub: stub.CreateUploads, pb.CreateUploadsRequest(files=files)).uploads)

    def commit_checkpoint(self, step: int, artifact: pb.Artifact, metrics: pb.StepMetrics | None) -> str:
        """Makes the checkpoint exist. Returns its model name."""
        self.flush()
        request = pb.CommitCheckpointRequest(step=step, artifact=artifact, metrics=metrics)
        return self._call(lambda stub: stub.CommitCheckpoint, request, _LONG_CALL_SECONDS).model_name

    def attach(self, report: pb.PreflightReport) -> None:
        """Keeps what a preflight found; it travels with the end of the run, whichever it is."""
        self._report = report

    def complete_preflight(self, request: pb.CompletePreflightRequest) -> None:
        """Ends a preflight run that found nothing wrong."""
        self.flush()
        if self._report is not None:
            request.report.CopyFrom(self._report)
        self._call(lambda stub: stub.CompletePreflight, request)

    def complete_training(self, request: pb.CompleteTrainingRequest) -> str:
        """Ends a training run. Returns the tuned model's name."""
        self.flush()
        return self._call(lambda stub: stub.CompleteTraining, request, _LONG_CALL_SECONDS).model_name

    def complete_import(self, request: pb.CompleteImportRequest) -> str:
        """Ends an import. Returns the model's name."""
        self.flush()
        return self._call(lambda stub: stub.CompleteImport, request, _LONG_CALL_SECONDS).model_name

    def fail(self, cause: pb.FailureCause.ValueType, problems: Sequence[Problem]) -> None:
        """Ends a run that cannot go on, after what is queued: the last steps often show why."""
        try:
            self.flush()
        except InfrastructureFailed:
            raise
        except RunFailed as refused:  # what was queued; why the run ends must be heard nevertheless
            logger.warning("the last news could not be delivered: %s", refused)
        failures = [
            pb.Failure(code=problem.code, message=problem.message, param=problem.param, row=problem.row)
            for problem in problems
        ]
        self._call(lambda stub: stub.FailRun, pb.FailRunRequest(cause=cause, failures=failures, report=self._report))

    def close(self) -> None:
        """Stops the heartbeats; what is queued and undelivered is dropped."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self._channel.close()

    def _connect(self, target: str) -> None:
        self._target = target
        self._channel = grpc.insecure_channel(
            target,
            # A control plane that comes back is to be found within seconds.
            options=[("grpc.max_reconnect_backoff_ms", 5000), ("grpc.max_receive_message_length", 64 << 20)],
        )
        self._stub = training_pb2_grpc.TrainingServiceStub(self._channel)

    def _follow(self) -> None:
        """Turns to where the control plane has moved, if it has."""
        target = self._moved_to()
        with self._state:
            if target and target != self._target:
                logger.warning("the control plane has moved to %s", target)
                self._connect(target)  # a call of another thread may still be waiting for the former channel

    def _keep_beating(self, interval_seconds: float) -> None:
        while not self._stop.is_set():
            try:
                self._beat()
            except (Yielded, InfrastructureFailed):
                return  # noted where `check` finds it
            self._stop.wait(interval_seconds)

    def _beat(self) -> bool:
        """Sends one heartbeat until it is answered. Returns whether more has been queued meanwhile."""
        with self._sending:
            with self._state:
                if self._in_flight is None:
                    self._sequence += 1
                    self._in_flight = pb.HeartbeatRequest(sequence=self._sequence)
                    self._in_flight.MergeFrom(self._status)
                    self._in_flight.MergeFrom(self._outbox)
                    self._outbox.Clear()
                # An unanswered heartbeat may have arrived: it is repeated as it was, under its number.
                request = self._in_flight
            answer = self._call(lambda stub: stub.Heartbeat, request)
            with self._state:
                self._in_flight = None
                if answer.command != pb.COMMAND_UNSPECIFIED:
                    self._command = answer.command
                return len(self._outbox.metrics) + len(self._outbox.events) > 0

    def _call(
        self,
        method: Callable[[training_pb2_grpc.TrainingServiceStub], _Method[_Request, _Answer]],
        request: _Request,
        seconds: float = _CALL_SECONDS,
    ) -> _Answer:
        """Calls until an answer comes, for as long as the control plane may be away."""
        gives_up_at = self._clock() + self._outage_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return method(self._stub)(request, timeout=seconds, metadata=self._metadata, wait_for_ready=False)
            except grpc.RpcError as error:
                failure = _verdict(error) or (None if self._clock() < gives_up_at else _AWAY_TOO_LONG)
            if failure is not None:
                with self._state:
                    self._lost = failure
                raise failure
            logger.warning("the control plane does not answer; trying again in %.1f s", pause)
            if self._stop.wait(pause):
                raise _AWAY_TOO_LONG
            pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)
            self._follow()


class Silence(Reporter):
    """In the place of a reporter on the ranks that do not speak: what is said by the way is dropped.

    Only what it overrides may be called.
    """

    def __init__(self) -> None:
        pass

    def report(
        self, *, phase: str, step: int = 0, total_steps: int = 0, remaining_seconds: float | None = None
    ) -> None:
        """Drops it."""

    def add_metrics(self, metrics: pb.StepMetrics) -> None:
        """Drops them."""

    def add_event(self, message: str, *, level: str = "info") -> None:
        """Drops it."""

    def check(self) -> None:
        """Never raises: when the attempt is to stop, the leader does."""

    def close(self) -> None:
        """Nothing is open."""


_AWAY_TOO_LONG = InfrastructureFailed(
    Problem("control_plane_away", "The control plane did not answer for longer than a run may wait.")
)


def _verdict(error: grpc.RpcError) -> Exception | None:
    """What an error means for the run; None where trying again may help."""
    status = error.code()
    if status == grpc.StatusCode.FAILED_PRECONDITION and _reason(error) == "fenced":
        return Yielded("a newer attempt has replaced this one")
    if status in _AWAY:
        return None
    said = f"The control plane refused a call of the run ({status.name.lower()}): {error.details()}"
    problem = Problem("control_plane_refused", said)
    if status in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
        return RunFailed(problem)
    return InfrastructureFailed(problem)


def _reason(error: grpc.RpcError) -> str | None:
    """The stable error code that travels in the error's details."""
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return None
