"""Owns the course of one run, to be read aloud: spec, data, model, loop, evaluation, artifact.
Must not know how any of them is done."""

from pathlib import Path

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer import workspace
from tunesmith_trainer.preflight import Prepared
from tunesmith_trainer.reporter import Reporter


def run(reporter: Reporter, cache: Path, work: Path) -> None:
    """Does what the spec says and reports it. Raises RunFailed or Yielded where it cannot."""
    spec = reporter.get_spec()
    reporter.start_heartbeats(max(0.1, spec.heartbeat_interval_seconds))
    reporter.report(phase="validating")
    if spec.kind == pb.RUN_KIND_PREFLIGHT:
        base = workspace.base_model(spec, cache, work, weights=False)
        reporter.complete_preflight(_findings(workspace.prepare_run(spec, base, work, reporter.check)))
        return
    base = workspace.base_model(spec, cache, work, weights=True)
    data = workspace.prepare_run(spec, base, work, reporter.check)

    from tunesmith_trainer.training import Training  # here because it imports torch, which a preflight does not need

    training = Training(spec, base, data, work, reporter)
    training.load_model()
    before = training.evaluate_base()
    trained = training.run_loop()
    training.complete(before, trained)


def _findings(data: Prepared) -> pb.CompletePreflightRequest:
    config = data.config
    return pb.CompletePreflightRequest(
        hyperparameters=pb.Hyperparameters(
            n_epochs=config.n_epochs,
            batch_size=config.batch_size,
            learning_rate_multiplier=config.learning_rate_multiplier,
            lora_rank=config.lora_rank,
            lora_alpha=config.lora_alpha,
            context_length=config.context_length,
        ),
        learning_rate=config.learning_rate,
        resolved=[pb.Resolved(name=one.name, value=one.value, reason=one.reason) for one in data.resolutions],
        rows=len(data.training),
        tokens=data.tokens,
        labelled_tokens=data.labelled_tokens,
        total_steps=config.total_steps,
        warnings=[pb.RunEvent(level="warn", message=message) for message in data.warnings],
    )
