"""Owns runs for volume: tasks of this process instead of processes, with real calls and uploads over real sockets.

It must not know what a test does with the control plane that they call.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import grpc.aio
import httpx

from tests.support.artifacts import adapter_files
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_proto.training.v1 import training_pb2_grpc
from tunesmith_server.executors.base import Inventory, Launch, Observation, RunState

STEPS = 2
_FENCED = 75
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_WAIT_SECONDS = 0.05

Answer = TypeVar("Answer")


class TaskExecutor:
    """An executor whose runs are tasks. `notes` are theirs, by job: one line for each training run."""

    def __init__(self, slots: int) -> None:
        self.notes: dict[str, list[str]] = defaultdict(list)
        self._slots = slots
        self._runs: dict[str, asyncio.Task[int]] = {}

    async def capabilities(self) -> Inventory:
        """So many slots."""
        return Inventory(tuple(f"slot-{number}" for number in range(self._slots)))

    async def ensure(self, launch: Launch) -> None:
        """Starts the run unless there was one of this attempt."""
        if launch.attempt_id not in self._runs:
            self._runs[launch.attempt_id] = asyncio.create_task(self._run(launch))

    async def observe(self, attempt_id: str) -> Observation:
        """Running, exited with the code, or gone."""
        run = self._runs.get(attempt_id)
        if run is None:
            return Observation(RunState.GONE)
        if not run.done():
            return Observation(RunState.RUNNING)
        return Observation(RunState.EXITED, 137 if run.cancelled() or run.exception() else run.result())

    async def stop(self, attempt_id: str, grace_seconds: float) -> None:
        """Ends the run."""
        if attempt_id in self._runs:
            self._runs[attempt_id].cancel()
            await asyncio.wait([self._runs[attempt_id]])

    async def list_attempts(self) -> list[str]:
        """Runs that were not forgotten."""
        return sorted(self._runs)

    async def forget(self, attempt_id: str) -> None:
        """Removes an ended run."""
        self._runs.pop(attempt_id, None)

    async def read_log(self, attempt_id: str, max_bytes: int = 65536) -> str:
        """Runs that are tasks write nothing."""
        return ""

    async def _run(self, launch: Launch) -> int:
        async with grpc.aio.insecure_channel(launch.control_plane) as channel, httpx.AsyncClient(timeout=30) as http:
            run = _Run(training_pb2_grpc.TrainingServiceStub(channel), http, launch.token)
            try:
                return await run.work(self.notes)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    return _FENCED
                raise


class _Run:
    def __init__(self, stub: training_pb2_grpc.TrainingServiceAsyncStub, http: httpx.AsyncClient, token: str) -> None:
        self._stub = stub
        self._http = http
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def work(self, notes: dict[str, list[str]]) -> int:
        spec = (await self._call(self._stub.GetSpec, pb.GetSpecRequest())).spec
        if spec.kind == pb.RUN_KIND_PREFLIGHT:
            numbers = pb.Hyperparameters(
                n_epochs=1, batch_size=5, learning_rate_multiplier=1, lora_rank=2, lora_alpha=4, context_length=64
            )
            report = pb.CompletePreflightRequest(
                hyperparameters=numbers, learning_rate=1e-4, rows=10, total_steps=STEPS
            )
            await self._call(self._stub.CompletePreflight, report)
            return 0
        notes[spec.job_id].append(f"e{spec.epoch}")
        mark = hashlib.sha256(spec.job_id.encode()).digest()[:8]
        files = {
            name: content[:-8] + mark if name.endswith(".safetensors") else content
            for name, content in adapter_files().items()
        }
        for step in range(spec.resume.step + 1, STEPS + 1):
            metrics = pb.StepMetrics(step=step, train_loss=2.0 / step, train_mean_token_accuracy=0.5, tokens=10)
            beat = pb.HeartbeatRequest(sequence=step, phase="training", step=step, total_steps=STEPS, metrics=[metrics])
            await self._call(self._stub.Heartbeat, beat)
        artifact = pb.Artifact(kind=pb.ARTIFACT_KIND_ADAPTER, prefix=f"step-{STEPS}", files=_said(files))
        if spec.resume.step < STEPS:
            await self._upload({f"step-{STEPS}/{name}": content for name, content in files.items()})
            commit = pb.CommitCheckpointRequest(step=STEPS, artifact=artifact, metrics=metrics)
            await self._call(self._stub.CommitCheckpoint, commit)
        done = pb.CompleteTrainingRequest(step=STEPS, artifact=artifact, trained_tokens=20)
        await self._call(self._stub.CompleteTraining, done)
        return 0

    async def _upload(self, contents: dict[str, bytes]) -> None:
        answer = await self._call(self._stub.CreateUploads, pb.CreateUploadsRequest(files=_said(contents)))
        for upload in answer.uploads:
            put = self._http.put(upload.url, content=contents[upload.path], headers=dict(upload.headers))
            (await put).raise_for_status()

    async def _call(self, method: Callable[..., Awaitable[Answer]], request: object) -> Answer:
        """Waits for a control plane that cannot answer now."""
        while True:
            try:
                return await method(request, metadata=self._metadata, timeout=30)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AWAY:
                    raise
                await asyncio.sleep(_WAIT_SECONDS)


def _said(contents: dict[str, bytes]) -> list[pb.UploadFile]:
    return [
        pb.UploadFile(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for path, content in contents.items()
    ]
