"""Owns the look-up of the names that users choose as targets, apart from all other look-ups of this server.

It must not know which addresses may be sent to.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

LOOKUPS_AT_ONCE = 16


class SystemResolver:
    """Asks the system's resolver, in threads that no other part of this server needs.

    Users choose the names, and one whose name servers are silent takes its thread for long after its caller gave up:
    the event loop's own threads, which all other look-ups share, must not be those. None holds up the process's end.
    """

    def __init__(self, lookups_at_once: int = LOOKUPS_AT_ONCE) -> None:
        self._free = asyncio.Semaphore(lookups_at_once)

    async def __call__(self, host: str, port: int) -> list[str]:
        """The addresses that it knows; raises OSError when there are none."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()
        arguments = (loop, answer, host, port)
        try:
            # Not an executor: its threads are waited for when the process ends.
            threading.Thread(target=self._ask, args=arguments, name="webhook-names", daemon=True).start()
        except RuntimeError as error:  # the machine has no thread to give
            self._free.release()
            raise OSError(str(error)) from error
        return await answer

    def _ask(self, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[list[str]], host: str, port: int) -> None:
        result: list[str] | Exception
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            result = [str(address[0]) for *_, address in found]
        except Exception as error:
            result = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(self._answered, answer, result)

    def _answered(self, answer: asyncio.Future[list[str]], result: list[str] | Exception) -> None:
        self._free.release()
        if answer.done():
            return  # nobody waits any more
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)
