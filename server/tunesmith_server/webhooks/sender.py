"""Owns one POST to a receiver: to the address that was checked, without redirects, within a time.

It must not know what is said or how often. Nothing of an answer but its status is read: a webhook is no way to look
at what other hosts say.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.webhooks.resolver import SystemResolver
from tunesmith_server.webhooks.targets import Resolve, checked_addresses, parse_url

_MAX_ERROR_LENGTH = 300
# A kept connection would be found again by its address alone, also for another name at the same address.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a POST: the status, or the reason why there is none."""

    status: int | None
    error: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether the receiver took the message."""
        return self.status is not None and 200 <= self.status < 300


class WebhookSender:
    """Sends to public addresses only, unless `allow_private`. Without `resolve`, the system's resolver is asked."""

    def __init__(
        self,
        *,
        allow_private: bool,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_seconds: float = 15.0,
    ) -> None:
        self._allow_private = allow_private
        self._resolve = resolve or SystemResolver()
        self._timeout_seconds = timeout_seconds
        self._client = httpx.AsyncClient(
            verify=tls or True, limits=_LIMITS, trust_env=False, follow_redirects=False, timeout=timeout_seconds
        )

    async def check(self, url: str) -> None:
        """Passes when the URL may be sent to; raises InvalidRequestError as targets.py says."""
        parsed = parse_url(url, allow_private=self._allow_private)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await checked_addresses(parsed, self._resolve, allow_private=self._allow_private)
        except TimeoutError as error:
            message = "`url`: its host could not be looked up in time. Try again, or check its name."
            raise InvalidRequestError("webhook_host_unknown", message, param="url") from error

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Sends the body as JSON; never raises for what the receiver or the way to it does."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return Answer(await self._post(url, headers, body))
        except TimeoutError:
            return Answer(None, f"No answer within {self._timeout_seconds:g} seconds.")
        except InvalidRequestError as error:
            return Answer(None, error.message)
        except (httpx.HTTPError, ssl.SSLError) as error:
            return Answer(None, f"The connection failed: {str(error)[:_MAX_ERROR_LENGTH] or type(error).__name__}.")

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.aclose()

    async def _post(self, text: str, headers: Mapping[str, str], body: bytes) -> int:
        url = parse_url(text, allow_private=self._allow_private)
        addresses = await checked_addresses(url, self._resolve, allow_private=self._allow_private)
        for address in addresses[:-1]:
            try:
                return await self._post_to(address, url, headers, body)
            except httpx.ConnectError:
                # Nothing was sent: the host has another address.
                continue
        return await self._post_to(addresses[-1], url, headers, body)

    async def _post_to(self, address: str, url: httpx.URL, headers: Mapping[str, str], body: bytes) -> int:
        request = self._client.build_request(
            "POST",
            url.copy_with(host=address),
            content=body,
            headers={
                **headers,
                "host": url.netloc.decode("ascii"),
                "content-type": "application/json",
                "user-agent": "Tunesmith-Webhooks",
                "accept-encoding": "identity",
            },
            # The name in the certificate and in the TLS greeting stays the one of the URL.
            extensions={"sni_hostname": url.raw_host.decode("ascii"), "timeout": self._client.timeout.as_dict()},
        )
        answer = await self._client.send(request, stream=True)
        await answer.aclose()
        return answer.status_code
