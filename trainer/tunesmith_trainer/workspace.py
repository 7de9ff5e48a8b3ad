"""Owns what a run has on its disk: the model to start from, data, a checkpoint to resume; and the spec in our words.
Must not know torch or what is done with the files."""

import logging
from collections.abc import Callable
from datetime import date
from pathlib import Path

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer.config import LongRows, Method, Start, Wanted
from tunesmith_trainer.errors import BadSpec, Problem, checkpoint_damaged
from tunesmith_trainer.preflight import Examined, Prepared, examine, prepare
from tunesmith_trainer.row_checks import Watch
from tunesmith_trainer.transfer import ObjectDamaged, Remote, cached_base_model, download

logger = logging.getLogger(__name__)

_ROWS = "rows"  # of the cache: what preflight has rendered, a run need not
_WEIGHTS = (".safetensors", ".safetensors.index.json")
_METHODS: dict[str, Method] = {
    "supervised": "supervised",
    "dpo": "dpo",
    "continued_pretraining": "continued_pretraining",
}
_STARTS: dict[int, Start] = {pb.ARTIFACT_KIND_ADAPTER: "adapter", pb.ARTIFACT_KIND_FULL: "tuned_weights"}
_LONG_ROWS: dict[int, LongRows] = {pb.LONG_ROWS_CUT: "cut", pb.LONG_ROWS_DROP: "drop"}


def prepare_run(
    spec: pb.TrainingSpec, base: Path, cache: Path, work: Path, still_wanted: Callable[[], None]
) -> Prepared:
    """Fetches the data files and renders and resolves everything. Raises what `prepare` raises."""
    return prepare(base, *_data_files(spec, work), wanted_of(spec), still_wanted, cache / _ROWS)


def examine_run(spec: pb.TrainingSpec, base: Path, cache: Path, work: Path, watch: Watch) -> Examined:
    """Fetches the data files and looks for everything that is wrong. Raises what `examine` raises."""
    return examine(base, *_data_files(spec, work), wanted_of(spec), watch, cache / _ROWS)


def base_model(spec: pb.TrainingSpec, cache: Path, work: Path, *, weights: bool) -> Path:
    """Folder of the base model, or of the tuned weights that the run goes on from in its place.

    Without `weights` the small files suffice, which both have alike, and a cold cache stays cold.
    """
    if weights and spec.warm_start.kind == pb.ARTIFACT_KIND_FULL:
        return _start_folder(spec, work)
    base = spec.base_model
    files = [_remote(file) for file in base.files]
    if weights or (cache / "base_models" / base.revision).is_dir():
        return cached_base_model(cache, base.id, base.revision, files)
    folder = work / "base_model"
    download([file for file in files if not file.path.endswith(_WEIGHTS)], folder)
    return folder


def adapter_folder(spec: pb.TrainingSpec, work: Path) -> Path | None:
    """Folder of the tuned adapter that the run goes on from, if the spec names one."""
    return _start_folder(spec, work) if spec.warm_start.kind == pb.ARTIFACT_KIND_ADAPTER else None


def model_archive(spec: pb.TrainingSpec, work: Path) -> Path:
    """The uploaded archive of an import."""
    path = "model.tar"
    download([_remote(spec.model_archive, path)], work)
    return work / path


def resume_folder(spec: pb.TrainingSpec, work: Path) -> Path | None:
    """Folder of this job's checkpoint to go on from, if the spec names one. Raises `checkpoint_damaged`."""
    if not spec.HasField("resume"):
        return None
    folder = work / "resume"
    # Only the last part of a path counts: a checkpoint is one flat folder, whatever prefix it was listed under.
    files = [_remote(file, file.path.rpartition("/")[2]) for file in spec.resume.files]
    try:
        download(files, folder)
    except ObjectDamaged as failure:
        logger.warning("the checkpoint is damaged: %s", failure)  # names the file
        why = "what object storage holds of it is not what was stored there"
        raise checkpoint_damaged(spec.resume.step, why) from failure
    return folder


def wanted_of(spec: pb.TrainingSpec) -> Wanted:
    """What the job asks for, in this package's words. Raises BadSpec for what this trainer cannot do."""
    if spec.method not in _METHODS:
        raise BadSpec(Problem("unsupported_method", f"The method {spec.method!r} is not supported.", "method"))
    if spec.weights not in (pb.WEIGHTS_LORA, pb.WEIGHTS_FULL):
        raise BadSpec(Problem("unsupported_weights", "Choose lora or full weights.", "training.weights"))
    numbers = spec.hyperparameters
    return Wanted(
        full_weights=spec.weights == pb.WEIGHTS_FULL,
        seed=spec.seed,
        n_epochs=numbers.n_epochs if numbers.HasField("n_epochs") else None,
        batch_size=numbers.batch_size if numbers.HasField("batch_size") else None,
        learning_rate_multiplier=(
            numbers.learning_rate_multiplier if numbers.HasField("learning_rate_multiplier") else None
        ),
        learning_rate=spec.learning_rate if spec.HasField("learning_rate") else None,
        lora_rank=numbers.lora_rank if numbers.HasField("lora_rank") else None,
        lora_alpha=numbers.lora_alpha if numbers.HasField("lora_alpha") else None,
        lora_targets=tuple(numbers.lora_targets),
        use_rslora=numbers.use_rslora if numbers.HasField("use_rslora") else None,
        context_length=numbers.context_length if numbers.HasField("context_length") else None,
        early_stopping_patience=(
            numbers.early_stopping_patience if numbers.HasField("early_stopping_patience") else None
        ),
        max_rank=spec.max_lora_rank,
        max_context_length=spec.max_context_length if spec.HasField("max_context_length") else None,
        long_rows=_LONG_ROWS.get(spec.long_rows, "fail"),
        method=_METHODS[spec.method],
        beta=numbers.beta if numbers.HasField("beta") else None,
        start=_STARTS.get(spec.warm_start.kind, "base"),
        day=day_of(spec),
    )


def day_of(spec: pb.TrainingSpec) -> date | None:
    """The day that chat templates are told, the same in all attempts of a job."""
    return date.fromisoformat(spec.day) if spec.day else None


def _start_folder(spec: pb.TrainingSpec, work: Path) -> Path:
    folder = work / "start"
    download([_remote(file) for file in spec.warm_start.files], folder)
    return folder


def _data_files(spec: pb.TrainingSpec, work: Path) -> tuple[Path, Path | None]:
    training = _data_file(spec.training_file, "training", work)
    return training, _data_file(spec.validation_file, "validation", work) if spec.HasField("validation_file") else None


def _data_file(file: pb.RemoteFile, name: str, work: Path) -> Path:
    """Fetches a file of rows or, by its name, of plain text."""
    path = f"{name}{'.txt' if file.path.endswith('.txt') else '.jsonl'}"
    download([_remote(file, path)], work)
    return work / path


def _remote(file: pb.RemoteFile, path: str | None = None) -> Remote:
    return Remote(path or file.path, file.size, file.sha256, file.url)
