"""Owns what is counted: requests, their time, tokens by project and key; for Prometheus, limits and the control plane.

It must not know what a request does; texts and keys never get here, only a key's id.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from tunesmith_inference.auth import Principal
from tunesmith_inference.ledger import Ledger
from tunesmith_inference.model_metrics import ModelMetrics
from tunesmith_inference.rate_limits import RateLimiter

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Usage:
    """The counters of one gateway, `models` those by model; what keys use goes on to their limits and the ledger."""

    def __init__(self, limits: RateLimiter, ledger: Ledger) -> None:
        self._limits = limits
        self._ledger = ledger
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tunesmith_gateway_requests", "Requests answered.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "tunesmith_gateway_request_seconds",
            "Time until the last byte of the answer.",
            ["route"],
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._tokens = Counter(
            "tunesmith_gateway_tokens", "Tokens.", ["project", "key", "direction"], registry=self._registry
        )
        self._moderations = Counter(
            "tunesmith_gateway_moderations", "Verdicts.", ["side", "verdict"], registry=self._registry
        )
        self._captures = Counter(
            "tunesmith_gateway_captures", "Captures by what became of them.", ["fate"], registry=self._registry
        )
        self._forwarded = Counter(
            "tunesmith_gateway_forwarded",
            "Requests passed on to another gateway.",
            ["outcome"],
            registry=self._registry,
        )
        self.models = ModelMetrics(self._registry)

    def count_request(self, route: str, status: str, seconds: float) -> None:
        """One answered request; `route` is a template, so that its values stay few."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def count_moderation(self, side: str, verdict: str) -> None:
        """One question to the moderation service: about a prompt or an answer; passed, flagged or failed."""
        self._moderations.labels(side, verdict).inc()

    def count_captures(self, fate: str, captures: int) -> None:
        """So many captures that were stored or dropped."""
        self._captures.labels(fate).inc(captures)

    def count_forwarded(self, outcome: str) -> None:
        """One request that was passed on to another gateway, and what became of it."""
        self._forwarded.labels(outcome).inc()

    def count_tokens(self, principal: Principal, model: str, usage: dict[str, Any]) -> None:
        """An engine's usage object, prompt_tokens and completion_tokens, of one answer under the name `model`."""
        self._ledger.add(principal, model, usage)
        self.models.count_tokens(model, usage)
        self._limits.spend(principal, (usage.get("prompt_tokens") or 0) + (usage.get("completion_tokens") or 0))
        for direction, field in (("in", "prompt_tokens"), ("out", "completion_tokens")):
            counter = self._tokens.labels(principal.project_id, principal.key_id, direction)
            counter.inc(usage.get(field) or 0)

    def exposition(self) -> bytes:
        """All counters as Prometheus reads them."""
        return generate_latest(self._registry)
