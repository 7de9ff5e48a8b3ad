"""A host of the training loop that wants nothing and remembers what it was told."""

from tunesmith_trainer.checkpoint import Progress
from tunesmith_trainer.loop import Metrics


class Onlooker:
    """`metrics` of every step, and the steps after which something was to be `saved`; nothing is."""

    def __init__(self) -> None:
        self.metrics: list[Metrics] = []
        self.saved: list[int] = []

    def check(self) -> None:
        """Never stops the run."""

    def step_done(self, metrics: Metrics, remaining_seconds: float) -> bool:
        """Never asks for a checkpoint."""
        assert remaining_seconds >= 0
        self.metrics.append(metrics)
        return False

    def evaluating(self, step: int) -> None:
        """Not told further."""

    def save(self, progress: Progress, metrics: Metrics) -> None:
        """Notes the step."""
        self.saved.append(progress.step)
