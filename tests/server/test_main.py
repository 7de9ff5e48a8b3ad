"""`tunesmithd` as an operator meets it: its one line, its files, its refusals and its end."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from tests.support.artifacts import BASE_SHAPES, safetensors_bytes
from tests.support.fake_importer import write_fake_importer
from tests.support.live_server import LiveServer, wait_until
from tests.support.ports import free_ports
from tunesmith_server import __main__ as command
from tunesmith_server.auth import Signer
from tunesmith_server.config import Settings
from tunesmith_server.storage.open import open_store

ROWS = "\n".join(
    f'{{"messages":[{{"role":"user","content":"{number}"}},{{"role":"assistant","content":"x"}}]}}'
    for number in range(12)
)


def toy_environment(folder: Path) -> dict[str, str]:
    """Settings under which a toy base model is imported at once."""
    cache = folder / "cache"
    cache.mkdir()
    catalogue = folder / "base_models.yaml"
    catalogue.write_text("- {id: toy, source: 'toy:fine', aliases: [gpt-4o-mini]}\n")
    return {
        "TUNESMITH_CACHE_DIR": str(cache),
        "TUNESMITH_BASE_MODELS": str(catalogue),
        "TUNESMITH_TRAINER_PYTHON": str(write_fake_importer(folder, safetensors_bytes(BASE_SHAPES))),
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("shared")
    with LiveServer(folder / "home", environment=toy_environment(folder)) as running:
        yield running


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes this process one in which the command can be run, without its logs."""
    ports = zip(("TUNESMITH_PORT", "TUNESMITH_GRPC_PORT"), map(str, free_ports(2)), strict=True)
    for name, value in (*toy_environment(tmp_path).items(), *ports):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command, "configure_logging", lambda: None)
    # A server sets these, for its whole process: not for the tests after this one.
    monkeypatch.setattr(tempfile, "tempdir", None)
    umask = os.umask(0o022)
    yield
    os.umask(umask)


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(command.app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def model_ids(server: LiveServer) -> list[str]:
    return [model["id"] for model in server.request("GET", "/models").json()["data"]]


def test_a_fresh_home_is_served_and_kept_over_restarts(tmp_path: Path) -> None:
    with LiveServer(tmp_path / "home", environment=toy_environment(tmp_path)) as server:
        assert server.ready_line == f"ready {server.url} grpc {server.grpc_address}\n"
        assert (server.home / "api_key").stat().st_mode & 0o777 == 0o600
        wait_until(lambda: model_ids(server) == ["toy", "gpt-4o-mini"], 30, "the base model was not imported")
        key = server.api_key
        upload = {"file": ("rows.jsonl", ROWS.encode())}
        file = server.request("POST", "/files", data={"purpose": "fine-tune"}, files=upload).json()

        assert server.stop() == 0
        assert server.stdout == server.ready_line
        server.start()

        assert server.api_key == key
        assert model_ids(server) == ["toy", "gpt-4o-mini"]
        server.kill()
        (server.home / "uploads" / "half-received").write_text(ROWS)
        server.start()
        assert list((server.home / "uploads").iterdir()) == []
        assert server.request("GET", f"/files/{file['id']}").json() == file
        assert server.request("GET", f"/files/{file['id']}/content").text == ROWS


def test_no_other_user_reads_a_home_that_was_there_before(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    with LiveServer(home, environment=toy_environment(tmp_path)) as server:
        upload = {"file": ("rows.jsonl", ROWS.encode())}
        server.request("POST", "/files", data={"purpose": "fine-tune"}, files=upload)
        made = [path for path in home.rglob("*") if path.lstat().st_mode & 0o077]
    assert (home / "tunesmith.db").exists()
    assert made == []


def test_both_transports_serve_and_say_when_inference_is_off(server: LiveServer) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="tunesmith.fine_tunes.v1.FineTunesService"), timeout=10
        )
    answer = server.request("POST", "/chat/completions", json={"model": "toy", "messages": []})

    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "inference_disabled"
    assert "--no-inference" in answer.json()["error"]["message"]
    assert "Inference is off" in server.stderr


@pytest.mark.usefixtures("environment")
def test_a_second_server_on_the_same_home_is_refused(server: LiveServer) -> None:
    second = run("up", "--home", str(server.home), "--no-inference")

    assert (second.exit_code, second.stdout) == (1, "")
    assert f"(process {server.pid}) already serves {server.home}" in second.stderr


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_in_use_is_told(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run("up", "--home", str(tmp_path / "home"), "--no-inference", option, str(port))

    assert (refused.exit_code, refused.stdout) == (1, "")
    assert f"{port}: the port is in use. Choose another {option}." in refused.stderr


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("kind", ["embedded", "cluster"])
def test_a_lost_database_is_told_before_anything_is_made(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    home = tmp_path / "home"
    if kind == "cluster":
        monkeypatch.setenv("TUNESMITH_STORAGE_URL", request.getfixturevalue("cluster_settings")["storage_url"])
    store = open_store(Settings(home=home), Signer(b""))
    asyncio.run(store.put_bytes("files/default/file-1", b"rows"))
    for _ in range(2):
        refused = run("up", "--home", str(home), "--no-inference")
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "The database is new, but" in refused.stderr
    assert not (home / "tunesmith.db").exists()
    assert asyncio.run(store.list("")) == ["files/default/file-1"]


@pytest.mark.usefixtures("environment")
def test_keys_are_made_listed_and_revoked_beside_a_running_server(server: LiveServer) -> None:
    home = ["--home", str(server.home)]
    key_id, key = run("keys", "create", "--name", "ci", *home).stdout.split()
    bearer = {"Authorization": f"Bearer {key}"}

    assert server.request("GET", "/models", headers=bearer).status_code == 200
    listed = run("keys", "list", *home).stdout
    assert f"{key_id}  " in listed
    assert key not in listed
    assert run("keys", "revoke", key_id, *home).exit_code == 0

    def refused() -> bool:
        return server.request("GET", "/models", headers=bearer).status_code == 401

    wait_until(refused, 10, "a server beside the command still takes the key")
    again = run("keys", "revoke", key_id, *home)
    assert (again.exit_code, again.stderr) == (
        1,
        f"tunesmithd: Project 'default' has no live key {key_id!r}.\n",
    )


@pytest.mark.usefixtures("environment")
def test_base_models_are_imported_and_listed_without_a_server(tmp_path: Path) -> None:
    home = ["--home", str(tmp_path / "home")]

    assert run("migrate", *home).exit_code == 0
    assert run("models", "import", "gpt-4o-mini", *home).exit_code == 0
    assert run("models", "list", *home).stdout == "toy  ready  toy:fine  gpt-4o-mini\n"
    unknown = run("models", "import", "nobody", *home)
    assert unknown.exit_code == 1
    assert "not in the catalogue" in unknown.stderr


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("TUNESMITH_DATABASE_URL", "mysql://x", "must start with sqlite:// or postgresql://"),
        ("TUNESMITH_STORAGE_URL", "ftp://x", "TUNESMITH_STORAGE_URL must be"),
        ("TUNESMITH_PORT", "many", "TUNESMITH_PORT: "),
        ("TUNESMITH_BASE_MODELS", "/nowhere.yaml", "/nowhere.yaml cannot be read"),
    ],
)
def test_a_wrong_setting_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(setting, value)
    refused = run("up", "--home", str(tmp_path / "home"), "--no-inference")

    assert refused.exit_code == 1
    assert sentence in refused.stderr
