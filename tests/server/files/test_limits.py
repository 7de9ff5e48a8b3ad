"""Which files are taken: their purposes, lifetimes and names."""

from __future__ import annotations

import pytest

from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.files.limits import PURPOSES, ExpiresAfter, check_purpose, display_name, lifetime_seconds


def test_the_purposes_of_clients() -> None:
    for purpose in PURPOSES:
        check_purpose(purpose)
    for purpose in ("fine-tune-results", "assistants_output", "", "Batch"):
        with pytest.raises(InvalidRequestError) as raised:
            check_purpose(purpose)
        assert (raised.value.code, raised.value.param) == ("invalid_purpose", "purpose")


def test_lifetimes_from_an_hour_to_thirty_days() -> None:
    assert lifetime_seconds(None) is None
    assert lifetime_seconds(ExpiresAfter("created_at", 3600)) == 3600
    assert lifetime_seconds(ExpiresAfter("created_at", 2_592_000)) == 2_592_000


@pytest.mark.parametrize(
    ("anchor", "seconds", "param"),
    [
        ("created_at", 3599, "expires_after.seconds"),
        ("created_at", 2_592_001, "expires_after.seconds"),
        ("last_active_at", 3600, "expires_after.anchor"),
    ],
)
def test_other_lifetimes_are_refused(anchor: str, seconds: int, param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        lifetime_seconds(ExpiresAfter(anchor, seconds))
    assert (raised.value.code, raised.value.param) == ("invalid_value", param)


def test_names_keep_what_is_harmless() -> None:
    assert display_name("a b'\"c.jsonl") == "a b'\"c.jsonl"
    assert display_name("a\x00\x1b[31m\r\nb") == "a[31mb"
    assert display_name("") == "upload"
