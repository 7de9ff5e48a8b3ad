"""Owns what prompts of /v1/completions are put into where a model has learnt them as questions in a conversation.

It must not know engines, routes or how models come to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

_Text = Annotated[str, Field(max_length=100_000)]


class CompletionFrame(BaseModel):
    """What the model's chat template writes around a user's message; it may trim the message itself."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    before: _Text
    after: _Text
    trimmed: bool

    def around(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a completion with every text to be continued in the frame; tokens stay as they are."""
        prompt = parameters["prompt"]
        if isinstance(prompt, str):
            framed: object = self._framed(prompt)
        elif isinstance(prompt, list) and prompt and all(isinstance(one, str) for one in prompt):
            framed = [self._framed(one) for one in prompt]
        else:
            return dict(parameters)
        # The frame begins as the template does: another begin-of-text token would come before it.
        return {**parameters, "prompt": framed, "add_special_tokens": False}

    def _framed(self, prompt: str) -> str:
        return f"{self.before}{prompt.strip() if self.trimmed else prompt}{self.after}"
