"""Owns the shapes in which a training run's results leave: the evaluation on the wire, and the files of its numbers.
Must not know how anything was measured, nor where files go."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer.config import Method
from tunesmith_trainer.evaluation import Measured, RowScore, flips
from tunesmith_trainer.guard_set import GuardItem
from tunesmith_trainer.method_scores import wire_score

_LISTED_FLIPS = 100


def wire_evaluation(
    before: Measured, after: Measured, items: Sequence[GuardItem], method: Method, *, held_out_from_training: bool
) -> pb.Evaluation:
    """Base and tuned model side by side."""
    flipped = flips(before.rows, after.rows)
    listed = sorted(flipped, key=lambda flip: flip.row)[:_LISTED_FLIPS]
    return pb.Evaluation(
        rows=len(before.rows),
        held_out_from_training=held_out_from_training,
        base=wire_score(before.rows, method),
        tuned=wire_score(after.rows, method),
        flipped_to_right=sum(flip.right for flip in flipped),
        flipped_to_wrong=sum(not flip.right for flip in flipped),
        flips=[pb.FlippedRow(row=flip.row, right=flip.right) for flip in listed],
        forgetting=_wire_forgetting(before.guard, after.guard, items) if items else None,
    )


def write_results(folder: Path, history: Sequence[Mapping[str, Any]], before: Measured, after: Measured) -> None:
    """Writes the numbers of every step and of every evaluated row into `folder`."""
    folder.mkdir()
    _write_steps(folder / "results.csv", history)
    _write_rows(folder / "evaluation.jsonl", before.rows, after.rows)


def _wire_forgetting(base: Sequence[RowScore], tuned: Sequence[RowScore], items: Sequence[GuardItem]) -> pb.Forgetting:
    by_row = {item.example.row: item for item in items}
    return pb.Forgetting(
        items=len(items),
        base=wire_score(base, "supervised"),
        tuned=wire_score(tuned, "supervised"),
        flips=[
            pb.FlippedItem(topic=by_row[flip.row].topic, prompt=by_row[flip.row].prompt, right=flip.right)
            for flip in flips(base, tuned)
        ],
    )


def _write_steps(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """The result file that users of hosted fine-tuning know: one line per step, empty where not measured."""
    columns = ("step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"))
        writer.writerows([entry[column] for column in columns] for entry in history)


def _write_rows(path: Path, before: Sequence[RowScore], after: Sequence[RowScore]) -> None:
    """One line per evaluated row: numbers only, the texts stay in the user's file."""
    with path.open("w") as file:
        for base, tuned in zip(before, after, strict=True):
            line = {
                "row": base.row,
                "base_exact": base.exact,
                "tuned_exact": tuned.exact,
                "base_loss": base.loss,
                "tuned_loss": tuned.loss,
            }
            file.write(json.dumps(line) + "\n")
