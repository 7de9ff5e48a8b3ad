"""Owns which shared fixtures every test can ask for by name."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings, strategies
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

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

# On a machine with a GPU everything runs on the processor as well: what is compared is compared there, to the last bit.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
_CPU_ENGINE = Path(__file__).parents[1] / ".venv-engine-cpu" / "bin" / "python"
if _CPU_ENGINE.exists():
    os.environ.setdefault("TUNESMITH_ENGINE_PYTHON", str(_CPU_ENGINE))

# A machine may stand still for a moment, whatever the example: limits of time are the tests' own.
settings.register_profile("tunesmith", deadline=None)
settings.load_profile("tunesmith")


class _Deal(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Deals the tests to the workers of `make test` by files, so that servers of a file are started once.

    Whole platforms and real engines use both cores and stay with one worker.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "platforms" if _is_heavy(nodeid) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Deal:
    """Has tests dealt so. Called where there are several workers."""
    return _Deal(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with what takes longest."""
    items.sort(key=lambda item: not _is_heavy(item.nodeid))


def _is_heavy(nodeid: str) -> bool:
    return nodeid.startswith(("tests/e2e/", "tests/security/")) or "vllm" in nodeid


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
