"""Owns secrets and signatures of webhooks, as Standard Webhooks defines them.

It must not know who sends or receives. Secrets are derived from the server's own, so the database holds none.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

from tunesmith_server.auth import Signer

PREFIX = "whsec_"


def endpoint_secret(signer: Signer, endpoint_id: str, version: int) -> str:
    """The secret of an endpoint, `whsec_` and base64 of 256 bits; each version has another one."""
    key = bytes.fromhex(signer.sign("webhook-secret", f"{endpoint_id}.{version}"))
    return PREFIX + base64.b64encode(key).decode()


def hint(secret: str) -> str:
    """What may be shown of a secret later: its last four characters."""
    return f"{PREFIX}…{secret[-4:]}"


def signed_headers(message_id: str, timestamp: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The three headers that a receiver checks, with one signature for each secret in force."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_signature(message_id, timestamp, body, secret) for secret in secrets),
    }


def _signature(message_id: str, timestamp: int, body: bytes, secret: str) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
