"""The listening socket answers at once and says what to do when it cannot be had."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.support.ports import free_ports
from tunesmith_server.config import Settings
from tunesmith_server.serve import StartError, listening_socket


async def test_small_answers_are_not_held_back(tmp_path: Path) -> None:
    no_delay: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted: socket.socket = writer.get_extra_info("socket")
        no_delay.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with listening_socket(Settings(home=tmp_path, port=free_ports(1)[0])) as listening:
        async with await asyncio.start_server(connected, sock=listening):
            _reader, writer = await asyncio.open_connection(*listening.getsockname())
            assert await no_delay == 1
            writer.close()
            await writer.wait_closed()


def test_a_port_in_use_is_said_so(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, port=free_ports(1)[0])
    with listening_socket(settings), pytest.raises(StartError, match="in use"), listening_socket(settings):
        pass
