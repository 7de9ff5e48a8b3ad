"""Every pinned client, unmodified, makes every call that it knows against the running platform."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.conformance.clients import CLIENTS, Client
from tests.conformance.conftest import Drives


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_every_call_of_the_client_works(client: Client, drives: Drives) -> None:
    calls = drives.run(client)
    assert len(calls) >= 20, "the driver ended early"
    failed = {call.name: call.error for call in calls if call.error}
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_conflict_is_not_repeated(client: Client, drives: Drives) -> None:
    drives.run(client)
    exchanges = drives.platform.relay.exchanges
    conflicts = [each.target for each in exchanges if each.client == client.name and each.status == 409]
    assert max(Counter(conflicts).values(), default=1) == 1, conflicts


def test_no_client_ever_met_a_server_error(drives: Drives) -> None:
    for client in CLIENTS:
        drives.run(client)
    broken = [
        (each.client, each.method, each.target, each.status, each.body[:300])
        for each in drives.platform.relay.exchanges
        if each.status >= 500
    ]
    assert not broken
