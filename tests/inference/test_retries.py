from __future__ import annotations

import pytest

from tunesmith_inference.retries import persistently


class _Work:
    """Fails so often before it succeeds; notes the pauses it was given and the reasons it gave."""

    def __init__(self, failures: int, error: type[Exception] = ConnectionError) -> None:
        self.left = failures
        self.error = error
        self.pauses: list[float] = []
        self.reasons: list[str] = []

    async def __call__(self) -> str:
        if self.left:
            self.left -= 1
            raise self.error(f"{self.left} to go")
        return "done"

    async def run(self) -> str:
        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)

        return await persistently(self, (ConnectionError,), lambda error: self.reasons.append(str(error)), sleep)


async def test_what_works_at_last_has_waited_longer_each_time() -> None:
    work = _Work(failures=3)
    assert await work.run() == "done"
    assert work.pauses == [5, 10, 20]
    assert work.reasons == ["2 to go", "1 to go", "0 to go"]


async def test_it_fails_with_the_last_reason_after_five_more_tries() -> None:
    work = _Work(failures=9)
    with pytest.raises(ConnectionError, match="3 to go"):
        await work.run()
    assert work.pauses == [5, 10, 20, 40, 80]


async def test_what_would_fail_again_is_not_tried_again() -> None:
    work = _Work(failures=1, error=ValueError)
    with pytest.raises(ValueError, match="0 to go"):
        await work.run()
    assert work.pauses == []
