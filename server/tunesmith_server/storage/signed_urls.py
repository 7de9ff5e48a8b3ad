"""Owns the URLs under which this server itself hands out and takes objects: their form and their signatures.

It must not know where objects lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlencode

from tunesmith_server.auth import Signer
from tunesmith_server.clock import Clock
from tunesmith_server.errors import PermissionDeniedError

OBJECTS_PATH = "/internal/objects"

_PURPOSE = "object-url"


@dataclass(frozen=True, slots=True)
class Upload:
    """What a PUT must bring: `size` bytes with this SHA-256 (lower-case hex)."""

    size: int
    sha256: str


class UrlSigner:
    """Makes and checks URLs that work without further credentials until they expire."""

    def __init__(self, signer: Signer, base_url: str, clock: Clock) -> None:
        self._signer = signer
        self._base_url = base_url
        self._clock = clock

    def get_url(self, key: str, expires_seconds: int) -> str:
        """URL that reads an object."""
        return self._url("GET", key, expires_seconds, None)

    def put_url(self, key: str, expires_seconds: int, upload: Upload) -> str:
        """URL that writes exactly this object."""
        return self._url("PUT", key, expires_seconds, upload)

    def check(self, method: str, key: str, expires: int, signature: str, upload: Upload | None = None) -> None:
        """Raises PermissionDeniedError unless the URL is of our making and has not expired."""
        if not self._signer.verify(_PURPOSE, _signed_text(method, key, expires, upload), signature):
            raise PermissionDeniedError("invalid_signature", "The URL was changed or is not of this server's making.")
        if self._clock() > expires:
            raise PermissionDeniedError("url_expired", "The URL has expired. Ask for a new one.")

    def _url(self, method: str, key: str, expires_seconds: int, upload: Upload | None) -> str:
        expires = int(self._clock()) + expires_seconds
        query: dict[str, str | int] = {"expires": expires}
        if upload is not None:
            query |= {"size": upload.size, "sha256": upload.sha256}
        query["signature"] = self._signer.sign(_PURPOSE, _signed_text(method, key, expires, upload))
        return f"{self._base_url}{OBJECTS_PATH}/{quote(key)}?{urlencode(query)}"


def _signed_text(method: str, key: str, expires: int, upload: Upload | None) -> str:
    content = f"{upload.size}|{upload.sha256}" if upload is not None else "|"
    return f"{method}|{key}|{expires}|{content}"
