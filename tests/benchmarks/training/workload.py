"""Owns what both sides train on: the same rendered rows, in the same steps, at the same learning rates.
Must not know how either side trains."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith_trainer.base_model import read_facts
from tunesmith_trainer.data import Row, read_rows
from tunesmith_trainer.example import Example
from tunesmith_trainer.packing import pack
from tunesmith_trainer.rendering import Renderer
from tunesmith_trainer.tokenizer import load_tokenizer

DATA = ("gsm8k", "banking77")
_PACKS_PER_STEP = 2
_PEAK_RATE = {"lora": 1e-3, "full": 1e-4}
_FULLEST = 0.98  # of the packs' tokens: what no packer can fail to place


@dataclass(frozen=True, slots=True)
class Size:
    """What keeps a kind of device busy: tokens of a pack, and by data the rows of a step, which fill two packs."""

    pack_tokens: int
    rows: dict[str, int]


SIZES = {  # rows on processors: the opponent's default batch, or four of its batches
    "cpu": Size(1024, {"gsm8k": 8, "banking77": 32}),
    "cuda": Size(8192, {"gsm8k": 64, "banking77": 256}),
}


def write(path: Path, base: Path, rows: Path, size: Size, data: str, weights: str, steps: int, seed: int) -> None:
    """Draws rows for `steps` optimizer steps and writes them with everything that both sides must do alike.

    `data` is the name of a training file in the folder `rows`.
    """
    examples = rendered(base, rows / f"{data}-train.jsonl")
    generator = np.random.default_rng(seed)
    chosen = [_draw_step(examples, generator, size.rows[data], size.pack_tokens) for _ in range(steps)]
    document = {
        "base": str(base),
        "weights": weights,
        "seed": seed,
        "lora_rank": 16,
        "lora_alpha": 32,
        "learning_rates": [_PEAK_RATE[weights] * (steps - index) / steps for index in range(steps)],
        "pack_tokens": size.pack_tokens,
        "steps": [
            [{"input_ids": one.token_ids.tolist(), "labelled": one.labelled.tolist()} for one in step]
            for step in chosen
        ],
    }
    path.write_text(json.dumps(document))


def cut(whole: Path, path: Path, steps: int) -> None:
    """Writes the first steps of a workload as one of their own."""
    document = json.loads(whole.read_text())
    path.write_text(json.dumps({**document, "steps": document["steps"][:steps]}))


def rendered(base: Path, rows: Path) -> list[Example]:
    """All rows of a file as the trainer renders them."""
    tokenizer = load_tokenizer(base)
    renderer = Renderer(tokenizer, read_facts(base, tokenizer.eos_token_id).stop_ids)
    read = [row for row in read_rows(rows, "training_file") if isinstance(row, Row)]
    return [one for one in renderer.render_all(read) if isinstance(one, Example)]


def _draw_step(
    examples: Sequence[Example], generator: np.random.Generator, rows: int, pack_tokens: int
) -> list[Example]:
    """Rows at random, drawn again until they fill their packs: then every packer needs the same number of them."""
    least = (_PACKS_PER_STEP - 0.2) * pack_tokens
    while True:
        drawn = [examples[int(index)] for index in generator.choice(len(examples), rows, replace=False)]
        tokens = sum(len(one.token_ids) for one in drawn)
        if (
            least < tokens <= _FULLEST * _PACKS_PER_STEP * pack_tokens
            and len(pack(drawn, pack_tokens)) == _PACKS_PER_STEP
        ):
            return drawn
