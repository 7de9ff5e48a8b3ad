"""Owns captures in a project of each kind of installation."""

from __future__ import annotations

import pytest

from tests.support.factories import Platform
from tunesmith_server.captures.service import CapturesService


@pytest.fixture
def service(each_platform: Platform) -> CapturesService:
    """Captures of a project without any."""
    return CapturesService(each_platform.core)
