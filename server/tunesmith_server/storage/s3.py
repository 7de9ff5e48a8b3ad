"""Owns object storage in any S3: AWS itself or a server that speaks its protocol.

It must not know what objects mean. Endpoint, region and keys come from the usual AWS_* variables, read by boto3.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tunesmith_server.errors import UnavailableError
from tunesmith_server.storage.base import ObjectNotFoundError, SignedRequest, StoredObject
from tunesmith_server.storage.keys import check_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef, ListObjectsV2OutputTypeDef

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 1024 * 1024
_ABANDONED_AFTER = timedelta(days=1)
_ABSENT = ("404", "NoSuchKey", "NotFound")
_CONFIG = Config(
    signature_version="s3v4",
    # Names of buckets need not resolve as host names.
    s3={"addressing_style": "path"},
    # Not every server knows the newer checksum trailers.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    retries={"mode": "standard", "max_attempts": 4},
    connect_timeout=5,
    read_timeout=60,
    max_pool_connections=32,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


class S3Store:
    """Implements storage.base.ObjectStore in `bucket`, all keys below `prefix` ("" or ending in '/')."""

    def __init__(self, bucket: str, prefix: str) -> None:
        session = boto3.session.Session()
        region = session.region_name or "us-east-1"
        self._client: S3Client = session.client("s3", region_name=region, config=_CONFIG)
        self._bucket = bucket
        self._prefix = prefix

    async def put_file(self, key: str, source: Path) -> None:
        """Stores the bytes of a local file, in parts when it is big."""
        await _in_thread(key, self._client.upload_file, str(source), self._bucket, self._key(key))

    async def put_bytes(self, key: str, content: bytes) -> None:
        """Stores small content."""
        await _in_thread(key, self._client.put_object, Bucket=self._bucket, Key=self._key(key), Body=content)

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """Streams the content in chunks of 1 MiB; raises ObjectNotFoundError."""
        answer = await _in_thread(key, self._client.get_object, Bucket=self._bucket, Key=self._key(key))
        body = answer["Body"]
        try:
            while chunk := await _in_thread(key, body.read, _CHUNK_BYTES):
                yield chunk
        finally:
            body.close()

    async def size(self, key: str) -> int | None:
        """Bytes of the object, or None."""
        try:
            answer = await _in_thread(key, self._client.head_object, Bucket=self._bucket, Key=self._key(key))
        except ObjectNotFoundError:
            return None
        return answer["ContentLength"]

    async def copy(self, source: str, target: str) -> None:
        """Copies within the store; raises ObjectNotFoundError."""
        origin: CopySourceTypeDef = {"Bucket": self._bucket, "Key": self._key(source)}
        await _in_thread(source, self._client.copy, origin, self._bucket, self._key(target))

    async def delete(self, key: str) -> None:
        """Removes the object; no error when there is none."""
        await _in_thread(key, self._client.delete_object, Bucket=self._bucket, Key=self._key(key))

    async def list(self, prefix: str) -> list[str]:
        """Keys that start with `prefix`, sorted."""
        keys = await _in_thread(prefix, _list_keys, self._client, self._bucket, self._prefix + prefix)
        return [key.removeprefix(self._prefix) for key in keys]

    async def remove_abandoned(self) -> None:
        """Aborts uploads in parts that nobody has finished: they take room and no listing shows them."""
        await _in_thread("", _abort_stale, self._client, self._bucket, self._prefix)

    async def scan(self, folder: str) -> AsyncIterator[Sequence[StoredObject]]:
        """All objects below a folder, in pages."""
        paginator = self._client.get_paginator("list_objects_v2")
        pages = iter(paginator.paginate(Bucket=self._bucket, Prefix=f"{self._key(folder)}/"))
        while (page := await _in_thread(folder, _next_page, self._client, pages)) is not None:
            yield [
                StoredObject(item["Key"].removeprefix(self._prefix), item["LastModified"].timestamp())
                for item in page.get("Contents", [])
            ]

    async def presign_get(self, key: str, expires_seconds: int) -> SignedRequest:
        """A URL of the S3 server that reads the object."""
        params = {"Bucket": self._bucket, "Key": self._key(key)}
        return SignedRequest(self._client.generate_presigned_url("get_object", params, expires_seconds))

    async def presign_put(self, key: str, expires_seconds: int, *, size: int, sha256: str) -> SignedRequest:
        """A URL of the S3 server that writes exactly `size` bytes with this SHA-256."""
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        params = {
            "Bucket": self._bucket,
            "Key": self._key(key),
            "ContentLength": size,
            "ChecksumSHA256": checksum,
        }
        url = self._client.generate_presigned_url("put_object", params, expires_seconds)
        return SignedRequest(url, {"content-length": str(size), "x-amz-checksum-sha256": checksum})

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)


def _next_page(client: S3Client, pages: Iterator[ListObjectsV2OutputTypeDef]) -> ListObjectsV2OutputTypeDef | None:
    # SeaweedFS makes a bucket with its first object: until then there is none, and nothing in it.
    with suppress(client.exceptions.NoSuchBucket):
        return next(pages, None)
    return None


def _list_keys(client: S3Client, bucket: str, prefix: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return sorted(item["Key"] for page in pages for item in page.get("Contents", []))


def _abort_stale(client: S3Client, bucket: str, prefix: str) -> None:
    oldest = datetime.now(UTC) - _ABANDONED_AFTER
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    stale = []
    with suppress(client.exceptions.NoSuchBucket):
        stale = [each for page in pages for each in page.get("Uploads", []) if each["Initiated"] < oldest]
    for upload in stale:
        # A replica that sweeps at the same moment may be first.
        with suppress(client.exceptions.NoSuchUpload):
            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])


async def _in_thread(key: str, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    with _translated(key):
        return await asyncio.to_thread(function, *args, **kwargs)


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error, OSError) as error:
        code = error.response.get("Error", {}).get("Code") if isinstance(error, ClientError) else None
        if code in _ABSENT:
            raise ObjectNotFoundError(key) from None
        if code == "NoSuchBucket":
            _log.error("the S3 bucket does not exist")
            message = "The S3 bucket does not exist. Create it, or correct the s3:// address that names it."
            raise UnavailableError("storage_bucket_missing", message) from error
        _log.exception("object storage failed")
        raise UnavailableError("storage_unavailable", "The object storage failed. Try again later.") from error
