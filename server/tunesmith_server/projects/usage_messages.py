"""Owns the gRPC shapes of usage, between messages and what usage.py knows.

It must not know rules or SQL.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith_proto.projects.v1 import admin_pb2, usage_pb2
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.projects.usage import UsagePage, UsageQuery, Width
from tunesmith_server.projects.usage_repository import Group, Kind, UsageFilter, UsageSum

_GROUPS: tuple[Group, ...] = ("project_id", "api_key_id", "model", "kind")
_KINDS: tuple[Kind, ...] = ("inference", "training")
_WIDTHS: tuple[Width, ...] = ("1h", "1d")


def usage_query(asked: usage_pb2.UsageRange, group_by: Sequence[str], which: UsageFilter) -> UsageQuery:
    """What to read; raises InvalidRequestError for names that are none."""
    width = asked.bucket_width or "1d"
    _check("range.bucket_width", [width], _WIDTHS)
    _check("group_by", group_by, _GROUPS)
    return UsageQuery(
        start_time=asked.start_time,
        end_time=asked.end_time if asked.HasField("end_time") else None,
        bucket_width=next(one for one in _WIDTHS if one == width),
        limit=asked.limit or None,
        page=asked.page or None,
        group_by=[one for one in _GROUPS if one in group_by],
        which=which,
    )


def usage_filter(request: admin_pb2.GetOrganizationUsageRequest) -> UsageFilter:
    """Which usage an operator asks for; raises InvalidRequestError for kinds that are none."""
    _check("kinds", request.kinds, _KINDS)
    kinds = [one for one in _KINDS if one in request.kinds]
    return UsageFilter(kinds, request.project_ids, request.api_key_ids, request.models)


def bucket_messages(page: UsagePage) -> list[usage_pb2.UsageBucket]:
    """The buckets of a page."""
    return [
        usage_pb2.UsageBucket(
            start_time=bucket.start_time, end_time=bucket.end_time, sums=[_sum(one) for one in bucket.sums]
        )
        for bucket in page.buckets
    ]


def _sum(one: UsageSum) -> usage_pb2.UsageSum:
    return usage_pb2.UsageSum(
        project_id=one.group.get("project_id", ""),
        api_key_id=one.group.get("api_key_id", ""),
        model=one.group.get("model", ""),
        kind=one.group.get("kind", ""),
        requests=one.requests,
        input_tokens=one.input_tokens,
        output_tokens=one.output_tokens,
        device_seconds=one.device_seconds,
    )


def _check(param: str, values: Sequence[str], known: Sequence[str]) -> None:
    if not set(values) <= set(known):
        raise InvalidRequestError("invalid_value", f"`{param}` must be of {', '.join(known)}.", param=param)
