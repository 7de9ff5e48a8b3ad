"""Owns merged weights as a stream: base weights go through the trainer's `merge`, a process that adds the adapter.

It must not know tensors, nor where the weights come from.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

from tunesmith_server.errors import UnavailableError
from tunesmith_server.parent_guard import guarded

_CHUNK_BYTES = 1 << 20


async def merged(trainer_python: Path, adapter: Path, weights: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A safetensors file with the deltas of the adapter in folder `adapter`, as long as the one in `weights`.

    Raises UnavailableError (`merge_failed`) when the process fails, however much of the file was yielded.
    """
    program = (str(trainer_python), "-m", "tunesmith_trainer", "merge", "--adapter", str(adapter))
    process = await asyncio.create_subprocess_exec(*guarded(*program), stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
    feeding = asyncio.create_task(_feed(process, weights))
    try:
        while process.stdout is not None and (chunk := await process.stdout.read(_CHUNK_BYTES)):
            yield chunk
        if await process.wait() != 0:
            raise UnavailableError("merge_failed", "The weights could not be merged. Download the adapter instead.")
        await feeding
    finally:
        feeding.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.gather(process.wait(), feeding, return_exceptions=True)


async def _feed(process: asyncio.subprocess.Process, weights: AsyncIterator[bytes]) -> None:
    if process.stdin is None:
        return
    # A process that fails closes its end; its exit code says so.
    with contextlib.suppress(ConnectionError):
        async for chunk in weights:
            process.stdin.write(chunk)
            await process.stdin.drain()
        process.stdin.close()
