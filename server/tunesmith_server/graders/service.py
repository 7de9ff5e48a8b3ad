"""Owns what users can do with graders: have one checked, and try it on one sample.

It must not know transports. Work of the processor runs beside the event loop, in threads of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.graders import formula, templates
from tunesmith_server.graders.grading import Grade, combined, grade_texts
from tunesmith_server.graders.model_scoring import AskModel, grade_by_model, question
from tunesmith_server.graders.schemas import (
    Grader,
    GraderMetadata,
    LabelModelGrader,
    MultiGrader,
    PythonGrader,
    RunGrader,
    RunResult,
    ScoreModelGrader,
    SingleGrader,
    StringCheckGrader,
    TextSimilarityGrader,
    ValidatedGrader,
    ValidateGrader,
)

_THREADS = 2


class GradersService:
    """Graders of anybody: they hold nothing of a project but what the call brings."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "grader")

    async def validate(self, request: ValidateGrader) -> ValidatedGrader:
        """The grader as it was understood; raises InvalidRequestError for one that could never give a reward."""
        for param, grader in _each(request.grader):
            _check_offered(grader, param)
            for text in _templates(grader):
                _check_template(text, param)
        if isinstance(request.grader, MultiGrader):
            _check_formula(request.grader)
        return ValidatedGrader(grader=request.grader.model_dump(exclude_unset=True))

    async def run(self, request: RunGrader, ask: AskModel) -> RunResult:
        """The reward of one sample; faults of the data are flags, a grader that is not offered is an error."""
        for param, grader in _each(request.grader):
            _check_offered(grader, param)
        started = time.perf_counter()
        if isinstance(request.grader, MultiGrader):
            grades = await self._grade_all(request.grader, request, ask)
            grade = combined(request.grader.calculate_output, grades)
        else:
            grades = {}
            grade = await self._grade(request.grader, request, ask)
        return _result(request.grader, grade, grades, time.perf_counter() - started)

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _grade_all(self, grader: MultiGrader, request: RunGrader, ask: AskModel) -> dict[str, Grade]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    key: group.create_task(self._grade(each, request, ask)) for key, each in grader.graders.items()
                }
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return {key: task.result() for key, task in tasks.items()}

    async def _grade(self, grader: SingleGrader, request: RunGrader, ask: AskModel) -> Grade:
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._threads)
        if isinstance(grader, ScoreModelGrader):
            asked = await in_thread(partial(question, grader, request.item, request.model_sample))
            return asked if isinstance(asked, Grade) else await grade_by_model(grader, asked, ask)
        if isinstance(grader, StringCheckGrader | TextSimilarityGrader):
            return await in_thread(partial(grade_texts, grader, request.item, request.model_sample))
        raise _not_offered(grader, "grader")


def _each(grader: Grader) -> list[tuple[str, SingleGrader]]:
    """Every grader that gives a reward by itself, with the parameter that holds it."""
    if isinstance(grader, MultiGrader):
        return [(f"grader.graders.{key}", each) for key, each in grader.graders.items()]
    return [("grader", grader)]


def _check_offered(grader: SingleGrader, param: str) -> None:
    if isinstance(grader, PythonGrader | LabelModelGrader):
        raise _not_offered(grader, param)
    if isinstance(grader, TextSimilarityGrader) and grader.evaluation_metric == "cosine":
        message = "No embedding model is served here, which the metric cosine needs. Use another evaluation_metric."
        raise InvalidRequestError("unsupported_metric", message, param=f"{param}.evaluation_metric")


def _not_offered(grader: PythonGrader | LabelModelGrader, param: str) -> InvalidRequestError:
    reason = "run only in a sandbox, which is not offered" if grader.type == "python" else "belong to evaluations"
    message = f"Graders of type {grader.type} {reason} here. Use string_check, text_similarity, score_model or multi."
    return InvalidRequestError("unsupported_grader", message, param=f"{param}.type")


def _templates(grader: SingleGrader) -> list[str]:
    if isinstance(grader, ScoreModelGrader):
        return [text for message in grader.input for text in message.texts]
    if isinstance(grader, StringCheckGrader | TextSimilarityGrader):
        return [grader.input, grader.reference]
    return []


def _check_template(text: str, param: str) -> None:
    try:
        templates.check(text)
    except templates.UnknownVariableError as error:
        message = (
            f"The template variable {str(error)!r} is not known. Use item.<field>, sample.output_text or "
            "sample.output_json.<field>."
        )
        raise InvalidRequestError("invalid_template_variable", message, param=param) from error


def _check_formula(grader: MultiGrader) -> None:
    try:
        formula.check(grader.calculate_output, grader.graders)
    except formula.FormulaError as error:
        message = f"`calculate_output`: {error}."
        raise InvalidRequestError("invalid_formula", message, param="grader.calculate_output") from error


def _result(grader: Grader, grade: Grade, grades: dict[str, Grade], seconds: float) -> RunResult:
    rewards = {key: each.reward for key, each in grades.items()}
    usage: Counter[str] = Counter()
    for each in grades.values() or [grade]:
        if each.model is not None and each.token_usage is not None:
            usage[each.model] += each.token_usage
    metadata = GraderMetadata(
        name=grader.name,
        type=grader.type,
        errors=grade.errors,
        execution_time=seconds,
        scores=rewards,
        token_usage=grade.token_usage,
        sampled_model_name=grade.model,
    )
    return RunResult(
        reward=grade.reward,
        metadata=metadata,
        sub_rewards=rewards,
        model_grader_token_usage_per_model=dict(usage),
    )
