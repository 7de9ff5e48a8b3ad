"""Keeping freed memory."""

from tunesmith_trainer.allocator import keep_freed_memory


def test_the_c_library_can_be_told_more_than_once() -> None:
    assert keep_freed_memory() == keep_freed_memory()
