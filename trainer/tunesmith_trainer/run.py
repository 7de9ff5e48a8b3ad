"""Owns the course of one run, to be read aloud: spec, data, model, loop, evaluation, artifact.
Must not know how any of them is done."""

from pathlib import Path

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer import workspace
from tunesmith_trainer.reporter import Reporter


def run(reporter: Reporter, cache: Path, work: Path) -> None:
    """Does what the spec says and reports it. Raises RunFailed or Yielded where it cannot."""
    spec = reporter.get_spec()
    reporter.start_heartbeats(max(0.1, spec.heartbeat_interval_seconds))
    reporter.report(phase="validating")
    if spec.kind == pb.RUN_KIND_PREFLIGHT:
        from tunesmith_trainer.preflight_run import run_preflight  # here because what it needs takes seconds to import

        run_preflight(spec, workspace.base_model(spec, cache, work, weights=False), work, reporter)
        return
    base = workspace.base_model(spec, cache, work, weights=True)
    data = workspace.prepare_run(spec, base, work, reporter.check)

    from tunesmith_trainer.training import Training  # here because it imports torch, as above

    training = Training(spec, base, data, work, reporter)
    with training.within_memory():
        training.load_model()
        before = training.evaluate_base()
        training.compile_model(cache)
        trained = training.run_loop()
        training.complete(before, trained)
