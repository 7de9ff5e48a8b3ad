"""The life of an engine process, with the simulator and with plain programs in its place."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.inference.conftest import MODEL, Engine
from tests.inference.gateway import make_base, simulator_command, until
from tests.support.conversations import ANSWER, CONVERSATIONS
from tunesmith_inference import engine, engine_guard
from tunesmith_inference.config import Device, Settings
from tunesmith_inference.engine import EngineProcess, EngineSpec, engine_environment, takes_adapters, vllm_command
from tunesmith_inference.request_body import Route
from tunesmith_inference.vllm import EngineUnavailable, VllmClient
from tunesmith_trainer.data import Row, read_rows
from tunesmith_trainer.rendering import Renderer
from tunesmith_trainer.tokenizer import load_tokenizer

STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
path = pathlib.Path(sys.argv[1])
path.with_suffix(".new").write_text(str(os.getpid()))
path.with_suffix(".new").rename(path)
time.sleep(600)
"""
"""Notes its pid in a file and does not go away when asked."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path, engine_device=Device.CPU)


@pytest.fixture
def spec(tmp_path: Path) -> EngineSpec:
    return EngineSpec("base-1", make_base(tmp_path), adapters=True)


@contextlib.asynccontextmanager
async def _running(process: EngineProcess, spec: EngineSpec) -> AsyncIterator[list[VllmClient | None]]:
    """The clients given at each start, with None where that engine was gone."""
    seen: list[VllmClient | None] = []

    async def ready(client: VllmClient) -> None:
        seen.append(client)

    task = asyncio.create_task(process.run(spec, ready, lambda: seen.append(None), None))
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_it_starts_answers_and_leaves_nothing(settings: Settings, spec: EngineSpec) -> None:
    sockets: list[Path] = []

    def command(spec: EngineSpec, settings: Settings, socket: Path) -> list[str]:
        sockets.append(socket)
        return simulator_command(spec, settings, socket)

    async with _running(EngineProcess(settings, command), spec) as seen:
        await until(lambda: seen)
        assert seen[0] is not None
        assert await seen[0].version() == "0.32.0"
        assert sockets[0].parent.stat().st_mode & 0o777 == 0o700
    assert not sockets[0].parent.exists()
    assert seen[-1] is None
    assert (settings.cache_dir / "engine_logs" / "base-1.log").exists()


async def test_it_comes_back_when_it_dies(
    settings: Settings, spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_FIRST_BACKOFF_SECONDS", 0.01)
    process = EngineProcess(settings, simulator_command)
    async with _running(process, spec) as seen:
        await until(lambda: seen)
        assert seen[0] is not None
        with pytest.raises(EngineUnavailable):
            await seen[0].complete_greedily("base-1", _as_prompt("fault:die"), 1)
        await until(lambda: len(seen) == 3)
        assert seen[1] is None
        assert process.starts == 2
        assert process.last_error == "it ended; its log tells why"


async def test_it_is_started_again_when_the_machine_has_had_no_room_for_it(
    settings: Settings, spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_FIRST_BACKOFF_SECONDS", 0.01)
    full = [OSError(errno.EMFILE, "Too many open files")]

    def command(spec: EngineSpec, settings: Settings, socket: Path) -> list[str]:
        if full:
            raise full.pop()
        return simulator_command(spec, settings, socket)

    process = EngineProcess(settings, command)
    async with _running(process, spec) as seen:
        await until(lambda: seen)
        assert process.starts == 2
        assert process.last_error == "[Errno 24] Too many open files"


async def test_one_that_never_starts_is_given_up(
    settings: Settings, spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_FIRST_BACKOFF_SECONDS", 0.01)
    process = EngineProcess(settings, lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])

    async def ready(client: VllmClient) -> None:
        raise AssertionError

    with pytest.raises(EngineUnavailable):
        await process.run(spec, ready, lambda: None, 2)
    assert process.starts == 2
    log = settings.cache_dir / "engine_logs" / "base-1.log"
    assert "ended with status 3" in log.read_text()


@pytest.mark.parametrize("parent_dies", [True, False])
async def test_the_guard_ends_the_whole_group(tmp_path: Path, parent_dies: bool) -> None:
    pid_file = tmp_path / "pid"
    stays = "wait" if parent_dies else f"while [ ! -e {pid_file} ]; do sleep 0.01; done"
    command = ["sh", "-c", f'"$0" -c "$1" {pid_file} & {stays}', sys.executable, STUBBORN]
    guarded = [sys.executable, engine_guard.__file__, *command]
    program = (
        f"import subprocess as s; s.Popen({guarded!r}, stdin=s.PIPE, stderr=s.DEVNULL, start_new_session=True).wait()"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    pid = int(await until(lambda: pid_file.exists() and pid_file.read_text()))
    if parent_dies:
        parent.kill()
    await parent.wait()
    await until(lambda: not _alive(pid))


def test_the_command_line_fits_the_device(
    settings: Settings, spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "first_gpu_bytes", lambda: 40 << 30)
    monkeypatch.setattr(engine, "gpu_share", lambda folder, keys, size, engines: 0.123 * (size == 40 << 30))
    command = vllm_command(spec, settings, Path("/run/e.sock"))
    assert _option(command, "--max-model-len") == "auto"
    assert _option(command, "--max-lora-rank") == str(settings.max_lora_rank)
    assert _option(command, "--dtype") == "float32"
    assert "--enforce-eager" in command
    assert "--trust-remote-code" not in command
    on_gpu = vllm_command(spec, settings.model_copy(update={"engine_device": Device.CUDA}), Path("/run/e.sock"))
    assert "--enforce-eager" not in on_gpu
    assert "--dtype" not in on_gpu
    assert _option(on_gpu, "--gpu-memory-utilization") == "0.123"


def test_on_a_gpu_nothing_is_compiled_that_needs_cudas_own_compiler(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/bin")
    environment = engine_environment(settings.model_copy(update={"engine_device": Device.CUDA}), "key")
    assert environment["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["PATH"] == f"{settings.engine_python.parent}:/bin"
    assert not {name for name in environment if name.startswith("VLLM_CPU")}


@pytest.mark.parametrize(
    ("cap", "own", "used"), [(None, 8192, "auto"), (4096, 8192, "4096"), (4096, 1024, "1024"), (16, None, "16")]
)
@pytest.mark.parametrize("name", ["max_position_embeddings", "n_positions"])
def test_the_length_is_never_more_than_the_models_own(
    settings: Settings, spec: EngineSpec, cap: int | None, own: int | None, used: str, name: str
) -> None:
    config = {} if own is None else {name: own}
    (spec.model_folder / "config.json").write_text(json.dumps(config))
    capped = settings.model_copy(update={"max_model_len": cap})
    assert _option(vllm_command(spec, capped, Path("/run/e.sock")), "--max-model-len") == used


def test_engines_take_no_adapters_for_gpt2(spec: EngineSpec) -> None:
    assert takes_adapters(spec.model_folder)
    (spec.model_folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert not takes_adapters(spec.model_folder)


def test_the_engine_gets_no_secrets_of_ours(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_SERVICE_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    environment = engine_environment(settings, "key")
    assert "secret" not in environment.values()
    assert environment["VLLM_API_KEY"] == "key"
    assert environment["VLLM_PLUGINS"] == ""
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_an_engine_on_a_processor_needs_no_compiler(settings: Settings) -> None:
    settings = settings.model_copy(update={"engine_device": Device.CPU})
    assert engine_environment(settings, "key")["TORCH_COMPILE_DISABLE"] == "1"


def _option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def _as_prompt(text: str) -> list[int]:
    return [text]  # type: ignore[list-item]  # the simulator finds its faults in text


def _alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_a_row_is_trained_behind_the_tokens_that_vllm_makes_of_its_prompt(
    vllm: Engine, tmp_path: Path, name: str
) -> None:
    row = CONVERSATIONS[name]
    asked = [{key: part for key, part in message.items() if key != "weight"} for message in row["messages"]]
    body = {**row, "model": MODEL, "messages": asked, "max_tokens": 1, "return_token_ids": True}
    served = (await vllm.http.post(Route.CHAT, json=body)).json()["prompt_token_ids"]

    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "messages": [*row["messages"], ANSWER]}))
    (read,) = read_rows(tmp_path / "rows.jsonl", "training_file")
    assert isinstance(read, Row)
    tokenizer: Any = load_tokenizer(vllm.base)
    prompt = Renderer(tokenizer, [2]).render(read).prompt_token_ids
    assert tokenizer.decode(prompt) == tokenizer.decode(served)
    assert prompt == served
