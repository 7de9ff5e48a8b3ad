"""Owns ports for servers of tests that have to be told theirs before they listen.

It must not know the servers. Any other that a test starts listens on port 0 instead.
"""

from __future__ import annotations

import random
import socket

# Below what Linux gives to port 0 and to outgoing connections: nobody takes one between here and its server's start.
_PORTS = range(20_000, 32_000)
_random = random.SystemRandom()  # of two test runs on one machine, neither may repeat the other
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, none of them twice."""
    return [free_port() for _ in range(count)]


def free_port() -> int:
    """One such port."""
    while True:
        port = _random.choice(_PORTS)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
