"""Owns joining loop, checkpoints and uploads of one training run to the control plane.
Must not know how numbers are computed or bytes are moved."""

import logging
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer import allocator, checkpoint, compilation, distributed, lora, sharding
from tunesmith_trainer.artifact import ArtifactWriter
from tunesmith_trainer.background import Background
from tunesmith_trainer.base_shapes import BaseShapes, build_empty, read_shapes
from tunesmith_trainer.checkpoint import Progress
from tunesmith_trainer.delivery import deliver
from tunesmith_trainer.errors import Yielded, is_out_of_memory
from tunesmith_trainer.evaluation import Measured, evaluate
from tunesmith_trainer.export_proof import prove
from tunesmith_trainer.golden import golden_prompts
from tunesmith_trainer.guard_set import GuardItem, examples_of, guard_items
from tunesmith_trainer.launch import shielded
from tunesmith_trainer.loop import Loop, Metrics, Trained
from tunesmith_trainer.machine import memory_of
from tunesmith_trainer.memory_ladder import Choice, Ladder, ladder_of
from tunesmith_trainer.memory_plan import gib
from tunesmith_trainer.methods import objective_of
from tunesmith_trainer.model import Hardware, choose_hardware, load, load_in_four_bits
from tunesmith_trainer.optim import Optimizer
from tunesmith_trainer.preflight import Prepared
from tunesmith_trainer.recompute import recompute
from tunesmith_trainer.rendering import Renderer
from tunesmith_trainer.reporter import Reporter
from tunesmith_trainer.results import wire_evaluation, write_results
from tunesmith_trainer.time_plan import computed_part
from tunesmith_trainer.tokenizer import load_tokenizer
from tunesmith_trainer.workspace import adapter_folder, day_of, resume_folder

logger = logging.getLogger(__name__)

_SAVE_SECONDS = 1800.0  # a pass may take a day, and whoever loses a run shall not lose more than this
_WORTH_TELLING = 0.99  # of a step's tokens that are computed
_FOUR_BITS = (
    "Memory is short: the base model's weights are in four bits while adapters are trained on them, and the job's "
    "metrics are measured so. The result is served on the whole weights and may answer somewhat differently."
)


