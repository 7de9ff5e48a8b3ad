"""Owns talking to a Docker daemon: HTTP over its unix socket, and which of its answers mean that it is away.

It must not know runs or attempts.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from tunesmith_server.errors import UnavailableError

_LIMIT_SECONDS = 60.0
_FRAME_HEADER_BYTES = 8


class DockerApi:
    """Calls of one daemon. Nothing stays open between two of them, so the daemon may restart at any time."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._version = ""

    async def call(
        self,
        method: str,
        path: str,
        *,
        accept: Container[int] = frozenset({HTTPStatus.OK}),
        params: Mapping[str, str | int] | None = None,
        json: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        limit_seconds: float = _LIMIT_SECONDS,
    ) -> httpx.Response:
        """The answer; raises UnavailableError when there is none, or one whose status is not in `accept`."""
        # No certificates are read and no proxies are looked up: this connection never leaves the machine.
        transport = httpx.AsyncHTTPTransport(uds=str(self._socket), verify=False)
        try:
            async with httpx.AsyncClient(
                transport=transport, base_url="http://docker", trust_env=False, timeout=limit_seconds
            ) as client:
                url = f"{await self._prefix(client)}{path}"
                response = await client.request(method, url, params=params, json=json, content=content)
        except httpx.HTTPError as error:
            raise UnavailableError("docker_unavailable", f"The Docker daemon at {self._socket} is away.") from error
        if response.status_code not in accept:
            raise UnavailableError("docker_refused", f"Docker refused {method} {path}: {_message(response)}")
        return response

    async def _prefix(self, client: httpx.AsyncClient) -> str:
        """The daemon's own version of the API: what is used here has not changed since 1.41."""
        if not self._version:
            response = await client.get("/_ping")
            response.raise_for_status()
            self._version = response.headers["Api-Version"]
        return f"/v{self._version}"


def joined_output(stream: bytes) -> bytes:
    """Standard output and error of a container's log as they were written, without the frames that tell them apart."""
    parts = []
    position = 0
    while position + _FRAME_HEADER_BYTES <= len(stream):
        start = position + _FRAME_HEADER_BYTES
        position = start + int.from_bytes(stream[position + 4 : start], "big")
        parts.append(stream[start:position])
    return b"".join(parts)


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
