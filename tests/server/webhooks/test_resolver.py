"""Names whose servers are silent cost nobody but the webhooks that name them."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tunesmith_server.webhooks.resolver import LOOKUPS_AT_ONCE, SystemResolver

DEAD = "hooks.dead.example"
END_WHILE_A_NAME_IS_LOOKED_UP = """
import asyncio, socket, threading
from tunesmith_server.webhooks.resolver import SystemResolver
begun = threading.Event()
def hang(*_, **__):
    begun.set()
    threading.Event().wait()
socket.getaddrinfo = hang
async def main():
    asking = asyncio.create_task(SystemResolver()("hooks.dead.example", 443))
    while not begun.is_set():
        await asyncio.sleep(0)
    asking.cancel()
asyncio.run(main())
"""


class Names:
    """A system's resolver that says nothing of DEAD until it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = threading.Event()
        self._any_asked = threading.Condition()

    def getaddrinfo(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        """Stands for socket.getaddrinfo."""
        with self._any_asked:
            self.asked.append(host)
            self._any_asked.notify_all()
        if host == DEAD:
            self.answer.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "no server answers")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", port))]

    async def were_asked(self, times: int) -> None:
        """Returns once so many look-ups have begun."""

        def wait() -> None:
            with self._any_asked:
                assert self._any_asked.wait_for(lambda: len(self.asked) >= times, 10)

        await asyncio.to_thread(wait)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.answer.set()


async def test_others_look_names_up_while_many_webhooks_wait_for_theirs(names: Names) -> None:
    resolve = SystemResolver()
    waiting = [asyncio.create_task(resolve(DEAD, 443)) for _ in range(3 * LOOKUPS_AT_ONCE)]
    async with asyncio.timeout(10):
        await names.were_asked(LOOKUPS_AT_ONCE)
        found = await asyncio.get_running_loop().getaddrinfo("gateway", 8002)
    assert found[0][4] == ("8.8.8.8", 8002)
    assert names.asked.count(DEAD) == LOOKUPS_AT_ONCE, "the others wait without a thread"

    names.answer.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(answer) for answer in answers} == {socket.gaierror}
    assert await resolve("hooks.example.com", 443) == ["8.8.8.8"]


async def test_a_lookup_whose_caller_gave_up_still_counts(names: Names) -> None:
    resolve = SystemResolver(lookups_at_once=1)
    first = asyncio.create_task(resolve(DEAD, 443))
    await names.were_asked(1)
    first.cancel()
    second = asyncio.create_task(resolve("hooks.example.com", 443))
    await asyncio.wait([first])
    assert names.asked == [DEAD]

    names.answer.set()
    assert await second == ["8.8.8.8"]


async def test_a_machine_without_a_thread_to_give_refuses_one_lookup(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    resolve = SystemResolver(lookups_at_once=1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(OSError, match="can't start new thread"):
            await resolve("hooks.example.com", 443)
    assert await resolve("hooks.example.com", 443) == ["8.8.8.8"]


def test_a_process_ends_while_a_name_is_looked_up() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", END_WHILE_A_NAME_IS_LOOKED_UP], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
