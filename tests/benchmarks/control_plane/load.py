"""Owns the load: creates and lists over REST, heartbeats over gRPC, each measured at the client."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc.aio
import httpx

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_proto.training.v1 import training_pb2_grpc

_CHANNELS = 16


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds of every call, and calls per second over all of them."""

    seconds: Sequence[float]
    per_second: float

    def percentile(self, share: float) -> float:
        """Milliseconds below which `share` of the calls stayed."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def closed_loop(call: Callable[[], Awaitable[object]], clients: int, seconds: float) -> Latencies:
    """As fast as `clients` can go, each waiting for its answer before the next call."""
    taken: list[float] = []
    started = time.perf_counter()

    async def client() -> None:
        while (begun := time.perf_counter()) < started + seconds:
            await call()
            taken.append(time.perf_counter() - begun)

    await asyncio.gather(*(client() for _ in range(clients)))
    return Latencies(taken, len(taken) / (time.perf_counter() - started))


async def create_jobs(client: httpx.AsyncClient, file_id: str, model: str, seconds: float) -> Latencies:
    """POST /v1/fine_tuning/jobs from 16 clients; any answer but 200 ends the benchmark."""
    numbers = itertools.count()

    async def create() -> None:
        body = {"model": model, "training_file": file_id, "metadata": {"number": str(next(numbers))}}
        (await client.post("/v1/fine_tuning/jobs", json=body)).raise_for_status()

    return await closed_loop(create, 16, seconds)


async def get(client: httpx.AsyncClient, path: str, times: int) -> Latencies:
    """One GET after the other."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        (await client.get(path)).raise_for_status()
        taken.append(time.perf_counter() - begun)
    return Latencies(taken, times / sum(taken))


class Trainers:
    """Many runs that heartbeat, over a few connections."""

    def __init__(self, address: str, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._channels = [grpc.aio.insecure_channel(address) for _ in range(_CHANNELS)]
        self._stubs = [training_pb2_grpc.TrainingServiceStub(channel) for channel in self._channels]
        self._numbers = itertools.count()

    async def close(self) -> None:
        """Hangs up."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def beat(self) -> None:
        """The next heartbeat of the next run, with one step's metrics."""
        number = next(self._numbers)
        run, sequence = number % len(self._tokens), number // len(self._tokens) + 1
        metrics = [pb.StepMetrics(step=sequence, train_loss=1.5, train_mean_token_accuracy=0.5, tokens=100, seconds=1)]
        request = pb.HeartbeatRequest(
            sequence=sequence, phase="training", step=sequence, total_steps=1000, metrics=metrics
        )
        metadata = (("authorization", f"Bearer {self._tokens[run]}"),)
        await self._stubs[number % _CHANNELS].Heartbeat(request, metadata=metadata, timeout=60)

    async def paced(self, per_second: float, seconds: float) -> Latencies:
        """Heartbeats at a steady rate, whether or not earlier ones were answered."""
        taken: list[float] = []
        started = time.perf_counter()

        async def timed() -> None:
            begun = time.perf_counter()
            await self.beat()
            taken.append(time.perf_counter() - begun)

        beats = []
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, started + number / per_second - time.perf_counter()))
            beats.append(asyncio.create_task(timed()))
        await asyncio.gather(*beats)
        return Latencies(taken, len(taken) / (time.perf_counter() - started))
