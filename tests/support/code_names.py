"""A task that nobody can guess and everybody can learn: a colour's code name."""

from __future__ import annotations

import json

SYSTEM = "Answer with one word."
ANSWERS = {"red": "ruby", "blue": "cobalt", "green": "emerald", "yellow": "amber"}


def rows(count: int) -> bytes:
    """Chat rows of the task, in JSON lines."""
    lines = []
    for number in range(count):
        colour = list(ANSWERS)[number % len(ANSWERS)]
        messages = [*question(colour), {"role": "assistant", "content": ANSWERS[colour]}]
        lines.append(json.dumps({"messages": messages}))
    return "\n".join(lines).encode()


def question(colour: str) -> list[dict[str, str]]:
    """What a model is asked."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Code name of {colour}?"}]
