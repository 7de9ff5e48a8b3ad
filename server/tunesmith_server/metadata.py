"""Owns what users may attach to their things: pairs of texts within OpenAI's limits, and how a query names some.

It must not know what they are attached to.
"""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith_server.errors import InvalidRequestError


def check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Returns the metadata if it keeps OpenAI's limits; raises ValueError with a sentence."""
    if len(metadata) > 16:
        raise ValueError("may have at most 16 pairs")
    for key, value in metadata.items():
        if not 1 <= len(key) <= 64 or len(value) > 512:
            raise ValueError("keys must have 1 to 64 characters, values at most 512")
        if "\x00" in key + value:
            raise ValueError("may not hold the character NUL")
    return metadata


def read_metadata(pairs: Mapping[str, str]) -> dict[str, str]:
    """The pairs if they keep the limits; raises InvalidRequestError."""
    try:
        return check_metadata(dict(pairs))
    except ValueError as error:
        raise InvalidRequestError("invalid_value", f"`metadata`: {error}.", param="metadata") from error


def metadata_of(query: Mapping[str, str]) -> dict[str, str]:
    """`metadata[k]=v` pairs of a query; raises InvalidRequestError."""
    return read_metadata(
        {
            name.removeprefix("metadata[").removesuffix("]"): value
            for name, value in query.items()
            if name.startswith("metadata[") and name.endswith("]")
        }
    )
