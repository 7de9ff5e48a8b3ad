"""Owns who is calling: secrets, API keys, attempt tokens and the service token, for both transports.

It must not know what a caller may do with a resource.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of a public operation."""

    project_id: str
    key_id: str


@dataclass(frozen=True, slots=True)
class AttemptIdentity:
    """The run that calls TrainingService; the database decides whether it is still current."""

    job_id: str
    attempt_id: str
    epoch: int


class Signer:
    """Keyed hashes under the server's secret, one purpose apart from the other."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, purpose: str, text: str) -> str:
        """Hex HMAC-SHA-256 of `text`, of no use for any other purpose."""
        return hmac.new(self._secret, f"{purpose}\n{text}".encode(), hashlib.sha256).hexdigest()

    def verify(self, purpose: str, text: str, signature: str) -> bool:
        """Compares in constant time."""
        return hmac.compare_digest(self.sign(purpose, text).encode(), signature.encode())

    def hash_api_key(self, key: str) -> str:
        """What is stored of an API key."""
        return self.sign("api-key", key)

    def attempt_token(self, identity: AttemptIdentity) -> str:
        """The bearer token of an attempt; the same after a restart, so that a launch can be repeated."""
        text = f"{identity.job_id}.{identity.attempt_id}.{identity.epoch}"
        return f"{text}.{self.sign('attempt', text)}"

    def read_attempt_token(self, token: str) -> AttemptIdentity | None:
        """The identity in a token of ours, or None."""
        text, _, signature = token.rpartition(".")
        parts = text.split(".")
        if len(parts) != 3 or not parts[2].isdecimal() or not self.verify("attempt", text, signature):
            return None
        return AttemptIdentity(job_id=parts[0], attempt_id=parts[1], epoch=int(parts[2]))

    def service_token(self) -> str:
        """What a gateway presents when the operator set no token of their own."""
        return f"ts-service-{self.sign('service', 'gateway')}"