class Training:
    """One training run: the first five methods are called once each in their order, the others by the loop.

    Where the run has several ranks, each has one of these and all do the same; the leader's alone changes anything
    outside. What one rank would see differently than another - the control plane, files, the machine's speed - the
    leader looks at for all.
    """

    def __init__(self, spec: pb.TrainingSpec, base: Path, data: Prepared, work: Path, reporter: Reporter) -> None:
        self._spec = spec
        self._base = base
        self._data = data
        self._work = work
        self._reporter = reporter
        self._resume = distributed.by_leader(lambda: resume_folder(spec, work))
        self._rows = checkpoint.rows_digest(data.training, data.evaluation)
        with checkpoint.reading(spec.resume.step):
            self._progress = checkpoint.read_progress(self._resume, data.config, self._rows) if self._resume else None
        known = self._progress.dtype if self._progress else None
        hardware = distributed.by_leader(lambda: choose_hardware(known))
        shapes = read_shapes(build_empty(base))
        self._ladder = _ladder(shapes, data, hardware)
        # One GPU of several may hold an engine as well, or be smaller.
        available, capacity = map(min, zip(*distributed.gather(memory_of(hardware.device)), strict=True))
        self._choice = distributed.by_leader(lambda: self._choose(hardware, available, capacity))
        # Packs are computed elsewhere on a GPU, which has an allocator of its own.
        enough = int(self._choice.need.needed / self._ladder.tight)
        self._most_memory = enough if hardware.device.type == "cpu" else None
        pack_tokens = self._choice.rung.pack_tokens
        self._hardware: Hardware = replace(hardware, pack_tokens=pack_tokens)
        gpu = hardware.device.type == "cuda"
        self._part = computed_part(shapes, data.config, data.training, pack_tokens, gpu=gpu)
        renderer = Renderer(load_tokenizer(base, day_of(spec)), data.model.stop_ids)
        self._artifacts = ArtifactWriter(
            base,
            spec.base_model.id,
            data.config,
            golden_prompts(data.evaluation, data.training, data.config.context_length),
            data.model.stop_ids,
            merged=data.merged,
            frame=renderer.completion_frame() if data.completions else None,
        )
        self._objective = objective_of(data.config)
        self._guard: list[GuardItem] = guard_items(renderer, data.config.context_length)
        self._committed: dict[int, pb.Artifact] = {}
        self._uploading = Background()
        self._command: pb.Command.ValueType = pb.COMMAND_UNSPECIFIED

    @contextmanager
    def within_memory(self) -> Iterator[None]:
        """For the length of a block, running out of memory ends the run with what comes of it."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("out of memory", exc_info=error)
            traceback.clear_frames(error.__traceback__)  # what they hold is needed to report it
            raise self._ladder.out_of_memory(self._choice) from None

    def load_model(self) -> None:
        """Loads the model that the run starts from, with adapters on it where the run trains adapters."""
        self._report("loading")
        hardware, config = self._hardware, self._data.config
        self._reporter.add_event(f"Training on {hardware.device.type} in {hardware.dtype}: {hardware.reason}.")
        choice = self._choice
        needed = f"about {gib(choice.need.needed)} are needed at the peak"
        self._reporter.add_event(f"A step is computed in {choice.rung}, {needed}: {choice.reason}.")
        if self._part <= _WORTH_TELLING:
            repeated = f"{1 - self._part:.0%} of a step's tokens repeat what other rows of it begin with"
            self._reporter.add_event(f"{repeated}: they are not computed again.")
        if hardware.device.type == "cpu" or choice.rung.offloaded:  # elsewhere main memory is for checkpoints only
            allocator.keep_freed_memory()
        apart = config.full_weights and distributed.size() > 1
        if choice.rung.in_four_bits:
            self._model: nn.Module = load_in_four_bits(self._base, hardware)
            self._reporter.add_event(_FOUR_BITS, level="warn")
        else:  # in main memory first where it is split: one device may be too small for all of it
            self._model = load(self._base, hardware, into=torch.device("cpu") if apart else None)
        start = distributed.by_leader(lambda: adapter_folder(self._spec, self._work))
        if not config.full_weights:
            lora.attach(
                self._model,
                config.lora_rank,
                config.lora_alpha,
                config.seed,
                config.lora_targets,
                use_rslora=config.use_rslora,
            )
            if start:
                lora.load(self._model, start)
        elif start:
            lora.attach_saved(self._model, start)
            lora.merge(self._model)
            self._model.requires_grad_(requires_grad=True)
        distributed.meet()  # a disk may have given the files to one sooner than to another
        if apart:
            self._model = sharding.shard(self._model)

    def evaluate_base(self) -> Measured:
        """Scores evaluation rows and guard set with what the run starts from: fresh adapters change nothing."""
        self._report("evaluating")
        data, pack_tokens, check = self._data, self._hardware.pack_tokens, self.check
        for examples in (data.training, data.evaluation):
            self._objective.observe_base(self._model, examples, pack_tokens, check)
        rows = self._objective.evaluate(self._model, data.evaluation, pack_tokens, check)
        return Measured(0, rows, evaluate(self._model, examples_of(self._guard), pack_tokens, check))

    def compile_model(self, cache: Path) -> None:
        """Compiles the model's layers where the run is long enough. Code is kept in the folder `cache`."""
        if distributed.size() > 1:
            return  # a rank that cannot compile would leave the others waiting in the middle of trying
        if not compilation.pays(self._model, int(self._data.config.n_epochs * self._data.tokens * self._part)):
            return
        self._report("loading")
        failure = compilation.compile_layers(self._model, cache / "compiled")
        outcome = (
            f"Layers are not compiled ({failure}); training goes on, somewhat slower" if failure else "Compiled layers"
        )
        self._reporter.add_event(f"{outcome}.")

    def run_loop(self) -> Trained:
        """Trains to the last step, from where a former attempt was saved if the spec says so."""
        config, data = self._data.config, self._data
        rung, failures = self._choice.rung, self._spec.memory_failures
        optimizer = Optimizer(sharding.inner(self._model).named_parameters(), offloaded=rung.offloaded)
        progress = Progress(0, 0, self._hardware.dtype, [], rung, failures)
        if self._resume and self._progress:
            with checkpoint.reading(self._spec.resume.step):
                checkpoint.restore(self._resume, self._model, optimizer, config)
            progress = replace(self._progress, rung=rung, memory_failures=failures)
            self._reporter.add_event(f"Resuming after step {progress.step} of {config.total_steps}.")
            distributed.meet()  # as after loading
        recompute(sharding.inner(self._model), rung.recomputed_layers)
        self._optimizer = optimizer
        self._saved_at = time.monotonic()
        self._report("training", progress.step)
        logger.info("training goes from step %d to step %d", progress.step + 1, config.total_steps)
        loop = Loop(
            self._model,
            optimizer,
            config,
            data.training,
            data.evaluation,
            self._hardware.pack_tokens,
            host=self,
            objective=self._objective,
            guard=examples_of(self._guard),
            steps_ahead=1 if self._hardware.device.type == "cuda" else 0,
        )
        try:
            return loop.run(progress)
        except Exception:
            self._uploading.settle()  # whatever ends the run, its last good checkpoint is not lost
            raise

    def complete(self, before: Measured, trained: Trained) -> None:
        """Reports the evaluation and makes the chosen checkpoint the job's result."""
        distributed.by_leader(lambda: self._complete(before, trained))

    def check(self) -> None:
        """Raises Yielded once this attempt is to stop. Called between packs, when most of the memory is free."""
        self._reporter.check()
        if self._most_memory is not None:
            allocator.give_back(self._most_memory)

    def step_done(self, metrics: Metrics, remaining_seconds: float) -> bool:
        """Reports a step. Returns whether a checkpoint is wanted."""
        self._reporter.add_metrics(pb.StepMetrics(**asdict(metrics)))
        self._report("training", metrics.step, remaining_seconds)
        command = distributed.by_leader(self._next_command)
        if command != pb.COMMAND_UNSPECIFIED:
            self._command = command
        return command in (pb.COMMAND_CHECKPOINT, pb.COMMAND_PAUSE)

    def evaluating(self, step: int) -> None:
        """Reports that a pass is being evaluated."""
        self._report("evaluating", step)

    def save(self, progress: Progress, metrics: Metrics) -> None:
        """Writes a checkpoint, which is uploaded and committed while training goes on.

        Waits for the one before, and where the control plane asked to pause, for this one; then stops the run.
        """
        self._report("uploading", progress.step)
        weights, optimizer = sharding.whole_weights(self._model), self._optimizer.state()
        answers, coarsest = distributed.by_leader(lambda: self._write(progress, weights, optimizer))
        prove(self._model, answers, coarsest)
        distributed.by_leader(lambda: self._uploading.start(lambda: self._commit(progress, metrics)))
        command, self._command = self._command, pb.COMMAND_UNSPECIFIED
        if command == pb.COMMAND_PAUSE and progress.step < self._data.config.total_steps:
            distributed.by_leader(self._uploading.wait)
            raise Yielded("paused after saving")
        self._saved_at = time.monotonic()
        self._report("training", progress.step)

    def _complete(self, before: Measured, trained: Trained) -> None:
        progress, chosen = trained.progress, trained.chosen
        self._report("uploading", progress.step)
        self._uploading.wait()
        if self._data.config.early_stopping_patience is not None:
            self._reporter.add_event(
                f"Trained {progress.step} of {self._data.config.total_steps} steps. "
                f"The checkpoint of step {chosen.step} has the best validation loss and becomes the model."
            )
        results = self._work / "results"
        write_results(results, progress.history, before, chosen)
        self._reporter.complete_training(
            pb.CompleteTrainingRequest(
                step=chosen.step,
                artifact=self._committed.get(chosen.step),
                trained_tokens=progress.trained_tokens,
                evaluation=wire_evaluation(
                    before,
                    chosen,
                    self._guard,
                    self._data.config.method,
                    held_out_from_training=self._data.held_out_from_training,
                ),
                result_files=deliver(results, "", self._reporter),
            )
        )
        logger.info("training is complete; the checkpoint of step %d is the result", chosen.step)

    def _next_command(self) -> pb.Command.ValueType:
        """What the control plane wants; a checkpoint where the last one is long ago, as in a pass of many hours."""
        self._uploading.check()
        command = self._reporter.take_command()
        is_late = time.monotonic() - self._saved_at > _SAVE_SECONDS
        return pb.COMMAND_CHECKPOINT if command == pb.COMMAND_UNSPECIFIED and is_late else command

    def _write(
        self, progress: Progress, weights: dict[str, Tensor], optimizer: dict[str, Tensor]
    ) -> tuple[list[dict[str, Any]], torch.dtype]:
        folder = self._work / f"step-{progress.step}"
        in_four_bits = self._choice.rung.in_four_bits
        claim = self._artifacts.write(sharding.inner(self._model), weights, folder, in_four_bits=in_four_bits)
        checkpoint.save_state(folder, optimizer, self._data.config, self._rows, progress)
        return claim

    def _commit(self, progress: Progress, metrics: Metrics) -> None:
        with shielded(self._work):
            self._deliver(progress, metrics)
        logger.info("the checkpoint of step %d is committed", progress.step)

    def _deliver(self, progress: Progress, metrics: Metrics) -> None:
        prefix = f"step-{progress.step}"
        folder = self._work / prefix
        files = deliver(folder, f"{prefix}/", self._reporter)
        whole = self._data.config.full_weights or self._data.merged
        for_resuming = {*self._artifacts.state_files, *(one.path for one in files if checkpoint.is_state(one.path))}
        artifact = pb.Artifact(
            kind=pb.ARTIFACT_KIND_FULL if whole else pb.ARTIFACT_KIND_ADAPTER,
            prefix=prefix,
            files=[file for file in files if file.path not in for_resuming],
            training_state=[file for file in files if file.path in for_resuming],
        )
        self._reporter.commit_checkpoint(progress.step, artifact, pb.StepMetrics(**asdict(metrics)))
        self._committed[progress.step] = artifact
        shutil.rmtree(folder)

    def _choose(self, hardware: Hardware, available: int, capacity: int) -> Choice:
        """The rung to compute on in so many bytes, given what has become of the attempts before."""
        if hardware.device.type == "cpu":  # the ranks are all in the same memory
            available, capacity = available // distributed.size(), capacity // distributed.size()
        failures = self._spec.memory_failures
        if self._progress is None:
            return self._ladder.choose(available, capacity, failures=failures)
        since_saved = max(0, failures - self._progress.memory_failures)
        return self._ladder.choose(available, capacity, kept=self._progress.rung, failures=since_saved)

    def _report(self, phase: str, step: int = 0, remaining_seconds: float | None = None) -> None:
        total = self._data.config.total_steps
        self._reporter.report(phase=phase, step=step, total_steps=total, remaining_seconds=remaining_seconds)


def _ladder(shapes: BaseShapes, data: Prepared, hardware: Hardware) -> Ladder:
    return ladder_of(
        shapes,
        data.config,
        data.training,
        data.evaluation,
        hardware.dtype,
        hardware.pack_tokens,
        main_memory=memory_of(torch.device("cpu"))[1],
        gpu=hardware.device.type == "cuda",
        merged=data.merged,
        ranks=distributed.size(),
    )
