"""Owns the course of one run, to be read aloud: spec, data, model, loop, evaluation, artifact.
Must not know how any of them is done."""

import logging
import os
import platform
from importlib.metadata import version
from pathlib import Path

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer import workspace
from tunesmith_trainer.gpus import visible_gpus
from tunesmith_trainer.launch import launch
from tunesmith_trainer.reporter import Reporter

logger = logging.getLogger(__name__)

_NAMED = ("torch", "transformers")  # in a run's log: most that differs between machines comes of these


def run(reporter: Reporter, cache: Path, work: Path) -> None:
    """Does what the spec says and reports it. Raises RunFailed or Yielded where it cannot."""
    spec = reporter.get_spec()
    _log_start(spec)
    if spec.kind == pb.RUN_KIND_PREFLIGHT:
        _start_heartbeats(reporter, spec)
        from tunesmith_trainer.preflight_run import run_preflight  # here because what it needs takes seconds to import

        run_preflight(spec, workspace.base_model(spec, cache, work, weights=False), cache, work, reporter)
        return
    if spec.kind == pb.RUN_KIND_IMPORT:
        _start_heartbeats(reporter, spec)
        from tunesmith_trainer.import_run import run_import

        run_import(spec, workspace.base_model(spec, cache, work, weights=True), work, reporter)
        return
    ranks = _ranks()
    if ranks > 1:
        launch(ranks, work)  # each of which calls `run_as_rank`
        return
    _start_heartbeats(reporter, spec)
    train(spec, reporter, cache, work)


def run_as_rank(rank: int, count: int, reporter: Reporter, cache: Path, work: Path) -> None:
    """Does one rank's part of a training run. Raises as `run` does."""
    from tunesmith_trainer import distributed  # here because it imports torch

    with distributed.joined(rank, count, work / "meeting"):
        spec = distributed.by_leader(lambda: _begin(reporter).SerializeToString())
        train(pb.TrainingSpec.FromString(spec), reporter, cache, work)


def train(spec: pb.TrainingSpec, reporter: Reporter, cache: Path, work: Path) -> None:
    """One training run, alone or with all other ranks; the leader's reporter speaks for them."""
    from tunesmith_trainer.distributed import by_leader  # here because they import torch
    from tunesmith_trainer.training import Training

    base = by_leader(lambda: workspace.base_model(spec, cache, work, weights=True))
    data = by_leader(lambda: workspace.prepare_run(spec, base, cache, work, reporter.check))
    rows = len(data.training), len(data.evaluation)
    logger.info("data is prepared: %d rows to train on, %d to evaluate with; %d tokens a pass", *rows, data.tokens)
    training = Training(spec, base, data, work, reporter)
    with training.within_memory():
        training.load_model()
        before = training.evaluate_base()
        training.compile_model(cache)
        trained = training.run_loop()
        training.complete(before, trained)


def _begin(reporter: Reporter) -> pb.TrainingSpec:
    spec = reporter.get_spec()
    _start_heartbeats(reporter, spec)
    return spec


def _start_heartbeats(reporter: Reporter, spec: pb.TrainingSpec) -> None:
    reporter.start_heartbeats(max(0.1, spec.heartbeat_interval_seconds))
    reporter.report(phase="validating")


def _log_start(spec: pb.TrainingSpec) -> None:
    """The first line of a run's log. Versions are asked of what is installed: torch takes seconds to import."""
    kind = pb.RunKind.Name(spec.kind).removeprefix("RUN_KIND_").lower()
    versions = ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in _NAMED)])
    devices = ", ".join(gpu.name for gpu in visible_gpus()) or "the processor"
    logger.info("%s of attempt %s begins with %s on %s", kind, spec.attempt_id, versions, devices)


def _ranks() -> int:
    """One for each GPU that the run was given, unless the setting tells."""
    return int(os.environ.get("TUNESMITH_RANKS") or max(1, len(visible_gpus())))
