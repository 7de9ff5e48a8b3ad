"""Owns which shared fixtures every test can ask for by name."""

from __future__ import annotations

from tests.support.core import clock, cluster_settings, core, each_core, postgres_template
from tests.support.factories import each_platform, platform
from tests.support.postgres import postgres
from tests.support.s3_server import s3_server

__all__ = [
    "clock",
    "cluster_settings",
    "core",
    "each_core",
    "each_platform",
    "platform",
    "postgres",
    "postgres_template",
    "s3_server",
]
