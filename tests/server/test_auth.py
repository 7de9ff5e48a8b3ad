"""Identities: tokens that cannot be forged, secrets that only their owner can read."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.clock import MovableClock
from tunesmith_server.auth import AttemptIdentity, Authenticator, Principal, Signer, load_secret, write_private_file
from tunesmith_server.calls import Call, current_call, entered
from tunesmith_server.errors import PermissionDeniedError, QuotaExceededError, UnauthenticatedError
from tunesmith_server.projects.rate_limits import UNLIMITED, Allowance, RateLimiter, RateLimits

IDENTITY = AttemptIdentity(job_id="ftjob-1", attempt_id="att-1", epoch=3)


class OneKey:
    """Knows one API key."""

    async def find_principal(self, key: str) -> Principal | None:
        return Principal("default", "key_1") if key == "ts-right" else None


class Narrow:
    """Knows every key as one that may read files."""

    def __init__(self, limits: RateLimits = UNLIMITED) -> None:
        self.principal = Principal("default", "key_1", frozenset({"files.read"}), limits)

    async def find_principal(self, key: str) -> Principal | None:
        return self.principal


@pytest.fixture
def signer() -> Signer:
    return Signer(b"secret")


@pytest.fixture
def authenticator(signer: Signer) -> Authenticator:
    return Authenticator(OneKey(), signer)


async def test_a_key_gives_its_principal(authenticator: Authenticator) -> None:
    assert await authenticator.principal("Bearer ts-right") == Principal("default", "key_1")
    assert await authenticator.principal("bearer  ts-right ") == Principal("default", "key_1")
    with pytest.raises(UnauthenticatedError) as raised:
        await authenticator.principal("Bearer ts-wrong")
    assert raised.value.code == "invalid_api_key"
    assert "ts-wrong" not in raised.value.message


async def test_what_a_key_may_do_is_asked_of_the_call_under_way(signer: Signer) -> None:
    keys = Narrow()
    authenticator = Authenticator(keys, signer)
    with entered(Call("r", "GET /v1/files")):
        assert await authenticator.principal("Bearer x") == keys.principal
        assert (call := current_call()) is not None
        assert (call.project_id, call.key_id) == ("default", "key_1")
    with entered(Call("r", "DELETE /v1/files/{file_id}")), pytest.raises(PermissionDeniedError, match=r"files\.write"):
        await authenticator.principal("Bearer x")
    with pytest.raises(PermissionDeniedError) as raised:
        await authenticator.principal("Bearer x")
    assert raised.value.code == "missing_scope", "outside of any call a narrow key may nothing"
    with pytest.raises(PermissionDeniedError):
        await authenticator.inference_principal("x")


async def test_a_key_over_its_rate_is_refused_before_its_scopes_are_looked_at(signer: Signer) -> None:
    authenticator = Authenticator(
        Narrow(RateLimits(requests_per_minute=1)), signer, limiter=RateLimiter(MovableClock())
    )
    with entered(Call("r", "GET /v1/files")):
        await authenticator.principal("Bearer x")
    call = Call("r", "DELETE /v1/files/{file_id}")
    with entered(call), pytest.raises(QuotaExceededError) as raised:
        await authenticator.principal("Bearer x")
    assert (raised.value.code, raised.value.retry_after) == ("rate_limit_exceeded", 60)
    assert call.allowance == Allowance(1, 0, 60)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "ts-right", "Basic ts-right"])
async def test_no_key_is_told_apart_from_a_wrong_one(authenticator: Authenticator, authorization: str | None) -> None:
    with pytest.raises(UnauthenticatedError) as raised:
        await authenticator.principal(authorization)
    assert raised.value.code == "missing_api_key"


def test_an_attempt_token_is_the_same_after_a_restart(authenticator: Authenticator, signer: Signer) -> None:
    token = signer.attempt_token(IDENTITY)
    assert Signer(b"secret").attempt_token(IDENTITY) == token
    assert authenticator.attempt(f"Bearer {token}") == IDENTITY


def test_forged_attempt_tokens_are_refused(authenticator: Authenticator, signer: Signer) -> None:
    token = signer.attempt_token(IDENTITY)
    text, _, signature = token.rpartition(".")
    forged = [
        f"ftjob-1.att-1.4.{signature}",
        f"ftjob-2.att-1.3.{signature}",
        f"{text}.{signature[:-1]}",
        f"{text}.",
        f"{text}.\xe9",
        text,
        Signer(b"other").attempt_token(IDENTITY),
        signer.service_token(),
    ]
    for bad in forged:
        with pytest.raises(UnauthenticatedError):
            authenticator.attempt(f"Bearer {bad}")


def test_the_service_token_is_derived_unless_the_operator_sets_one(signer: Signer) -> None:
    derived = Authenticator(OneKey(), signer)
    derived.service(f"Bearer {signer.service_token()}")
    configured = Authenticator(OneKey(), signer, "operators-own")
    configured.service("Bearer operators-own")
    for authenticator, token in ((derived, "operators-own"), (configured, signer.service_token()), (derived, "\xe9")):
        with pytest.raises(UnauthenticatedError):
            authenticator.service(f"Bearer {token}")


def test_one_signature_is_of_no_use_for_another_purpose(signer: Signer) -> None:
    signature = signer.sign("a", "text")
    assert signer.verify("a", "text", signature)
    assert not signer.verify("b", "text", signature)
    assert not signer.verify("a", "text2", signature)


def test_the_secret_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(load_secret, [home] * 8))
    assert len(secrets) == 1, "servers that start together agree"
    assert len(secrets.pop()) == 64
    assert stat.S_IMODE((home / "secret_key").stat().st_mode) == 0o600
    assert [path.name for path in home.iterdir()] == ["secret_key"]


def test_a_private_file_is_never_overwritten(tmp_path: Path) -> None:
    assert write_private_file(tmp_path / "f", "first")
    assert not write_private_file(tmp_path / "f", "second")
    assert (tmp_path / "f").read_text() == "first\n"
