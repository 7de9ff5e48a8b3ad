"""Owns graders that tests share, and what they read of a result."""

from __future__ import annotations

from typing import Any

from tunesmith_server.graders.schemas import GraderErrors

SERVER_ERROR = {"model_grader_server_error", "model_grader_server_error_details"}

EXACT: dict[str, Any] = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
CLOSE: dict[str, Any] = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "rouge_1",
}
JUDGE: dict[str, Any] = {
    "type": "score_model",
    "name": "judge",
    "model": "judge",
    "input": [{"role": "developer", "content": "Grade: {{sample.output_text}} against {{item.answer}}"}],
}
PYTHON = {"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}
BOTH: dict[str, Any] = {
    "type": "multi",
    "name": "both",
    "graders": {"exact": EXACT, "close": CLOSE, "judge": JUDGE},
    "calculate_output": "0.5 * exact + 0.25 * close + 0.25 * judge",
}


def flagged(errors: object) -> set[str]:
    """Names of the flags and details that are set."""
    return set(GraderErrors.model_validate(errors).model_dump(exclude_defaults=True))
