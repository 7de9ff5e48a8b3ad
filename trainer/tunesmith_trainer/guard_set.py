"""Owns the questions of general knowledge that every run asks base and tuned model: what does tuning make it forget?
Must not know models, the job's data or the control plane."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith_trainer.data import completion_row
from tunesmith_trainer.errors import Problem
from tunesmith_trainer.example import Example
from tunesmith_trainer.rendering import Renderer

_FILE = Path(__file__).with_name("guard_set.jsonl")


@dataclass(frozen=True, slots=True)
class GuardItem:
    """One question. `example.row` is its 1-based place in the set."""

    topic: str
    prompt: str
    example: Example


def guard_items(renderer: Renderer, context_length: int) -> list[GuardItem]:
    """The questions as the base model is asked; those that it cannot be asked, or that are too long, are left out."""
    lines = [json.loads(line) for line in _FILE.read_text(encoding="utf-8").splitlines()]
    # A base without a chat template reads both texts as one; the new line tells it where the answer begins.
    end = "" if renderer.has_chat_template else "\n"
    rows = [
        completion_row(number, "guard_set", line["prompt"] + end, line["completion"])
        for number, line in enumerate(lines, start=1)
    ]
    return [
        GuardItem(line["topic"], line["prompt"], rendered)
        for line, rendered in zip(lines, renderer.render_all(rows), strict=True)
        if not isinstance(rendered, Problem) and len(rendered.token_ids) <= context_length
    ]


def examples_of(items: Sequence[GuardItem]) -> list[Example]:
    """What is scored."""
    return [item.example for item in items]
