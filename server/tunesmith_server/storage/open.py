"""Owns the choice of object store by URL.

It must not know how a store works.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from tunesmith_server.auth import Signer
from tunesmith_server.clock import Clock, system_clock
from tunesmith_server.config import Settings
from tunesmith_server.storage.base import ObjectStore
from tunesmith_server.storage.filesystem import FilesystemStore
from tunesmith_server.storage.s3 import S3Store
from tunesmith_server.storage.signed_urls import UrlSigner


def open_store(settings: Settings, signer: Signer, clock: Clock = system_clock) -> ObjectStore:
    """The store of TUNESMITH_STORAGE_URL; raises ValueError when the URL names none."""
    url = urlsplit(settings.resolved_storage_url)
    if url.scheme == "file" and url.netloc in ("", "localhost") and url.path not in ("", "/"):
        return FilesystemStore(Path(unquote(url.path)), UrlSigner(signer, settings.resolved_public_url, clock))
    if url.scheme == "s3" and url.netloc:
        prefix = url.path.strip("/")
        return S3Store(url.netloc, f"{prefix}/" if prefix else "")
    raise ValueError("TUNESMITH_STORAGE_URL must be file:///folder or s3://bucket/prefix")
