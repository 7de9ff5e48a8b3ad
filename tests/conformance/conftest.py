"""Owns what the conformance tests share: the running platform, what each client did on it, and the table at the end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conformance.clients import Client
from tests.conformance.platform_under_test import PlatformUnderTest, running_platform

_DRIVE_SECONDS = 240
_TABLE = pytest.StashKey[dict[str, list["Call"]]]()


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a client and what went wrong with it."""

    name: str
    error: str = ""


@dataclass
class Drives:
    """Drives each client once, whoever asks first."""

    platform: PlatformUnderTest
    calls: dict[str, list[Call]] = field(default_factory=dict)

    def run(self, client: Client) -> list[Call]:
        """The client's calls."""
        if client.name not in self.calls:
            command = client.command(json.dumps(self.platform.settings()))
            self.platform.relay.client = client.name
            try:
                result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DRIVE_SECONDS)
            finally:
                Path(self.platform.settings()["hold_file"]).unlink(missing_ok=True)
            lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"call"')]
            calls = [Call(line["call"], line.get("error", "")) for line in lines]
            if result.returncode:
                calls.append(Call("the whole driver", result.stderr[-2000:]))
            self.calls[client.name] = calls
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
