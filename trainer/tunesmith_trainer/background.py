"""Owns one piece of work at a time beside the training, so that steps do not wait for a network.
Must not know what the work is."""

import threading
from collections.abc import Callable


class Background:
    """Does work in a thread that does not outlive the process."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begins `work` once what was begun before has ended; raises what that one raised."""
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns once nothing is being done; raises what the work raised, once."""
        self.settle()
        self.check()

    def check(self) -> None:
        """Raises what the work raised, if it has; once."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def settle(self) -> None:
        """Returns once nothing is being done, whatever came of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # raised again by `wait`
            self._failure = error
