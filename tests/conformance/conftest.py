"""Owns what the conformance tests share: the running platform, what each client did on it, and the table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conformance.clients import Call, Client, drive
from tests.conformance.platform_under_test import PlatformUnderTest, running_platform

_DRIVE_SECONDS = 240
_TABLE = pytest.StashKey[dict[str, list["Call"]]]()


@dataclass
class Drives:
    """Drives each client once, whoever asks first."""

    platform: PlatformUnderTest
    calls: dict[str, list[Call]] = field(default_factory=dict)

    def run(self, client: Client) -> list[Call]:
        """The client's calls."""
        if client.name not in self.calls:
            settings = self.platform.settings()
            self.platform.relay.client = client.name
            try:
                self.calls[client.name] = drive(client, settings, _DRIVE_SECONDS)
            finally:
                Path(settings["hold_file"]).unlink(missing_ok=True)
        return self.calls[client.name]


@pytest.fixture(scope="package")
def drives(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Drives]:
    """Clients on one running platform."""
    with running_platform(tmp_path_factory.mktemp("conformance")) as platform:
        made = Drives(platform)
        request.config.stash[_TABLE] = made.calls
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints which client made which call."""
    table = config.stash.get(_TABLE, {})
    if not table:
        return
    terminalreporter.section("calls per client")
    for client, calls in table.items():
        failed = [call for call in calls if call.error]
        terminalreporter.write_line(f"{client}: {len(calls) - len(failed)} of {len(calls)} calls ok")
        for call in calls:
            terminalreporter.write_line(f"  {'FAILED' if call.error else 'ok    '} {call.name}")
