"""A run that goes on from any of its steps ends as if it had never stopped: bit for bit, for each method."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tunesmith_trainer import checkpoint, lora
from tunesmith_trainer.checkpoint import Progress
from tunesmith_trainer.config import Facts, Method, TrainingConfig, Wanted, resolve
from tunesmith_trainer.errors import InfrastructureFailed
from tunesmith_trainer.example import Example
from tunesmith_trainer.loop import Loop, Metrics
from tunesmith_trainer.memory_ladder import Rung
from tunesmith_trainer.methods import objective_of
from tunesmith_trainer.model import Hardware, load
from tunesmith_trainer.optim import Optimizer

RUNG = Rung(64)
ROWS = "digest of rows"
METHODS: tuple[Method, ...] = ("supervised", "dpo", "continued_pretraining")


def examples(method: Method) -> list[Example]:
    made: list[Example] = []
    for row in range(6):
        length = 20 + 4 * row
        tokens = np.random.default_rng(row).integers(3, 250, length).astype(np.int32)
        if method == "dpo":
            made.append(Example(row, tokens, np.arange(length) % 10 > 4, (10,)))
        else:
            labelled_from = 1 if method == "continued_pretraining" else length // 2
            made.append(Example(row, tokens, np.arange(length) >= labelled_from))
    return made


def config_of(method: Method, *, full: bool) -> TrainingConfig:
    wanted = Wanted(full_weights=full, seed=5, n_epochs=2, batch_size=3, lora_rank=4, method=method)
    return resolve(wanted, Facts(6, 40, 10, 64, "llama", 512))[0]


class Course:
    """One run of the loop that saves after each step, and what became of it. `resume` is the folder of a checkpoint."""

    def __init__(
        self, base: Path, config: TrainingConfig, folder: Path, dtype: str, resume: Path | None = None
    ) -> None:
        self._config, self._folder = config, folder
        rows = examples(config.method)
        self.model: nn.Module = load(base, Hardware(torch.device("cpu"), dtype, RUNG.pack_tokens, "a test"))
        if not config.full_weights:
            lora.attach(self.model, config.lora_rank, config.lora_alpha, config.seed)
        objective = objective_of(config)
        objective.observe_base(self.model, rows, RUNG.pack_tokens, lambda: None)
        self._optimizer = Optimizer(self.model.named_parameters())
        progress = Progress(0, 0, dtype, [], RUNG)
        if resume:
            checkpoint.restore(resume, self.model, self._optimizer, config)
            progress = checkpoint.read_progress(resume, config, ROWS)
        loop = Loop(self.model, self._optimizer, config, rows, rows, RUNG.pack_tokens, host=self, objective=objective)
        self.progress = loop.run(progress).progress

    def check(self) -> None:
        """See Host."""

    def evaluating(self, step: int) -> None:
        """See Host."""

    def step_done(self, metrics: Metrics, remaining_seconds: float) -> bool:
        """See Host: every step is saved."""
        return True

    def save(self, progress: Progress, metrics: Metrics) -> None:
        """See Host."""
        folder = self._folder / str(progress.step)
        folder.mkdir(parents=True)
        if self._config.full_weights:
            self.model.save_pretrained(folder)  # type: ignore[operator]  # transformers models have it
        else:
            lora.save(self.model, folder, "tiny")
        checkpoint.save_state(folder, self._optimizer.state(), self._config, ROWS, progress)

    @property
    def history(self) -> list[dict[str, object]]:
        """The numbers of every step but its seconds."""
        return [{name: value for name, value in one.items() if name != "seconds"} for one in self.progress.history]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_from_every_step_as_if_it_had_not_stopped(
    base: Path, tmp_path: Path, method: Method, *, full: bool, dtype: str
) -> None:
    config = config_of(method, full=full)
    whole = Course(base, config, tmp_path / "whole", dtype)
    assert whole.progress.step == config.total_steps == 4

    for step in range(1, 4):
        resumed = Course(base, config, tmp_path / f"from-{step}", dtype, tmp_path / "whole" / str(step))
        assert resumed.history == whole.history
        expected = whole.model.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())


def test_progress_comes_back_as_it_was_saved(base: Path, tmp_path: Path) -> None:
    config = config_of("supervised", full=False)
    course = Course(base, config, tmp_path, "float32")

    assert asdict(checkpoint.read_progress(tmp_path / "4", config, ROWS)) == asdict(course.progress)
    assert course.progress.rung == RUNG


def test_a_large_state_is_in_several_files(monkeypatch: pytest.MonkeyPatch, base: Path, tmp_path: Path) -> None:
    config = config_of("supervised", full=False)
    monkeypatch.setattr(checkpoint, "_FILE_BYTES", 4000)
    whole = Course(base, config, tmp_path / "whole", "float32")
    files = list((tmp_path / "whole/1").glob("training_state*.safetensors"))

    assert len(files) > 2
    assert all(checkpoint.is_state(file.name) and file.stat().st_size < 9000 for file in files), "with their headers"
    resumed = Course(base, config, tmp_path / "resumed", "float32", tmp_path / "whole/1")
    assert resumed.history == whole.history


def test_a_checkpoint_of_a_release_with_fewer_numbers_is_read(base: Path, tmp_path: Path) -> None:
    config = config_of("supervised", full=False)
    Course(base, config, tmp_path, "float32")
    document = tmp_path / "4/training_state.json"
    saved = json.loads(document.read_text())
    del saved["config"]["use_rslora"], saved["rows"]
    document.write_text(json.dumps(saved))

    assert checkpoint.read_progress(tmp_path / "4", config, ROWS).step == 4


def test_a_checkpoint_of_other_numbers_is_refused(base: Path, tmp_path: Path) -> None:
    Course(base, config_of("supervised", full=False), tmp_path, "float32")
    others: list[tuple[Method, str]] = [("dpo", ROWS), ("supervised", "others")]
    for method, rows in others:
        with pytest.raises(InfrastructureFailed, match="step 4 is damaged: it was made with other") as refused:
            checkpoint.read_progress(tmp_path / "4", config_of(method, full=False), rows)
        assert refused.value.problems[0].code == "checkpoint_damaged"


def test_rows_are_told_apart_by_all_that_is_learnt_of_them() -> None:
    one, other = examples("supervised"), examples("dpo")
    relabelled = [replace(example, labelled=~example.labelled) for example in one]
    split = [replace(example, splits=(5,)) for example in one]
    told = [
        checkpoint.rows_digest(*parts) for parts in ((one, other), (other, one), (relabelled, other), (split, other))
    ]
    moved = checkpoint.rows_digest([*one, other[0]], other[1:])

    assert len({*told, moved}) == 5
    assert checkpoint.rows_digest(examples("supervised"), other) == told[0]


def test_a_long_history_is_written_without_a_copy_of_it(base: Path, tmp_path: Path) -> None:
    class Entry(dict[str, object]):
        made = 0

        def __init__(self, *values: object) -> None:
            super().__init__(*values)
            Entry.made += 1

    config = config_of("supervised", full=False)
    progress = Progress(3, 9, "float32", [Entry({"step": step}) for step in (1, 2, 3)], RUNG)
    checkpoint.save_state(tmp_path, {"a": torch.zeros(1)}, config, ROWS, progress)

    assert Entry.made == 3
    assert checkpoint.read_progress(tmp_path, config, ROWS) == progress
