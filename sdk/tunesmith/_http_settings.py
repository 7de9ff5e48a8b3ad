"""Owns what a client is set up with from outside: its base URL, and the environment's proxies and certificates.
Must not know what is sent.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx

from tunesmith._errors import ConfigurationError

_HOST = re.compile(r"(?!.*[^.]{64})[^\s.%]+(\.[^\s.%]+)*\.?|[0-9a-fA-F:.]+%\S+")
"""Names whose labels a resolver takes, underscores included, and addresses."""
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_TLS_FILES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")


def is_base_url(text: str) -> bool:
    """Tell whether requests can be addressed to what lies below this URL."""
    try:
        httpx.URL(text)
        parts = urlsplit(text)
        is_addressable = parts.port != 0 and _HOST.fullmatch(parts.hostname or "") is not None
    except (ValueError, httpx.InvalidURL):
        return False
    return is_addressable and parts.scheme in {"http", "https"} and not (parts.query or parts.fragment)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return the context that all clients share: reading the certificates takes longer than all else in a client.

    Raises:
        ConfigurationError: they cannot be read; the message names the variable at fault.
    """
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise ConfigurationError(_told_of_certificates(error), code="invalid_certificates") from error


@contextlib.contextmanager
def explained_settings() -> Iterator[None]:
    """Have the building of the HTTP library's client name the variable that prevents it.

    Raises:
        ConfigurationError: the environment names a proxy that cannot be used.
    """
    try:
        yield
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise ConfigurationError(
            f"The proxy in {_proxies_at_fault()} cannot be used: {str(error).rstrip('.')}. "
            "Correct or unset the variable.",
            code="invalid_proxy",
        ) from error


def _told_of_certificates(error: OSError) -> str:
    """Only the file of keys is named by its error; of the others the first that is set is read."""
    given = {name: os.environ[name] for name in _TLS_FILES if os.environ.get(name)}
    at_fault = [name for name, value in given.items() if value == error.filename] or list(given)
    reason = error.strerror or error
    if not at_fault:
        return f"The certificates that Python came with cannot be used: {reason}. Name others in SSL_CERT_FILE."
    return f"The file in {at_fault[0]} cannot be used: {reason}. Correct or unset the variable."


def _proxies_at_fault() -> str:
    given = {name: value for name, value in os.environ.items() if name.lower() in _PROXIES and value}
    return " and ".join(sorted(name for name, value in given.items() if not _is_proxy(value))) or "NO_PROXY"


def _is_proxy(value: str) -> bool:
    try:
        httpx.HTTPTransport(proxy=value if "://" in value else f"http://{value}", verify=tls_context()).close()
    except (ImportError, ValueError, httpx.InvalidURL):
        return False
    return True
