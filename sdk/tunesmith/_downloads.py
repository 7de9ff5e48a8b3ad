"""Owns bytes that outlast their connection.
Must not know what they are.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial

from tunesmith._errors import APIConnectionError
from tunesmith._http import Call, HttpClient
from tunesmith._patience import outlast


async def download(http: HttpClient, call: Call) -> AsyncGenerator[bytes]:
    """Yield the body of an answer; where its connection breaks, from there on over another one.

    Raises:
        APIError: the first answer is no success.
        APIConnectionError: the connection broke before anything new arrived, or the server has other bytes now.
    """
    body = await http.open_stream(call)
    arrived = 0
    while True:
        before = arrived
        try:
            async for chunk in body:
                arrived += len(chunk)
                yield chunk
        except APIConnectionError as error:
            if arrived == before or body.etag is None:
                raise
            failure = error
        else:
            return
        finally:
            await body.close()
        rest = replace(call, headers={"Range": f"bytes={arrived}-", "If-Range": body.etag})
        body = await outlast(http.transport, partial(http.open_stream, rest))
        if not body.is_rest:
            await body.close()
            raise failure
