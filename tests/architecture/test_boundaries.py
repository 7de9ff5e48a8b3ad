"""Who may import whom: the processes share the contract (proto/) and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.source_tree import Module, imported_names, modules

OURS = {"tunesmith", "tunesmith_proto", "tunesmith_server", "tunesmith_trainer", "tunesmith_inference"}
ALLOWED = {
    "server": {"tunesmith_server", "tunesmith_proto"},
    "trainer": {"tunesmith_trainer", "tunesmith_proto"},
    "inference": {"tunesmith_inference", "tunesmith_proto"},
    "sdk": {"tunesmith"},
    "examples": {"tunesmith"},
    "scripts": set[str](),
}
FORBIDDEN = {
    "server": {"torch", "transformers", "vllm", "peft", "safetensors", "numpy"},
    "trainer": {"sqlalchemy", "fastapi", "boto3", "vllm", "peft"},
    "inference": {"sqlalchemy", "torch", "transformers", "vllm", "boto3"},
    "sdk": {"torch", "fastapi", "grpc", "sqlalchemy", "transformers", "numpy", "google"},
}
IN_ENGINES = "inference/tunesmith_inference/in_engine/"
"""What runs in vLLM's own processes, which load it; no other module may import it."""
PURE = (
    "fine_tunes/state.py",
    "scheduling/capacity.py",
    "scheduling/forecast.py",
    "scheduling/verdicts.py",
    "training/limits.py",
    "tunesmith_inference/router.py",
    "tunesmith_inference/placement.py",
    "registry/manifest.py",
    "registry/adapter_rules.py",
    "files/dataset_check.py",
    "projects/scopes.py",
)
DOING_IO = {"asyncio", "boto3", "fastapi", "grpc", "httpx", "os", "pathlib", "socket", "sqlalchemy", "subprocess"}


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_a_process_imports_only_itself_and_the_contract(module: Module) -> None:
    foreign = (imported_names(module.tree) & OURS) - ALLOWED[module.folder]
    assert not foreign, f"{module.name} imports {foreign}: folders share only proto/, so that each can be built alone"


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_a_process_does_not_know_what_it_must_not_know(module: Module) -> None:
    known = imported_names(module.tree) & FORBIDDEN.get(module.folder, set())
    known -= {"vllm"} if module.name.startswith(IN_ENGINES) else set()
    assert not known, f"{module.name} imports {known}: section 2 of the design says what each process must not know"


@pytest.mark.parametrize("ending", PURE)
def test_pure_modules_do_no_io(ending: str) -> None:
    (module,) = [module for module in modules() if module.name.endswith(ending)]
    impure = imported_names(module.tree) & DOING_IO
    assert not impure, f"{module.name} imports {impure}: decisions stay pure so that they can be tested exhaustively"


def test_only_one_module_knows_vllm_http_api() -> None:
    knowing = [module.name for module in modules() if "load_lora_adapter" in module.path.read_text()]
    assert knowing == ["inference/tunesmith_inference/vllm.py"], "one file follows vLLM's releases, not several"


def test_only_the_repository_writes_a_jobs_state() -> None:
    writers = [
        module.name
        for module in modules()
        if module.folder == "server"
        for text in [module.path.read_text()]
        if "update(FineTuneRow)" in text and module.name != "server/tunesmith_server/fine_tunes/repository.py"
    ]
    assert not writers, f"{writers} update jobs: only repository.py does, guarded by state and lease"


def test_commits_happen_only_at_the_edge() -> None:
    committing = [m.name for m in modules() if m.folder == "server" and ".commit()" in m.path.read_text()]
    assert not committing, f"{committing} commit by hand: Database.write() is the only place"


def test_importing_the_sdk_is_light() -> None:
    program = (
        "import sys\n"
        "blocked = ('torch', 'fastapi', 'grpc', 'sqlalchemy', 'tunesmith_server')\n"
        "for name in blocked: sys.modules[name] = None\n"
        "import tunesmith\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"the SDK must not need the platform: {result.stderr}"
