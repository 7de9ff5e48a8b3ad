"""Owns the two clients: where the server is, which key to send, and the nouns that hang below.
Must not know what the resources do.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tunesmith._blocking import run_blocking
from tunesmith._errors import ConfigurationError
from tunesmith._http import AsyncTransport, BlockingTransport, HttpClient
from tunesmith._http_settings import is_base_url
from tunesmith.resources.captures import AsyncCaptures, Captures
from tunesmith.resources.chat import AsyncChat, Chat
from tunesmith.resources.completions import AsyncCompletions, Completions
from tunesmith.resources.deployments import AsyncDeployments, Deployments
from tunesmith.resources.files import AsyncFiles, Files
from tunesmith.resources.fine_tunes import AsyncFineTunes, FineTunes
from tunesmith.resources.models import AsyncModels, Models

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
DEFAULT_MAX_RETRIES = 2

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class AsyncTunesmith:
    """The asynchronous client; close it, or use it as a context manager.

    Args:
        api_key: else `TUNESMITH_API_KEY`.
        base_url: else `TUNESMITH_BASE_URL`, else `http://127.0.0.1:8000`; a trailing `/v1` is accepted.
        timeout: longest silence of the server in seconds; by default 60, and 600 for uploads and inference.
        max_retries: how often to repeat a request after connection errors, 408, 429 and 500 or above.

    Raises:
        ConfigurationError: there is no usable key or URL, or the environment names an unusable proxy or certificate.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
    ) -> None:
        self.base_url = _resolved_base_url(base_url)
        self._http = HttpClient(
            AsyncTransport(trust_env=not _is_loopback(self.base_url)),
            base_url=self.base_url,
            api_key=_resolved_api_key(api_key),
            timeout=timeout,
            max_retries=max_retries,
        )
        self.files = AsyncFiles(self._http)
        self.fine_tunes = AsyncFineTunes(self._http, self.files)
        self.models = AsyncModels(self._http, self.files)
        self.deployments = AsyncDeployments(self._http)
        self.captures = AsyncCaptures(self._http)
        self.chat = AsyncChat(self._http)
        self.completions = AsyncCompletions(self._http)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncTunesmith(base_url={self.base_url!r}, api_key='***')"


class Tunesmith:
    """The synchronous client; may be shared by threads. Close it, or use it as a context manager.

    Args:
        api_key: else `TUNESMITH_API_KEY`.
        base_url: else `TUNESMITH_BASE_URL`, else `http://127.0.0.1:8000`; a trailing `/v1` is accepted.
        timeout: longest silence of the server in seconds; by default 60, and 600 for uploads and inference.
        max_retries: how often to repeat a request after connection errors, 408, 429 and 500 or above.

    Raises:
        ConfigurationError: there is no usable key or URL, or the environment names an unusable proxy or certificate.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
    ) -> None:
        self.base_url = _resolved_base_url(base_url)
        self._http = HttpClient(
            BlockingTransport(trust_env=not _is_loopback(self.base_url)),
            base_url=self.base_url,
            api_key=_resolved_api_key(api_key),
            timeout=timeout,
            max_retries=max_retries,
        )
        files = AsyncFiles(self._http)
        self.files = Files(files)
        self.fine_tunes = FineTunes(AsyncFineTunes(self._http, files))
        self.models = Models(AsyncModels(self._http, files))
        self.deployments = Deployments(AsyncDeployments(self._http))
        self.captures = Captures(AsyncCaptures(self._http))
        self.chat = Chat(AsyncChat(self._http))
        self.completions = Completions(AsyncCompletions(self._http))

    def close(self) -> None:
        """Close all connections."""
        run_blocking(self._http.transport.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Tunesmith(base_url={self.base_url!r}, api_key='***')"


def _resolved_base_url(base_url: str | None) -> str:
    url = (base_url or os.environ.get("TUNESMITH_BASE_URL") or DEFAULT_BASE_URL).strip().rstrip("/")
    url = url.removesuffix("/v1").rstrip("/")
    if not is_base_url(url):
        raise ConfigurationError(
            f"{url!r} is not a base URL; one looks like {DEFAULT_BASE_URL}. "
            "Correct base_url=… (in a shell --base-url) or TUNESMITH_BASE_URL.",
            code="invalid_base_url",
        )
    return url


def _resolved_api_key(api_key: str | None) -> str:
    key = (api_key or os.environ.get("TUNESMITH_API_KEY") or "").strip()
    if not key:
        raise ConfigurationError(
            "There is no API key: pass api_key=… or set TUNESMITH_API_KEY "
            "(`tunesmithd up` writes the first key to the file api_key in its home).",
            code="missing_api_key",
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        # The key itself must not show up in a traceback or a log.
        raise ConfigurationError(
            "The API key holds characters that no key has; copy it again.", code="malformed_api_key"
        )
    return key


def _is_loopback(base_url: str) -> bool:
    """Tell whether the server is on this machine; a proxy from the environment would not reach it."""
    return urlsplit(base_url).hostname in _LOOPBACK
