"""Owns the course of an import: the uploaded archive, its files held against the base, the artifact, golden answers.
Must not know how any of them is done."""

import json
import math
import tarfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer.adapter_file import CONFIG_FILE
from tunesmith_trainer.artifact import copy_texts, write_merged, write_whole
from tunesmith_trainer.base_model import ModelFacts, read_facts
from tunesmith_trainer.base_shapes import build_empty, read_shapes
from tunesmith_trainer.delivery import deliver
from tunesmith_trainer.errors import BadData, OutOfMemory, Problem
from tunesmith_trainer.foreign_adapter import write_plain
from tunesmith_trainer.foreign_texts import require_same_texts
from tunesmith_trainer.foreign_weights import require_fitting_weights, require_same_architecture
from tunesmith_trainer.golden import GoldenAnswers, golden_prompts
from tunesmith_trainer.guard_set import examples_of, guard_items
from tunesmith_trainer.machine import memory_of
from tunesmith_trainer.memory_plan import gib
from tunesmith_trainer.model import load_as_stored
from tunesmith_trainer.rendering import Renderer
from tunesmith_trainer.reporter import Reporter
from tunesmith_trainer.tokenizer import load_tokenizer
from tunesmith_trainer.workspace import model_archive

_PREFIX = "model"
_BYTES_PER_PARAMETER = 4  # the proof computes in float32
_MARGIN = 1.25


def run_import(spec: pb.TrainingSpec, base: Path, work: Path, reporter: Reporter) -> None:
    """Makes an artifact of the uploaded model. Raises BadData where it cannot be served on the base model."""
    source = _unpacked(model_archive(spec, work), work / "source")
    tokenizer = load_tokenizer(base)
    facts = read_facts(base, tokenizer.eos_token_id)
    require_same_texts(source, base, facts.stop_ids)
    _require_memory(base)
    reporter.check()
    folder = work / "artifact"
    folder.mkdir()
    request = pb.CompleteImportRequest()
    if (source / CONFIG_FILE).exists():
        kind = _write_adapter(spec, source, base, folder, facts, request)
    else:
        kind = _write_weights(source, base, work / "whole", folder)
    reporter.check()
    guard = examples_of(guard_items(Renderer(tokenizer, facts.stop_ids), facts.max_context_length))
    golden = GoldenAnswers(base, golden_prompts(guard, [], facts.max_context_length), facts.stop_ids)
    _require_numbers(golden.record(folder, torch.device("cpu"), whole=kind == pb.ARTIFACT_KIND_FULL))
    reporter.report(phase="uploading")
    files = deliver(folder, f"{_PREFIX}/", reporter)
    request.artifact.CopyFrom(pb.Artifact(kind=kind, prefix=_PREFIX, files=files))
    reporter.complete_import(request)


def _unpacked(archive: Path, folder: Path) -> Path:
    """The archive's files. The control plane has looked at its headers; it is unpacked as if nobody had."""
    folder.mkdir()
    try:
        with tarfile.open(archive, "r:") as tar:
            tar.extractall(folder, [member for member in tar if member.isreg()], filter="data")
    except (tarfile.TarError, OSError) as error:
        message = "The archive cannot be unpacked. Make it with `tar -cf model.tar -C FOLDER .`."
        raise BadData(Problem("archive_invalid", message, "file")) from error
    return folder


def _require_memory(base: Path) -> None:
    needed = int(read_shapes(build_empty(base)).parameters * _BYTES_PER_PARAMETER * _MARGIN)
    _, capacity = memory_of(torch.device("cpu"))
    if needed > capacity:
        message = (
            f"The proof of a model of this size needs about {gib(needed)} of main memory; the machine has "
            f"{gib(capacity)}. Import it where there is more."
        )
        raise OutOfMemory(Problem("insufficient_memory", message, "base_model"))


def _require_numbers(answers: list[dict[str, Any]]) -> None:
    if not all(math.isfinite(logprob) for answer in answers for logprob in answer["logprobs"]):
        message = "The model's answers are no numbers: its weights are too large. Take an earlier checkpoint of it."
        raise BadData(Problem("answers_not_finite", message, "file"))


def _write_adapter(
    spec: pb.TrainingSpec, source: Path, base: Path, folder: Path, facts: ModelFacts, request: pb.CompleteImportRequest
) -> pb.ArtifactKind.ValueType:
    target = source if facts.served_merged else folder
    plain = write_plain(source, build_empty(base), spec.base_model.id, target, merged=facts.served_merged)
    if facts.served_merged:
        write_merged(source, base, folder)
        return pb.ARTIFACT_KIND_FULL
    request.adapter.CopyFrom(
        pb.Hyperparameters(
            lora_rank=plain.rank,
            lora_alpha=plain.alpha,
            lora_targets=plain.targets,
            use_rslora=plain.use_rslora,
        )
    )
    return pb.ARTIFACT_KIND_ADAPTER


def _write_weights(source: Path, base: Path, whole: Path, folder: Path) -> pb.ArtifactKind.ValueType:
    require_same_architecture(source, base)
    require_fitting_weights(source, build_empty(base))
    whole.mkdir()
    copy_texts(base, whole)
    _move_shards(source, whole)
    model = load_as_stored(whole)
    write_whole(model, model.state_dict(), base, folder)
    return pb.ARTIFACT_KIND_FULL


def _move_shards(source: Path, whole: Path) -> None:
    """With an index of our own: that of an upload could name any file of the machine, or leave weights out."""
    places: dict[str, str] = {}
    for number, path in enumerate(sorted(source.glob("*.safetensors")), start=1):
        shard = f"model-{number:05}.safetensors"
        with safe_open(path, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), shard)
        path.rename(whole / shard)
    (whole / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
