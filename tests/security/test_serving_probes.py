"""Nobody but the gateway reaches an engine, and no name, key or text gets where it does not belong."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conformance.platform_under_test import PlatformUnderTest, running_platform
from tests.support import engine_simulator
from tests.support.artifacts import BASE_ID
from tests.support.live_server import wait_until
from tests.support.processes import descendants, listening_at, words

pytestmark = pytest.mark.e2e

SECRET = "the-patient-is-called-Zebulon"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlatformUnderTest]:
    """Control plane, gateway and engine as processes of their own; the engine is the simulator."""
    with running_platform(tmp_path_factory.mktemp("platform")) as running:
        assert chat(running, BASE_ID, "hello").status_code == 200
        yield running


@pytest.fixture(scope="module")
def engine(platform: PlatformUnderTest) -> int:
    """The process id of the engine."""
    found = [pid for pid in descendants(platform.server.pid) if engine_simulator.__file__ in words(pid, "cmdline")]
    (pid,) = [
        pid for pid in found if "--uds" in words(pid, "cmdline") and "engine_guard" not in str(words(pid, "cmdline"))
    ]
    return pid


def chat(platform: PlatformUnderTest, model: str, text: str, key: str = "", **more: Any) -> httpx.Response:
    """One chat request with a key, that of the default project unless told."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 2, **more}
    headers = {"authorization": f"Bearer {key or platform.key}"}
    return platform.server.request("POST", "/chat/completions", json=body, headers=headers)


def test_an_engine_listens_on_nothing_but_a_socket_that_others_cannot_enter(
    engine: int, platform: PlatformUnderTest
) -> None:
    arguments = words(engine, "cmdline")
    folder = Path(arguments[arguments.index("--uds") + 1]).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert listening_at(platform.server.pid), "what listens is not seen"
    assert not any(map(listening_at, descendants(engine)))


def test_an_engine_has_no_secret_of_ours_and_loads_nothing_by_itself(engine: int, platform: PlatformUnderTest) -> None:
    environment = dict(entry.split("=", 1) for entry in words(engine, "environ") if "=" in entry)
    assert environment["VLLM_PLUGINS"] == "", "an empty list loads no plug-in; without it all are loaded"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert not [name for name in environment if name.startswith(("TUNESMITH_", "AWS_", "VLLM_LORA_RESOLVER"))]
    assert environment["VLLM_API_KEY"] not in " ".join(words(engine, "cmdline"))
    assert platform.key not in str(environment)


@pytest.mark.parametrize(
    "path",
    [
        "/invocations",
        "/adapters",
        "/tokenize",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/simulator",
        "/sleep",
    ],
)
def test_the_engines_other_routes_are_nowhere(platform: PlatformUnderTest, path: str) -> None:
    headers = {"authorization": f"Bearer {platform.key}"}
    body = {"lora_name": "x", "lora_path": "/etc"}
    with httpx.Client(trust_env=False, timeout=30, headers=headers) as client:
        for port in (platform.server.port, gateway_port(platform)):
            assert client.post(f"http://127.0.0.1:{port}{path}", json=body).status_code == 404


@pytest.mark.parametrize(
    "model",
    [
        "../etc/passwd",
        "..%2f..%2fetc",
        "/etc/passwd",
        f"../{BASE_ID}",
        f"{BASE_ID}/../x",
        f"{BASE_ID}\0",
        "ft:" + "x" * 5000,
        "zero",
        "r-0000000000000000",
    ],
)
def test_names_that_are_paths_or_the_engines_own_are_no_models(platform: PlatformUnderTest, model: str) -> None:
    answer = chat(platform, model, "hello")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_another_projects_model_is_no_model(platform: PlatformUnderTest) -> None:
    """Nor does the answer tell that there is one: it is that to a name that nobody has, apart from the name."""
    name = "support"
    made = platform.server.request("POST", "/deployments", json={"name": name, "targets": [{"model": BASE_ID}]})
    assert made.status_code == 200, made.text
    assert chat(platform, name, "hello").status_code == 200
    theirs, nobodys = [chat(platform, each, "hello", key=platform.other_key) for each in (name, "nothing")]
    assert (theirs.status_code, theirs.json()) == (404, json.loads(nobodys.text.replace("nothing", name)))


def test_texts_and_keys_are_in_no_log(platform: PlatformUnderTest) -> None:
    assert chat(platform, BASE_ID, SECRET).status_code == 200
    assert chat(platform, BASE_ID, f"{SECRET} fault:500").status_code == 500
    assert chat(platform, BASE_ID, SECRET, temperature=9).status_code == 400
    assert chat(platform, SECRET, "hello").status_code == 404
    wait_until(lambda: "engine answered with status 500" in platform.server.stderr, 30, "the failure is not logged")
    logs = [platform.server.stdout, platform.server.stderr]
    logs += [log.read_text() for log in (platform.controls.folder.parent / "engine_logs").iterdir()]
    for told in logs:
        assert SECRET not in told
        assert platform.key not in told


def gateway_port(platform: PlatformUnderTest) -> int:
    """Where the gateway listens."""
    (port,) = {
        int(entry.partition("=")[2])
        for pid in descendants(platform.server.pid)
        for entry in words(pid, "environ")
        if entry.startswith("TUNESMITH_GATEWAY_PORT=")
    }
    return port
