"""Owns who is calling, for both transports: secrets, API keys, attempt tokens, the service token; and whether the
caller's key may make this call now, by its scopes and its rate.

It must not know what a caller may do with one resource: other projects' are not found by those who look.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc.aio

from tunesmith_server.calls import current_call
from tunesmith_server.errors import PermissionDeniedError, UnauthenticatedError
from tunesmith_server.projects.rate_limits import UNLIMITED, RateLimiter, RateLimits, refusal
from tunesmith_server.projects.scopes import INFERENCE, PROJECT, access_to, granted


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of a public operation."""

    project_id: str
    key_id: str
    scopes: frozenset[str] = frozenset({"*"})
    """What the key may do (projects/scopes.py)."""
    limits: RateLimits = UNLIMITED
    capture: bool = False
    """Whether its chat completions are to be kept."""


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


class KeyFinder(Protocol):
    """Where API keys are looked up (projects/service.py)."""

    async def find_principal(self, key: str) -> Principal | None:
        """The owner of an API key, or None; raises UnauthenticatedError for one that is known but has ended."""


class Authenticator:
    """Turns the value of an `Authorization` header or metadata entry into an identity."""

    def __init__(
        self, keys: KeyFinder, signer: Signer, service_token: str | None = None, limiter: RateLimiter | None = None
    ) -> None:
        self._keys = keys
        self._signer = signer
        self._service_token = service_token or signer.service_token()
        self._limiter = limiter or RateLimiter()

    async def principal(self, authorization: str | None) -> Principal:
        """The caller of the public operation that is under way (calls.py).

        Raises UnauthenticatedError, QuotaExceededError (`rate_limit_exceeded`) or PermissionDeniedError
        (`missing_scope`). Every public route and rpc comes through here.
        """
        principal = await self._identified(_bearer(authorization))
        self._count(principal)
        call = current_call()
        _require(principal, access_to(call.operation).scope if call else PROJECT)
        return principal

    async def inference_principal(self, api_key: str) -> Principal:
        """Whose key a gateway was sent, and that it may infer; the gateway counts its calls itself.

        Raises UnauthenticatedError or PermissionDeniedError.
        """
        call = current_call()
        if call is not None:
            # What is refused here is the request that the gateway was sent.
            call.operation = INFERENCE
        principal = await self._identified(api_key)
        _require(principal, INFERENCE)
        return principal

    def attempt(self, authorization: str | None) -> AttemptIdentity:
        """The run that calls; raises UnauthenticatedError."""
        identity = self._signer.read_attempt_token(_bearer(authorization))
        if identity is None:
            raise UnauthenticatedError("invalid_api_key", "This is not a token of an attempt of this installation.")
        return identity

    def service(self, authorization: str | None) -> None:
        """Passes when a gateway of this installation calls; raises UnauthenticatedError."""
        if not hmac.compare_digest(_bearer(authorization).encode(), self._service_token.encode()):
            raise UnauthenticatedError("invalid_api_key", "This is not the service token of this installation.")

    async def _identified(self, api_key: str) -> Principal:
        principal = await self._keys.find_principal(api_key)
        if principal is None:
            raise UnauthenticatedError("invalid_api_key", "The API key is wrong or was revoked. Send a valid one.")
        call = current_call()
        if call is not None:
            call.project_id, call.key_id = principal.project_id, principal.key_id
        return principal

    def _count(self, principal: Principal) -> None:
        limit = principal.limits.requests_per_minute
        if limit is None:
            return
        allowance, wait_seconds = self._limiter.take(principal.key_id, limit)
        call = current_call()
        if call is not None:
            call.allowance = allowance
        if wait_seconds:
            raise refusal(limit, wait_seconds)


def authorization_of(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    """The `authorization` metadata of a gRPC call, or None."""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization":
            return value if isinstance(value, str) else value.decode("latin-1")
    return None


def load_secret(home: Path) -> bytes:
    """The server's secret from `home`/secret_key, made (256 bits, mode 600) when there is none."""
    path = home / "secret_key"
    write_private_file(path, secrets.token_hex(32))
    return path.read_bytes().strip()


def write_private_file(path: Path, content: str) -> bool:
    """Writes a file that only its owner may read, durably; False and untouched when it exists already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(content + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, fails when the name is taken: two first starts agree on one secret,
        # and nobody ever reads half of it.
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def _require(principal: Principal, scope: str) -> None:
    if not granted(principal.scopes, scope):
        message = f"This key lacks the scope {scope}. Use a key that has it, or ask the operator for one."
        raise PermissionDeniedError("missing_scope", message)


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError(
            "missing_api_key", "No API key was sent. Send it in the header `Authorization: Bearer <key>`."
        )
    return token.strip()
