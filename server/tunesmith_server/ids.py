"""Owns how identifiers look.

It must not know what they identify.
"""

from __future__ import annotations

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits


def new_id(prefix: str, length: int = 24) -> str:
    """`prefix` followed by `length` random letters and digits; 24 of them hold 142 bits."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))
