"""Owns which object keys are allowed: pure.

It must not know where objects lie.
"""

from __future__ import annotations

import re

from tunesmith_server.errors import InvalidRequestError

_SEGMENT = re.compile(r"[A-Za-z0-9_@=+,~-][A-Za-z0-9._@=+,~-]{0,199}")
_MAX_LENGTH = 900


def check_key(key: str) -> str:
    """Returns the key if it names a place inside of every store; raises InvalidRequestError.

    Segments are plain ASCII and do not start with a dot, so that no key leaves its folder or meets a draft.
    """
    if len(key) > _MAX_LENGTH or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise InvalidRequestError(
            "invalid_object_key", "An object key is '/'-separated names of letters, digits and . _ - @ = + , ~ only."
        )
    return key
