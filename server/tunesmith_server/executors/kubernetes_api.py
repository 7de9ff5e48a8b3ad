"""Owns talking to a Kubernetes API server with the official client, and which of its answers mean that it is away.

It must not know runs or attempts, nor what the objects mean.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Container, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from tunesmith_server.errors import UnavailableError

Object = dict[str, Any]
"""A Kubernetes object as JSON has it: typed models of a thousand pods would take forty times as long to make."""

_LIMIT_SECONDS = 30.0
_MERGE_PATCH = "application/merge-patch+json"
_WATCH_END_SECONDS = 10.0
_CHUNK_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Reply:
    """A status that the caller accepts, and the object that came with it."""

    status: int
    object: Object


class KubernetesApi:
    """Calls of one API server. Nothing stays open between two of them, so it may move or restart at any time."""

    def __init__(self, kubeconfig: Path | None) -> None:
        """Without a kubeconfig, as the service account of the pod that this process runs in; else UnavailableError."""
        self._kubeconfig = kubeconfig
        self._configuration: Configuration | None = None if kubeconfig else _service_account()

    async def call(
        self,
        method: str,
        path: str,
        *,
        accept: Container[int] = frozenset({HTTPStatus.OK}),
        params: Mapping[str, str | int] | None = None,
        body: Object | None = None,
    ) -> Reply:
        """The answer; raises UnavailableError when there is none, or one whose status is not in `accept`."""
        async with self._answer(method, path, params or {}, body, _LIMIT_SECONDS) as response:
            content = await response.read()
        if response.status not in accept:
            raise UnavailableError("kubernetes_refused", f"Kubernetes refused {method} {path}: {_message(content)}")
        return Reply(response.status, json.loads(content))

    async def wait_for_change(self, path: str, params: Mapping[str, str | int], version: str, seconds: int) -> bool:
        """Whether one of the listed objects has changed since `version`, waiting so long for it.

        False as well when the server has forgotten that version or closes early: only a new list can tell then.
        """
        wanted = {**params, "watch": "true", "resourceVersion": version, "timeoutSeconds": seconds}
        async with self._answer("GET", path, wanted, None, seconds + _WATCH_END_SECONDS) as response:
            if response.status != HTTPStatus.OK:
                return False
            line = await response.content.readline()
        return bool(line) and json.loads(line)["type"] != "ERROR"

    async def tail(self, path: str, params: Mapping[str, str | int], max_bytes: int) -> bytes:
        """The last bytes of a text, of which no more is kept meanwhile; empty when the server has none."""
        pieces: deque[bytes] = deque()
        kept = 0
        async with self._answer("GET", path, params, None, _LIMIT_SECONDS) as response:
            if response.status != HTTPStatus.OK:
                return b""
            async for piece in response.content.iter_chunked(_CHUNK_BYTES):
                pieces.append(piece)
                kept += len(piece)
                while kept - len(pieces[0]) >= max_bytes:
                    kept -= len(pieces.popleft())
        return b"".join(pieces)[-max_bytes:]

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, params: Mapping[str, str | int], body: Object | None, limit_seconds: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": "application/json"}
        if method == "PATCH":
            headers["Content-Type"] = _MERGE_PATCH
        try:
            async with ApiClient(await self._credentials()) as client:
                # This is where the client reads a service account's token anew: it changes every hour.
                request = await client.param_serialize(
                    method, path, query_params=[*params.items()], header_params=headers, body=body,
                    auth_settings=["BearerToken"],
                )  # fmt: skip
                limit = aiohttp.ClientTimeout(total=limit_seconds)
                async with (await client.call_api(*request, _request_timeout=limit)).response as response:
                    if response.status == HTTPStatus.UNAUTHORIZED and self._kubeconfig:
                        self._configuration = None
                    yield response
        except (aiohttp.ClientError, ConfigException, OSError) as error:  # a TimeoutError is an OSError
            raise UnavailableError("kubernetes_unavailable", f"The Kubernetes API is away: {error}") from error

    async def _credentials(self) -> Configuration:
        """Those of the kubeconfig are read once, since a plugin may have to fetch them, and again when refused."""
        if self._configuration is None:
            configuration = Configuration()
            try:
                await load_kube_config(str(self._kubeconfig), client_configuration=configuration, persist_config=False)
            except Exception as error:  # such a file can be wrong in many ways, and a plugin that it names can fail
                message = f"The file {self._kubeconfig} does not tell how to reach a cluster: {error}"
                raise UnavailableError("kubernetes_not_configured", message) from error
            self._configuration = configuration
        return self._configuration


def _service_account() -> Configuration:
    configuration = Configuration()
    try:
        load_incluster_config(configuration)
    except ConfigException as error:
        message = "This is no pod of a cluster: set TUNESMITH_KUBERNETES_KUBECONFIG to a file that says which to use."
        raise UnavailableError("kubernetes_not_configured", message) from error
    return configuration


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return content[:500].decode(errors="replace")
