"""Owns how a grader that needs no model turns texts into a reward, and what a grade is.

It must not know transports or models. Faults of the data are flags of the grade, not errors of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith_server.graders.formula import FormulaError, evaluate
from tunesmith_server.graders.schemas import GraderErrors, StringCheckGrader, TextSimilarityGrader
from tunesmith_server.graders.similarity import similarity
from tunesmith_server.graders.templates import (
    MAX_RENDERED,
    Sample,
    SampleNotJsonError,
    TextTooLongError,
    UnknownVariableError,
    render,
)

_MAX_TOGETHER = 4 * MAX_RENDERED
"""Characters of all texts of one grader."""

_COMPARISONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


@dataclass(frozen=True, slots=True)
class Grade:
    """What came of one grader."""

    reward: float = 0.0
    errors: GraderErrors = field(default_factory=GraderErrors)
    token_usage: int | None = None
    model: str | None = None


def failed(**flags: bool | str) -> Grade:
    """A grade that failed for these reasons."""
    return Grade(errors=GraderErrors(**flags))


def rendered(templates: Sequence[str], item: Mapping[str, Any], sample: str) -> list[str] | Grade:
    """The templates' texts, or the grade that their fault gives."""
    try:
        return _render_all(templates, item, Sample(sample))
    except UnknownVariableError:
        return failed(invalid_variable_error=True)
    except SampleNotJsonError:
        return failed(sample_parse_error=True)
    except TextTooLongError:
        return failed(truncated_observation_error=True)


def grade_texts(grader: StringCheckGrader | TextSimilarityGrader, item: Mapping[str, Any], sample: str) -> Grade:
    """Compares two texts. Takes up to a second or two of the processor."""
    texts = rendered((grader.input, grader.reference), item, sample)
    if isinstance(texts, Grade):
        return texts
    text, reference = texts
    if isinstance(grader, StringCheckGrader):
        return Grade(float(_COMPARISONS[grader.operation](text, reference)))
    try:
        return Grade(similarity(grader.evaluation_metric, text, reference))
    except TextTooLongError:
        return failed(truncated_observation_error=True)


def combined(formula: str, grades: Mapping[str, Grade]) -> Grade:
    """The formula over the grades' rewards; a fault of one is a fault of the whole."""
    usages = [grade.token_usage for grade in grades.values() if grade.token_usage is not None]
    usage = sum(usages) if usages else None
    errors = _merged([grade.errors for grade in grades.values()])
    if errors != GraderErrors():
        return Grade(errors=errors, token_usage=usage)
    try:
        return Grade(evaluate(formula, {key: grade.reward for key, grade in grades.items()}), token_usage=usage)
    except FormulaError:
        return Grade(errors=GraderErrors(formula_parse_error=True), token_usage=usage)


def _render_all(templates: Sequence[str], item: Mapping[str, Any], sample: Sample) -> list[str]:
    texts = []
    length = 0
    for template in templates:
        text = render(template, item, sample)
        length += len(text)
        if length > _MAX_TOGETHER:
            raise TextTooLongError
        texts.append(text)
    return texts


def _merged(each: Sequence[GraderErrors]) -> GraderErrors:
    flags: dict[str, Any] = {}
    for errors in each:
        flags |= {name: value for name, value in errors.model_dump(exclude_defaults=True).items() if name not in flags}
    return GraderErrors(**flags)
