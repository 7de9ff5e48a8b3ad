"""schemathesis over our own OpenAPI document: no 5xx, no undocumented status, answers as the document says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import Drives
from tests.conformance.platform_under_test import OTHER_PROJECT, PlatformUnderTest
from tests.support.live_server import wait_until

ROWS = b'{"prompt": "Say a.", "completion": "a"}\n' * 10
PROJECT = "fuzzed"
VICTIM = "victim"
# The document describes shapes; what a rule beyond the shape refuses is no fault. Every call carries the key, even one
# that is meant to lack it: tests/server/test_projects.py makes calls without.
EXCLUDED_CHECKS = ("positive_data_acceptance", "missing_required_header")


@pytest.fixture(scope="module")
def platform(drives: Drives) -> PlatformUnderTest:
    """The platform of the clients; the calls change only what is in projects of their own."""
    return drives.platform


@pytest.fixture(scope="module")
def known(platform: PlatformUnderTest) -> dict[str, list[Any]]:
    """Ids of things that exist, by the name of the parameter that takes them."""
    return make_state(platform)


@pytest.mark.timeout(300)
def test_a_few_hundred_calls_break_nothing(
    platform: PlatformUnderTest, known: dict[str, list[Any]], tmp_path: Path
) -> None:
    report = fuzz(platform, known, tmp_path, "--phases=fuzzing,stateful", "--max-examples=8")
    assert report["test_cases"]["generated"] >= 600


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_thousands_of_calls_break_nothing(
    platform: PlatformUnderTest, known: dict[str, list[Any]], tmp_path: Path
) -> None:
    report = fuzz(platform, known, tmp_path, "--phases=coverage,fuzzing,stateful", "--max-examples=45")
    assert report["test_cases"]["generated"] >= 5000


def fuzz(platform: PlatformUnderTest, known: dict[str, list[Any]], folder: Path, *options: str) -> dict[str, Any]:
    """Runs schemathesis with a key that may do everything and returns its report."""
    report = folder / "report.json"
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{platform.server.url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {known['key'][0]}", "--seed", "1", "--no-color"]
    command += [
        "--continue-on-failure",
        "--request-timeout=20",
        "--suppress-health-check=all",
        "--generation-database=none",
    ]
    command += [f"--exclude-checks={','.join(EXCLUDED_CHECKS)}", "--report=json", f"--report-json-path={report}"]
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": str(Path(__file__).with_name("fuzz_hooks.py")),
        "FUZZ_KNOWN": json.dumps({name: ids for name, ids in known.items() if name != "key"}),
    }
    result = subprocess.run(
        [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-12000:] + result.stderr[-2000:]
    # Without this a run that lost its key would have found nothing but 401.
    assert call(platform, known["key"][0], "GET", "/models")["object"] == "list"
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def make_state(platform: PlatformUnderTest) -> dict[str, list[Any]]:
    """One of everything in a project of its own, and a project that may be destroyed."""
    key = make_key(platform, PROJECT, ["*"])
    make_key(platform, VICTIM, ["project"])
    files = [upload(platform, key) for _ in range(3)]
    hook = {"event_types": ["fine_tuning.job.succeeded"], "name": "n", "url": "http://127.0.0.1:9/"}
    endpoint = call(platform, key, "POST", "/webhook_endpoints", json=hook)["id"]
    base = platform.settings()["base_model"]
    body = {"model": base, "training_file": files[0]}
    job = call(platform, key, "POST", "/fine_tuning/jobs", json=body)["id"]
    ended = ("succeeded", "failed")
    wait_until(
        lambda: call(platform, key, "GET", f"/fine_tuning/jobs/{job}")["status"] in ended, 60, "the job did not end"
    )
    waiting = call(platform, key, "POST", "/fine_tuning/jobs", json=body | {"auto_start": False})["id"]
    name = call(platform, key, "GET", f"/fine_tuning/jobs/{job}")["fine_tuned_model"]
    wanted = {"filename": "parts.jsonl", "purpose": "fine-tune", "bytes": len(ROWS), "mime_type": "text/jsonl"}
    uploads = [call(platform, key, "POST", "/uploads", json=wanted)["id"] for _ in range(2)]
    deliveries = f"/webhook_endpoints/{endpoint}/deliveries"
    wait_until(lambda: bool(call(platform, key, "GET", deliveries)["data"]), 30, "nothing was delivered")
    checkpoint = f"{name}:ckpt-step-2"
    permissions = f"/fine_tuning/checkpoints/{checkpoint}/permissions"
    permission = call(platform, key, "POST", permissions, json={"project_ids": [VICTIM]})["data"][0]["id"]
    old = call(platform, key, "POST", "/fine-tunes", json={"training_file": files[0], "model": base})["id"]
    # Whoever follows the events of a job waits for its end.
    wait_until(lambda: call(platform, key, "GET", f"/fine-tunes/{old}")["status"] in ended, 60, "it did not end")
    victim_keys = call(platform, platform.server.api_key, "GET", f"/organization/projects/{VICTIM}/api_keys")
    call(platform, key, "POST", "/deployments", json={"name": "bot", "targets": [{"model": name}]})
    asked = {"model": base, "messages": [{"role": "user", "content": "Say a."}], "max_tokens": 4}
    completions = [call(platform, key, "POST", "/chat/completions", json=asked)["id"] for _ in range(3)]
    wait_until(
        lambda: len(call(platform, key, "GET", "/chat/completions")["data"]) == 3, 60, "the captures did not come"
    )
    return {
        "key": [key],
        "completion_id": completions,
        "name": ["bot"],
        "kept_projects": ["default", OTHER_PROJECT, PROJECT],
        "project_id": [VICTIM],
        "api_key_id": [each["id"] for each in victim_keys["data"]],
        "file_id": files,
        "training_file": files,
        "job_id": [job, waiting],
        "upload_id": uploads,
        "endpoint_id": [endpoint],
        "fine_tune_id": [old],
        "delivery_id": [each["id"] for each in call(platform, key, "GET", deliveries)["data"]],
        "estimate_id": [call(platform, key, "POST", "/fine_tuning/estimates", json=body)["id"]],
        "checkpoint": [checkpoint],
        "permission_id": [permission],
        "project_ids": [[VICTIM]],
        "rate_limit_id": ["rate_limit_all"],
        "model": [base, name, f"{name}:ckpt-step-4"],
    }


def make_key(platform: PlatformUnderTest, project: str, scopes: list[str]) -> str:
    """A key of a new project."""
    admin = platform.server.api_key
    call(platform, admin, "POST", "/organization/projects", json={"name": project, "id": project})
    body = {"scopes": scopes, "capture": True}
    made = call(platform, admin, "POST", f"/organization/projects/{project}/api_keys", json=body)
    key: str = made["value"]
    return key


def upload(platform: PlatformUnderTest, key: str) -> str:
    """A training file."""
    files = {"file": ("rows.jsonl", ROWS)}
    made: str = call(platform, key, "POST", "/files", files=files, data={"purpose": "fine-tune"})["id"]
    return made


def call(platform: PlatformUnderTest, key: str, method: str, path: str, **options: Any) -> dict[str, Any]:
    """The body of a call that must work."""
    answer = platform.server.request(method, path, headers={"Authorization": f"Bearer {key}"}, **options)
    assert answer.status_code == 200, f"{method} {path}: {answer.text}"
    body: dict[str, Any] = answer.json()
    return body
