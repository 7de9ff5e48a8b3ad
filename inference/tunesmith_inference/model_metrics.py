"""Owns what is measured of each model: requests under way, waits, first tokens, tokens, errors, loads; also replicas.

It must not know requests, keys or projects.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tunesmith_inference.errors import GatewayError
from tunesmith_inference.replicas import Replica

T = TypeVar("T")

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS = (("in", "prompt_tokens"), ("out", "completion_tokens"))


class ModelMetrics:
    """The series of all models that were asked for and still exist, which bounds their number."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._in_flight = Gauge(
            "tunesmith_gateway_model_in_flight", "Requests under way.", ["model"], registry=registry
        )
        self._waits = Histogram(
            "tunesmith_gateway_model_wait_seconds",
            "Time until a request had its engine and model.",
            ["model"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._first_tokens = Histogram(
            "tunesmith_gateway_model_first_token_seconds",
            "Time until the first token of a stream.",
            ["model"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._loads = Counter(
            "tunesmith_gateway_model_loads", "Times that an engine came to answer for it.", ["model"], registry=registry
        )
        self._tokens = Counter("tunesmith_gateway_model_tokens", "Tokens.", ["model", "direction"], registry=registry)
        self._errors = Counter(
            "tunesmith_gateway_errors",
            "Refusals and failures by their code; without a model where none was found.",
            ["model", "code"],
            registry=registry,
        )
        self._replicas = Gauge(
            "tunesmith_gateway_replica",
            "1 for each revision in an engine, with how far it is.",
            ["revision", "engine", "state"],
            registry=registry,
        )
        self._of_models = (
            self._in_flight,
            self._waits,
            self._first_tokens,
            self._loads,
            self._tokens,
            self._errors,
        )
        self._models: set[str] = set()

    def watch(self, model: str) -> ModelWatch:
        """Begins to measure one request; `model` is a name that exists."""
        self._models.add(model)
        return ModelWatch(
            self._in_flight.labels(model),
            self._waits.labels(model),
            self._first_tokens.labels(model),
            partial(self.count_error, model),
        )

    def count_error(self, model: str, code: str) -> None:
        """One request that was refused or failed, by its stable code; `model` is "" where none was found."""
        if model:
            self._models.add(model)
        self._errors.labels(model, code).inc()

    def count_load(self, model: str) -> None:
        """One engine that has come to answer for the model."""
        self._models.add(model)
        self._loads.labels(model).inc()

    def count_tokens(self, model: str, usage: dict[str, Any]) -> None:
        """An engine's usage object of one answer."""
        self._models.add(model)
        for direction, field in _TOKENS:
            self._tokens.labels(model, direction).inc(usage.get(field) or 0)

    def keep_only(self, models: Collection[str]) -> None:
        """Forgets models that do not exist any more."""
        for model in self._models.difference(models):
            for metric in self._of_models:
                metric.remove_by_labels({"model": model})
        self._models.intersection_update(models)

    def show(self, replicas: Iterable[Replica]) -> None:
        """Takes what engines hold now."""
        self._replicas.clear()
        for replica in replicas:
            self._replicas.labels(replica.revision[:16], replica.engine, replica.state.value).set(1)


class ModelWatch:
    """One request, under way inside the block."""

    def __init__(
        self, in_flight: Gauge, waits: Histogram, first_tokens: Histogram, count_error: Callable[[str], None]
    ) -> None:
        self._in_flight = in_flight
        self._waits = waits
        self._first_tokens = first_tokens
        self._count_error = count_error
        self._began = time.perf_counter()

    def __enter__(self) -> Self:
        self._in_flight.inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._in_flight.dec()

    def found(self) -> None:
        """The request has its engine and model."""
        self._waits.observe(time.perf_counter() - self._began)

    async def noting_first(self, chunks: AsyncIterator[T]) -> AsyncIterator[T]:
        """The chunks of a stream as they come; the first one ends the time to first token.

        Counts the error that ends a stream: whoever began it was told that all is well.
        """
        async for chunk in chunks:
            self._first_tokens.observe(time.perf_counter() - self._began)
            yield chunk
            break
        try:
            async for chunk in chunks:
                yield chunk
        except GatewayError as error:
            self._count_error(error.code)
            raise
