"""Owns the load: creates and lists over REST, heartbeats over gRPC, each measured at the client."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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


class JobMaker:
    """Clients that create jobs over bare connections: a library's would take as much of the machine as the server.

    Any answer but 200 ends the benchmark.
    """

    def __init__(self, port: int, api_key: str, file_id: str, model: str) -> None:
        self._port = port
        self._head = f"POST /v1/fine_tuning/jobs HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {api_key}\r\n"
        self._body = {"model": model, "training_file": file_id}
        self._numbers = itertools.count()
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def run(self, clients: int, seconds: float) -> Latencies:
        """So many clients for so long."""
        self._idle = [await asyncio.open_connection("127.0.0.1", self._port) for _ in range(clients)]
        try:
            return await closed_loop(self._create, clients, seconds)
        finally:
            for _, writer in self._idle:
                writer.close()

    async def _create(self) -> None:
        reader, writer = self._idle.pop()
        body = json.dumps(self._body | {"metadata": {"number": str(next(self._numbers))}})
        writer.write(
            f"{self._head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        answer = await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        if not head.startswith(b"http/1.1 200"):
            raise AssertionError(answer.decode())
        self._idle.append((reader, writer))


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has taken so far, in user and kernel: unlike a rate the same on a busy machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
