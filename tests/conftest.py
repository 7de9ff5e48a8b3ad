"""Owns which shared fixtures every test can ask for by name."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings, strategies

from tests.support.administration import each_installation, installation
from tests.support.core import clock, cluster_settings, core, each_core, postgres_template
from tests.support.factories import each_platform, platform
from tests.support.postgres import postgres
from tests.support.s3_server import s3_server

__all__ = [
    "clock",
    "cluster_settings",
    "core",
    "each_core",
    "each_installation",
    "each_platform",
    "installation",
    "platform",
    "postgres",
    "postgres_template",
    "s3_server",
]

# A machine may stand still for a moment, whatever the example: limits of time are the tests' own.
settings.register_profile("tunesmith", deadline=None)
settings.load_profile("tunesmith")


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deals the tests to two workers, as `make test` has them: by files, so that servers of a file are started once.

    Whole platforms and real engines use both cores and stay with one worker, which begins with them: they take longest.
    """
    for item in items:
        is_heavy = any(item.get_closest_marker(name) for name in ("engine", "e2e"))
        item.add_marker(pytest.mark.xdist_group("platforms" if is_heavy else item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: not any(mark.args == ("platforms",) for mark in item.iter_markers("xdist_group")))


def pytest_collection_finish() -> None:
    """Keeps what was collected out of garbage collections.

    Looking through all tests takes a second or two, in which no server in this process answers.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _unicode_table(request: pytest.FixtureRequest) -> None:
    """Has hypothesis make its table of Unicode before any example is drawn.

    In a fresh checkout that takes seconds, and hypothesis would hold them against the first strategy that draws text.
    """
    if any(item.get_closest_marker("hypothesis") for item in request.session.items):
        strategies.text().validate()
