"""What a webhook says, and that it is tried for about a day."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tunesmith_server.webhooks.messages import RETRY_DELAYS, event_body, retry_delay


def test_the_body_is_the_event_that_openai_sends() -> None:
    body = event_body("evt_1", "fine_tuning.job.succeeded", 7, "ftjob-1")

    assert json.loads(body) == {
        "id": "evt_1",
        "object": "event",
        "created_at": 7,
        "type": "fine_tuning.job.succeeded",
        "data": {"id": "ftjob-1"},
    }


@given(st.text(max_size=40))
def test_attempts_spread_over_about_a_day_and_end(message_id: str) -> None:
    delays = [retry_delay(message_id, attempts) for attempts in range(1, len(RETRY_DELAYS) + 2)]

    assert delays[-1] is None
    known = [delay for delay in delays if delay is not None]
    assert all(0.9 * plan <= delay <= 1.1 * plan for plan, delay in zip(RETRY_DELAYS, known, strict=True))
    assert 20 * 3600 < sum(known) < 27 * 3600


def test_messages_that_failed_together_come_back_apart() -> None:
    assert len({retry_delay(f"wh_{number}", 3) for number in range(50)}) == 50
