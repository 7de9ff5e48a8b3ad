"""Owns saving and restoring a run between two steps: what is needed to go on exactly as if nothing had happened.
Must not know URLs or when to save."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunesmith_trainer import lora
from tunesmith_trainer.config import TrainingConfig
from tunesmith_trainer.errors import checkpoint_damaged
from tunesmith_trainer.evaluation import Measured, RowScore
from tunesmith_trainer.example import Example
from tunesmith_trainer.memory_ladder import Rung
from tunesmith_trainer.optim import Optimizer
from tunesmith_trainer.preference import PairScore
from tunesmith_trainer.sharding import inner, part_of

logger = logging.getLogger(__name__)

_STATE = "training_state"
_DOCUMENT = f"{_STATE}.json"
_TENSOR_FILES = f"{_STATE}*.safetensors"
_FILE_BYTES = 4 * 10**9  # object storage takes no more than 5 GiB at once


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. The order of the data follows from `step`; nothing random is drawn during training.

    `dtype` is what the run computes in, `rung` how, after `memory_failures` attempts of the job that ran out of memory.
    `history` holds the metrics of every step, in order, and grows as the loop goes on. `best` is the best pass so far
    where the run may stop early.
    """

    step: int
    trained_tokens: int
    dtype: str
    history: list[dict[str, Any]]
    rung: Rung | None = None
    memory_failures: int = 0
    best: Measured | None = None


def rows_digest(*parts: Sequence[Example]) -> str:
    """Hex digest of rendered rows: what a run trains on, and what it is measured by."""
    digest = hashlib.sha256()
    for examples in parts:
        digest.update(b"%d;" % len(examples))
        for example in examples:
            digest.update(example.token_ids.tobytes() + example.labelled.tobytes() + b"%a;" % (example.splits,))
    return digest.hexdigest()


def save_state(
    folder: Path, optimizer: dict[str, Tensor], config: TrainingConfig, rows: str, progress: Progress
) -> None:
    """Writes the training state beside the weights. `optimizer` is what the optimizer's `state` gave, `rows` the rows'
    digest."""
    for number, tensors in enumerate(_in_files(optimizer), start=1):
        save_file(tensors, folder / (f"{_STATE}-{number}.safetensors" if number > 1 else f"{_STATE}.safetensors"))
    # `asdict` copies all that it is given, value by value: for a long history several times the work of writing it.
    document = asdict(replace(progress, history=[])) | {"history": progress.history}
    (folder / _DOCUMENT).write_text(json.dumps({"config": asdict(config), "rows": rows, **document}))


def is_state(path: str) -> bool:
    """Whether a file of a saved run is there for resuming only."""
    return path.startswith(_STATE)


def read_progress(folder: Path, config: TrainingConfig, rows: str) -> Progress:
    """Reads how far a saved run was.

    Raises InfrastructureFailed (`checkpoint_damaged`) when it was saved with other numbers or rows, as a release before
    may have resolved and rendered them: of no use to this run, which then begins again.
    """
    document = json.loads((folder / _DOCUMENT).read_text())
    saved, wanted = document.pop("config"), json.loads(json.dumps(asdict(config)))
    is_own = saved == {name: wanted.get(name) for name in saved}  # a release before may have had fewer
    if not is_own or document.pop("rows", rows) != rows:
        raise checkpoint_damaged(document["step"], "it was made with other hyperparameters or rows")
    best, rung = document.pop("best"), document.pop("rung", None)
    return Progress(
        **document, rung=None if rung is None else Rung(**rung), best=None if best is None else _measured(best)
    )


def restore(folder: Path, model: nn.Module, optimizer: Optimizer, config: TrainingConfig) -> None:
    """Puts saved weights and optimizer state back into place. Raises ValueError when they are another model's."""
    if config.full_weights:
        _restore_weights(folder, model)
    else:
        lora.load(model, folder)
    # Where weights are not float32, the master copies in the state hold more than the served weights and replace them.
    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob(_TENSOR_FILES)):
        state |= load_file(path)
    optimizer.load_state(state)


@contextmanager
def reading(step: int) -> Iterator[None]:
    """For the length of a block, a checkpoint that cannot be read ends the run by `checkpoint_damaged`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        if "os error" in str(error):  # the disk's or the machine's fault, in the safetensors library's words
            raise
        logger.warning("the checkpoint cannot be read", exc_info=error)
        raise checkpoint_damaged(step, "its files do not hold a saved run of this job") from error


def _in_files(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors, in order, in parts that are no larger than a file may be, unless a tensor alone is."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > _FILE_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    yield part


def _measured(document: dict[str, Any]) -> Measured:
    rows, guard = ([_score(score) for score in document[part]] for part in ("rows", "guard"))
    return Measured(document["step"], rows, guard)


def _score(document: dict[str, Any]) -> RowScore:
    return PairScore(**document) if "margin" in document else RowScore(**document)


def _restore_weights(folder: Path, model: nn.Module) -> None:
    model = inner(model)
    state: dict[str, Tensor] = model.state_dict()
    missing = set(state)
    for path in sorted(folder.glob("model*.safetensors")):
        tensors = load_file(path)
        if not tensors.keys() <= state.keys():
            raise ValueError("the checkpoint holds layers that the model does not have")
        with torch.no_grad():
            for name, tensor in tensors.items():
                state[name].copy_(part_of(tensor, state[name]))
        missing -= tensors.keys()
    is_tied = cast("Any", model.config).tie_word_embeddings
    if missing - ({"lm_head.weight"} if is_tied else set()):
        raise ValueError("the checkpoint lacks layers of the model")
