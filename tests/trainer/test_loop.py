"""Learning itself: a few rows can be learnt by heart, and a learnt answer stops."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support import tiny_model
from tests.support.onlooker import Onlooker
from tunesmith_trainer import lora
from tunesmith_trainer.base_shapes import build_empty, read_shapes
from tunesmith_trainer.checkpoint import Progress
from tunesmith_trainer.config import Facts, Method, Wanted, resolve
from tunesmith_trainer.data import Message, Row, indices_of_step
from tunesmith_trainer.device_copies import Readout
from tunesmith_trainer.errors import BadData, Problem
from tunesmith_trainer.evaluation import RowScore, evaluate, flips, summarise
from tunesmith_trainer.example import Example
from tunesmith_trainer.golden import greedy
from tunesmith_trainer.loop import Loop, Metrics, Trained
from tunesmith_trainer.methods import Objective, TokenObjective, objective_of
from tunesmith_trainer.model import Hardware, load, load_for_generation
from tunesmith_trainer.objectives import Scored
from tunesmith_trainer.optim import Optimizer
from tunesmith_trainer.packing import Pack
from tunesmith_trainer.pairs import render_pairs
from tunesmith_trainer.rendering import Renderer
from tunesmith_trainer.time_plan import computed_part

FLOAT32 = Hardware(torch.device("cpu"), "float32", 256, "exact comparison")


def question(text: str, answer: str) -> Row:
    return Row(1, "training_file", (Message("user", text, 0, {}), Message("assistant", answer, 1, {})), None)


@pytest.mark.parametrize("full_weights", [False, True])
def test_rows_learnt_by_heart_are_answered_exactly_and_the_answer_stops(
    base: Path, tmp_path: Path, full_weights: bool
) -> None:
    renderer = Renderer(tiny_model.tokenizer(), [2])
    answers = ["red", "blue", "green"]
    examples = [renderer.render(question(str(index) * 20, answer)) for index, answer in enumerate(answers, start=1)]
    wanted = Wanted(full_weights=full_weights, seed=1, n_epochs=60, batch_size=3, learning_rate_multiplier=5)
    facts = Facts(rows=3, longest=90, labelled=10, hidden_size=64, model_type="llama", max_context_length=512)
    config = resolve(wanted, facts)[0]
    model = load(base, FLOAT32)
    if not full_weights:
        lora.attach(model, 16, 32, seed=1)
    before = evaluate(model, examples, 256, lambda: None)
    host = Onlooker()
    trained = Loop(model, Optimizer(model.named_parameters()), config, examples, examples, 256, host).run(
        Progress(0, 0, "float32", [])
    )

    assert summarise(trained.chosen.rows).exact_match == 1.0
    assert [flip.right for flip in flips(before, trained.chosen.rows)] == [True] * 3
    assert host.saved == list(range(1, 61))
    served = load_for_generation(base, torch.device("cpu"))
    if full_weights:
        served.load_state_dict(model.state_dict())
    else:
        lora.save(model, tmp_path, "tiny")
        lora.attach(served, 16, 32, seed=9)
        lora.load(served, tmp_path)
    for example, answer in zip(examples, answers, strict=True):
        said = greedy(served, example.prompt_token_ids, [2], tokens=20)["token_ids"]
        assert tiny_model.tokenizer().decode(said) == f"{answer}<|im_end|>"


def test_an_exact_match_means_the_greedy_answer_is_the_label(base: Path) -> None:
    """Teacher-forced agreement at every labelled position, held against real generation."""
    model = load_for_generation(base, torch.device("cpu"))
    renderer = Renderer(tiny_model.tokenizer(), [2])
    prompt = renderer.render(question("x", "y"))
    said = greedy(model, prompt.prompt_token_ids, [2], tokens=5)["token_ids"]
    ids = torch.tensor([*prompt.prompt_token_ids, *said], dtype=torch.int32).numpy()
    label = torch.arange(len(ids)).numpy() >= len(prompt.prompt_token_ids)
    right = replace(prompt, token_ids=ids, labelled=label)
    wrong_ids = ids.copy()
    wrong_ids[-1] = (wrong_ids[-1] + 1) % 200
    scores = evaluate(load(base, FLOAT32), [right, replace(right, token_ids=wrong_ids)], 256, lambda: None)

    assert [score.exact for score in scores] == [True, False]


class HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch
    """Notes what makes the processor wait for a device: values that it needs before it can go on."""

    WAITING = frozenset(
        {
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
            torch.ops.aten.masked_select.default,
        }
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch
        self.seen: list[str] = []
        self._looks = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._looks and func in self.WAITING:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))

    def blind(self, function: Callable[..., None]) -> Callable[..., None]:
        """The function, of which nothing is noted."""

        def call(*arguments: Any, **named: Any) -> None:
            self._looks = False
            function(*arguments, **named)
            self._looks = True

        return call


def _noting(name: str, seen: list[str]) -> Callable[..., object]:
    """A method of tensors that notes which module of ours asks for main memory; attention on a processor may."""
    plain = getattr(Tensor, name)

    def method(self: Tensor, *arguments: Any) -> object:
        caller = sys._getframe(1).f_globals["__name__"]
        if caller.startswith("tunesmith_trainer") and not caller.endswith("processor_attention"):
            seen.append(f"{name} in {caller}")
        return plain(self, *arguments)

    return method


class Asking(Onlooker):
    """Asks for a checkpoint after one step, and notes the weights that would be in it."""

    def __init__(self, model: nn.Module, step: int) -> None:
        super().__init__()
        self._model, self._step = model, step
        self.weights: list[Tensor] = []

    def step_done(self, metrics: Metrics, remaining_seconds: float) -> bool:
        super().step_done(metrics, remaining_seconds)
        return metrics.step == self._step

    def save(self, progress: Progress, metrics: Metrics) -> None:
        super().save(progress, metrics)
        assert metrics.step == progress.step
        self.weights.append(next(lora_weights(self._model)).clone())


class Spoiled(TokenObjective):
    """A loss that is no number at the given micro-batch."""

    def __init__(self, at: int) -> None:
        self._left = at

    def score(self, model: nn.Module, batch: Pack, examples: Sequence[Example]) -> Scored:
        self._left -= 1
        scored = super().score(model, batch, examples)
        return replace(scored, total=scored.total * math.nan) if self._left == 0 else scored


def lora_weights(model: nn.Module) -> Iterator[Tensor]:
    return (parameter for name, parameter in model.named_parameters() if name.endswith("lora_B"))


class Course:
    """Twelve rows in passes of six steps, a step a pack, looked at every fifth step."""

    def __init__(self, base: Path, steps_ahead: int, *, full_weights: bool = False, method: Method = "supervised"):
        renderer = Renderer(tiny_model.tokenizer(), [2])
        rows = [replace(question(f"{index}?" * 5, "yes" * index), number=index) for index in range(1, 13)]
        if method == "dpo":
            rows = [replace(row, other_answer=Message("assistant", "no", 1, {})) for row in rows]
        pairs = render_pairs(renderer, rows) if method == "dpo" else [[renderer.render(row)] for row in rows]
        self.examples = [example for pair in pairs if not isinstance(pair, Problem) for example in pair]
        wanted = Wanted(full_weights=full_weights, seed=1, n_epochs=2, batch_size=2, method=method)
        facts = Facts(rows=12, longest=90, labelled=10, hidden_size=64, model_type="llama", max_context_length=512)
        self.config = resolve(wanted, facts)[0]
        self.model = load(base, FLOAT32)
        if not full_weights:
            lora.attach(self.model, 4, 32, seed=1)
        self.optimizer = Optimizer(self.model.named_parameters())
        self.objective: Objective = objective_of(self.config)
        self.objective.observe_base(self.model, self.examples, 1024, lambda: None)
        self.steps_ahead = steps_ahead

    def run(self, host: Onlooker) -> Trained:
        loop = Loop(
            self.model,
            self.optimizer,
            self.config,
            self.examples,
            self.examples[:2],
            1024,
            host,
            objective=self.objective,
            steps_ahead=self.steps_ahead,
        )
        return loop.run(Progress(0, 0, "float32", []))


@pytest.mark.parametrize(("full_weights", "method"), [(False, "supervised"), (True, "supervised"), (False, "dpo")])
def test_a_step_reads_nothing_back_and_its_numbers_are_read_when_the_next_is_under_way(
    base: Path, monkeypatch: pytest.MonkeyPatch, full_weights: bool, method: Method
) -> None:
    course = Course(base, 1, full_weights=full_weights, method=method)
    happened: list[str] = []
    take, read = Loop._take, Readout.read

    def watched_take(self: Loop, step: int) -> Any:
        with HostReads() as reads, monkeypatch.context() as patches:
            # On a processor it reads how many steps there were.
            patches.setattr("tunesmith_trainer.optim.adamw", reads.blind(adamw))
            for name in ("tolist", "cpu", "numpy"):
                patches.setattr(Tensor, name, _noting(name, reads.seen))
            taken = take(self, step)
        assert reads.seen == []
        happened.append(f"took {step}")
        return taken

    def watched_read(self: Readout) -> list[float]:
        happened.append("read")
        return read(self)

    monkeypatch.setattr(Loop, "_take", watched_take)
    monkeypatch.setattr(Readout, "read", watched_read)
    course.run(Onlooker())

    # The model is looked at after 5, 6, 10 and 12.
    assert " ".join(happened) == (
        "took 1 took 2 read took 3 read took 4 read took 5 read read took 6 read "
        "took 7 took 8 read took 9 read took 10 read read took 11 took 12 read read"
    )


def test_numbers_read_late_are_the_same(base: Path) -> None:
    found = []
    for steps_ahead in (0, 1):
        host = Onlooker()
        trained = Course(base, steps_ahead).run(host)
        found.append(([replace(one, seconds=0) for one in host.metrics], host.saved, trained.chosen))

    assert found[0] == found[1]
    assert len(found[0][0]) == 12
    assert found[0][1] == [6, 12]


@pytest.mark.parametrize(("losses", "chosen"), [((2.0, 1.0, 1.0), 12), ((1.0, 1.0, 2.0), 6)])
def test_of_passes_that_are_equally_good_the_earlier_is_chosen(
    base: Path, monkeypatch: pytest.MonkeyPatch, losses: tuple[float, ...], chosen: int
) -> None:
    course = Course(base, 0)
    course.config = replace(course.config, early_stopping_patience=5, n_epochs=3, total_steps=18)
    given = iter(losses)
    monkeypatch.setattr(Loop, "_evaluate", lambda _: [RowScore(1, next(given), 1, 1)])

    assert course.run(Onlooker()).chosen.step == chosen


def test_tokens_that_rows_share_count_for_each_of_them(base: Path) -> None:
    course, host = Course(base, 0), Onlooker()
    course.run(host)

    tokens = sum(len(one.token_ids) for one in course.examples)
    assert sum(one.tokens for one in host.metrics) == 2 * tokens
    assert computed_part(read_shapes(build_empty(base)), course.config, course.examples, 1024, gpu=False) < 0.9


def test_a_checkpoint_that_is_asked_for_holds_what_its_step_says(base: Path) -> None:
    course, plain = Course(base, 1), Course(base, 0)
    late, exact = Asking(course.model, 2), Asking(plain.model, 3)
    course.run(late)
    plain.run(exact)

    # Step 3 was under way when the wish for 2 came.
    assert late.saved == exact.saved == [3, 6, 12]
    assert all(torch.equal(a, b) for a, b in zip(late.weights, exact.weights, strict=True))


def test_the_history_is_added_to_and_not_copied_at_every_step(base: Path) -> None:
    class Keeper(Onlooker):
        def save(self, progress: Progress, metrics: Metrics) -> None:
            super().save(progress, metrics)
            assert [one["step"] for one in progress.history] == list(range(1, progress.step + 1))
            histories.append(progress.history)

    histories: list[list[dict[str, Any]]] = []
    Course(base, 0).run(Keeper())

    assert len(histories) == 2
    assert histories[0] is histories[1]


@pytest.mark.parametrize("steps_ahead", [0, 1])
@pytest.mark.parametrize("at", [3, 8, 12])
def test_a_loss_that_is_no_number_ends_the_run_before_anything_of_it_is_saved(
    base: Path, steps_ahead: int, at: int
) -> None:
    course, host = Course(base, steps_ahead), Onlooker()
    course.objective = Spoiled(at)
    with pytest.raises(BadData) as refused:
        course.run(host)

    (problem,) = refused.value.problems
    rows = sorted(course.examples[index].row for index in indices_of_step(12, 2, 1, at))
    assert (problem.code, problem.row) == ("loss_not_finite", rows[0])
    assert f"The loss of step {at} is not a finite number; its rows are {rows[0]}, {rows[1]}." in problem.message
    assert [metrics.step for metrics in host.metrics] == list(range(1, at))
    assert host.saved == [6] * (at > 6)
