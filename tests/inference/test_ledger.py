"""What was used reaches the control plane once, also when it is not told that it has arrived."""

from __future__ import annotations

import pytest

from tests.support.clock import MovableClock
from tunesmith_inference.auth import Principal
from tunesmith_inference.ledger import Batch, Ledger, ReportFailed, Sum, Use

ANNA, BERT = Principal("p1", "anna"), Principal("p2", "bert")


class ControlPlane:
    """Keeps batches; while it is `deaf` it keeps them, but says nothing."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.deaf = False

    async def take(self, batch: Batch) -> None:
        self.batches.append(batch)
        if self.deaf:
            raise ReportFailed("UNAVAILABLE")


def used(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "completion_tokens": 1}


async def test_use_is_summed_per_key_model_and_hour() -> None:
    control_plane, clock = ControlPlane(), MovableClock(7200.0)
    ledger = Ledger(control_plane.take, clock)
    ledger.add(ANNA, "m", used(10))
    ledger.add(ANNA, "m", used(5))
    ledger.add(BERT, "m", {})
    clock.advance(3600)
    ledger.add(ANNA, "m", used(1))
    await ledger.report()

    [batch] = control_plane.batches
    assert batch.sequence == 1
    assert batch.sums == {
        Use("p1", "anna", "m", 7200): Sum(2, 15, 2),
        Use("p2", "bert", "m", 7200): Sum(1, 0, 0),
        Use("p1", "anna", "m", 10800): Sum(1, 1, 1),
    }
    await ledger.report()
    assert len(control_plane.batches) == 1, "nothing new is nothing to say"


async def test_a_batch_of_unknown_fate_is_sent_again_unchanged() -> None:
    control_plane = ControlPlane()
    ledger = Ledger(control_plane.take, MovableClock())
    control_plane.deaf = True
    ledger.add(ANNA, "m", used(10))
    with pytest.raises(ReportFailed):
        await ledger.report()
    ledger.add(ANNA, "m", used(20))
    control_plane.deaf = False
    await ledger.report()

    sent = [(batch.sequence, [total.input_tokens for total in batch.sums.values()]) for batch in control_plane.batches]
    assert sent == [(1, [10]), (1, [10]), (2, [20])]


async def test_the_end_reports_what_is_left_and_does_not_fail() -> None:
    control_plane = ControlPlane()
    ledger = Ledger(control_plane.take, MovableClock())
    ledger.add(ANNA, "m", used(10))
    await ledger.close()
    assert len(control_plane.batches) == 1
    control_plane.deaf = True
    ledger.add(ANNA, "m", used(10))
    await ledger.close()
