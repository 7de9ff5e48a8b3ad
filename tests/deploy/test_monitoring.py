"""What is asked of Prometheus can be parsed and names series that exist: alerts, autoscaling and the guide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import promql_parser
import yaml

from tests.deploy.guide import GUIDE
from tests.deploy.manifests import rendered
from tests.deploy.metric_names import named_in, series
from tunesmith_inference import errors

RULES = [
    rule for group in yaml.safe_load(GUIDE.with_name("alerts.yaml").read_text())["groups"] for rule in group["rules"]
]


def queries() -> Iterator[str]:
    for rule in RULES:
        yield rule["expr"]
    (scaled,) = rendered("replicas").of_kind("ScaledObject")
    for trigger in scaled["spec"]["triggers"]:
        yield trigger["metadata"]["query"]


def selectors(query: str) -> list[Any]:
    """The parts of a query that choose series."""
    found: list[Any] = []

    def note(part: Any) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            found.append(part)

    promql_parser.walk(promql_parser.parse(query), note)
    return found


def test_queries_choose_series_that_exist() -> None:
    for query in queries():
        chosen = {selector.name for selector in selectors(query)}
        assert chosen, query
        assert chosen <= series(), query


def test_errors_that_are_watched_exist() -> None:
    (rule,) = (rule for rule in RULES if rule["alert"] == "TunesmithGatewayRefuses")
    (selector,) = selectors(rule["expr"])
    (codes,) = (matcher.value for matcher in selector.matchers.matchers if matcher.name == "code")
    known = {errors.overloaded().code, errors.model_loading().code, errors.engine_failed().code}
    assert set(codes.split("|")) == known


def test_every_alert_says_what_is_wrong_and_the_guide_what_to_do() -> None:
    guide = GUIDE.read_text()
    for rule in RULES:
        assert rule["annotations"]["summary"].endswith("."), rule
        assert rule["labels"]["severity"] in ("warning", "critical"), rule
        assert f"`{rule['alert']}`" in guide


def test_the_guide_names_series_that_exist() -> None:
    assert named_in(GUIDE.read_text()) <= series()
