"""What the clients heard has the shape that OpenAI publishes, key by key."""

from __future__ import annotations

from collections import Counter

from tests.conformance.clients import CLIENTS
from tests.conformance.conftest import Drives
from tests.conformance.published_shapes import ROUTES, faults_of, object_of
from tests.conformance.wire import Exchange


def test_every_recorded_answer_has_the_published_shape(drives: Drives) -> None:
    for client in CLIENTS:
        drives.run(client)
    seen: Counter[str | None] = Counter()
    faults = {}
    for exchange in drives.platform.relay.exchanges:
        seen[object_of(exchange)] += 1
        for fault in faults_of(exchange):
            faults[fault] = f"{exchange.method} {exchange.target}"
    assert not faults, "\n".join(f"{fault} ({where})" for fault, where in faults.items())
    assert set(ROUTES.values()) - set(seen) == set(), "some published objects were never answered"


def test_faults_are_found() -> None:
    exchange = Exchange("", "GET", "/v1/files/file-1", 200, {"content-type": "application/json"})
    exchange.body = b'{"id": 1, "object": "file", "purpose": "fun"}'
    assert faults_of(exchange) == [
        "OpenAIFile lacks bytes",
        "OpenAIFile lacks created_at",
        "OpenAIFile lacks filename",
        "OpenAIFile lacks status",
        "OpenAIFile.id is 1, not string",
        f"OpenAIFile.purpose is 'fun', not one of {PURPOSES}",
    ]


PURPOSES = [
    "assistants",
    "assistants_output",
    "batch",
    "batch_output",
    "fine-tune",
    "fine-tune-results",
    "user_data",
    "vision",
]
