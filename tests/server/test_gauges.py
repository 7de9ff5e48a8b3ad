"""What Prometheus reads of the database is what stands there."""

from __future__ import annotations

from prometheus_client import REGISTRY

from tests.support.factories import Platform
from tunesmith_server.gauges import refresh


async def test_gauges_count_what_waits_and_runs(each_platform: Platform) -> None:
    await each_platform.create()
    await refresh(each_platform.core)
    assert REGISTRY.get_sample_value("tunesmith_jobs", {"state": "validating_files"}) == 1
    assert REGISTRY.get_sample_value("tunesmith_jobs", {"state": "running"}) == 0
    assert REGISTRY.get_sample_value("tunesmith_live_runs", {"kind": "training"}) == 0
    assert REGISTRY.get_sample_value("tunesmith_queue_oldest_wait_seconds") == 0
    assert REGISTRY.get_sample_value("tunesmith_scheduler_led") == 0
