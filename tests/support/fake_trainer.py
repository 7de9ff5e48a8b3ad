"""Owns a trainer without torch: real calls, real uploads, made-up numbers; tests hold it through files.

Run as a program it is the trainer of one attempt. `Controls` is the test's side of it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import grpc

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_proto.training.v1 import training_pb2_grpc

STEPS, STEPS_PER_PASS = 6, 2

_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,  # a call that reaches a server while it stops
)

Answer = TypeVar("Answer")


class Controls:
    """Files below the cache folder by which a test tells the trainer what to do."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "fake-trainer"

    def write_adapter(self, files: dict[str, bytes]) -> None:
        """What the trainer uploads as each checkpoint; call it before the first job."""
        (self.folder / "adapter").mkdir(parents=True)
        for name, content in files.items():
            (self.folder / "adapter" / name).write_bytes(content)

    def hold(self, step: int) -> None:
        """The trainer waits before this step, heartbeating."""
        (self.folder / f"hold-{step}").touch()

    def release(self, step: int) -> None:
        """The trainer goes on."""
        (self.folder / f"hold-{step}").unlink()

    def holds(self, step: int) -> bool:
        """Whether the trainer is to wait before this step."""
        return (self.folder / f"hold-{step}").exists()

    def run_out_of_memory(self, times: int) -> None:
        """Runs end as if the kernel had killed them for memory, until they are told of so many such ends."""
        (self.folder / "memory").write_text(str(times))

    def lacks_memory(self, failures: int) -> bool:
        """Whether a run ends so that is told of `failures` such ends."""
        path = self.folder / "memory"
        return path.exists() and failures < int(path.read_text())

    def note(self, job_id: str, line: str) -> None:
        """Writes a line that the test can read."""
        with (self.folder / job_id).open("a") as notes:
            notes.write(line + "\n")

    def notes(self, job_id: str) -> list[str]:
        """What the training runs of the job wrote, one line each."""
        path = self.folder / job_id
        return path.read_text().splitlines() if path.exists() else []

    def adapter(self, job_id: str, step: int) -> dict[str, bytes]:
        """The files of a checkpoint: of the same shape always, and of other bytes for each job and step."""
        files = {path.name: path.read_bytes() for path in sorted((self.folder / "adapter").iterdir())}
        mark = hashlib.sha256(f"{job_id} {step}".encode()).digest()[:8]
        return {
            name: content[: -len(mark)] + mark if name.endswith(".safetensors") else content
            for name, content in files.items()
        }


class Run:
    """One attempt."""

    def __init__(self) -> None:
        channel = grpc.insecure_channel(
            os.environ["TUNESMITH_CONTROL_PLANE"], options=[("grpc.max_reconnect_backoff_ms", 200)]
        )
        self._stub = training_pb2_grpc.TrainingServiceStub(channel)
        token = Path(os.environ["TUNESMITH_ATTEMPT_TOKEN_FILE"]).read_text()
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._controls = Controls(Path(os.environ["TUNESMITH_CACHE_DIR"]))
        self._sequence = 0
        self._job_id = ""

    def main(self) -> int:
        """Does what the spec says and returns the exit code."""
        spec = self._call(self._stub.GetSpec, pb.GetSpecRequest()).spec
        self._job_id = spec.job_id
        if spec.kind == pb.RUN_KIND_IMPORT:
            return self._import(spec)
        rows = fetch(spec.training_file).splitlines()
        if spec.kind == pb.RUN_KIND_PREFLIGHT:
            return self._preflight(rows)
        self._controls.note(spec.job_id, f"e{spec.epoch} pid {os.getpid()} from {spec.resume.step}")
        if self._controls.lacks_memory(spec.memory_failures):
            return 71
        for file in spec.resume.files:
            fetch(file)
        for step in range(spec.resume.step + 1, STEPS + 1):
            while self._controls.holds(step):
                # A pause goes on from the last checkpoint; the step before a hold may not have been saved.
                if self._heartbeat(step - 1) in (pb.COMMAND_STOP, pb.COMMAND_PAUSE):
                    return 75
                time.sleep(0.05)
            metrics = pb.StepMetrics(step=step, train_loss=2.0 / step, train_mean_token_accuracy=0.5, tokens=10)
            self._heartbeat(step, metrics)
            if step % STEPS_PER_PASS == 0:
                self._checkpoint(step, metrics)
        return self._complete()

    def _preflight(self, rows: list[bytes]) -> int:
        if any(b"refuse" in row for row in rows):
            row = next(number for number, row in enumerate(rows, 1) if b"refuse" in row)
            failure = pb.Failure(code="row_refused", message=f"Row {row} is bad.", param="training_file", row=row)
            self._call(self._stub.FailRun, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_USER, failures=[failure]))
            return 65
        numbers = pb.Hyperparameters(
            n_epochs=3, batch_size=5, learning_rate_multiplier=1, lora_rank=2, lora_alpha=4, context_length=64
        )
        report = pb.CompletePreflightRequest(
            hyperparameters=numbers, learning_rate=1e-4, rows=len(rows), total_steps=STEPS
        )
        self._call(self._stub.CompletePreflight, report)
        return 0

    def _import(self, spec: pb.TrainingSpec) -> int:
        fetch(spec.model_archive)
        files = self._upload(self._controls.adapter(self._job_id, 0), "model/")
        artifact = pb.Artifact(kind=pb.ARTIFACT_KIND_ADAPTER, prefix="model", files=files)
        adapter = pb.Hyperparameters(lora_rank=2, lora_alpha=4)
        self._call(self._stub.CompleteImport, pb.CompleteImportRequest(artifact=artifact, adapter=adapter))
        return 0

    def _heartbeat(self, step: int, metrics: pb.StepMetrics | None = None) -> int:
        self._sequence += 1
        request = pb.HeartbeatRequest(sequence=self._sequence, phase="training", step=step, total_steps=STEPS)
        if metrics is not None:
            request.metrics.append(metrics)
        return self._call(self._stub.Heartbeat, request).command

    def _checkpoint(self, step: int, metrics: pb.StepMetrics) -> None:
        state = {"training_state.json": json.dumps({"step": step}).encode()}
        artifact = self._artifact(step)
        artifact.training_state.extend(self._upload(state, f"step-{step}/"))
        self._upload(self._controls.adapter(self._job_id, step), f"step-{step}/")
        self._call(
            self._stub.CommitCheckpoint, pb.CommitCheckpointRequest(step=step, artifact=artifact, metrics=metrics)
        )

    def _complete(self) -> int:
        score = pb.Score(loss=1.0, token_accuracy=0.5, exact_match=0.25)
        request = pb.CompleteTrainingRequest(
            step=STEPS,
            artifact=self._artifact(STEPS),
            trained_tokens=60,
            evaluation=pb.Evaluation(rows=2, held_out_from_training=True, base=score, tuned=score),
            result_files=self._upload({"results.csv": b"step,train_loss\n1,2.0\n"}, ""),
        )
        self._call(self._stub.CompleteTraining, request)
        return 0

    def _artifact(self, step: int) -> pb.Artifact:
        files = [declared(name, content) for name, content in self._controls.adapter(self._job_id, step).items()]
        return pb.Artifact(kind=pb.ARTIFACT_KIND_ADAPTER, prefix=f"step-{step}", files=files)

    def _upload(self, contents: dict[str, bytes], prefix: str) -> list[pb.UploadFile]:
        files = [declared(prefix + name, content) for name, content in contents.items()]
        uploads = self._call(self._stub.CreateUploads, pb.CreateUploadsRequest(files=files)).uploads
        for upload in uploads:
            content = contents[upload.path.removeprefix(prefix)]
            request = urllib.request.Request(upload.url, content, dict(upload.headers), method="PUT")
            answer(request)
        return [declared(name, content) for name, content in contents.items()]

    def _call(self, method: Callable[..., Answer], request: object) -> Answer:
        """Waits for a control plane that is away; anything else ends the run as fenced."""
        while True:
            try:
                return method(request, metadata=self._metadata, timeout=30)
            except grpc.RpcError as error:
                if error.code() not in _AWAY:
                    print(error, flush=True)
                    sys.exit(75)
                time.sleep(0.05)


def declared(path: str, content: bytes) -> pb.UploadFile:
    """What is said of a file before it is uploaded."""
    return pb.UploadFile(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def fetch(file: pb.RemoteFile) -> bytes:
    """Downloads and checks a file."""
    content = answer(urllib.request.Request(file.url))
    assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256), file.path
    return content


def answer(request: urllib.request.Request) -> bytes:
    """What the storage answers; waits for one that is away."""
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                content: bytes = response.read()
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise
            time.sleep(0.05)
        else:
            return content


def write_fake_python(folder: Path, importer: Path) -> Path:
    """An executable to use as `trainer_python`: this trainer for runs, `importer` for base models, no-op for merges."""
    script = folder / "fake-trainer-python"
    script.write_text(
        "#!/bin/sh\n"
        # On Slurm's nodes the supervisor of a run is started by it as well.
        f'case "$1" in -I) exec "{sys.executable}" "$@" ;; esac\n'
        f'case "$3" in import-base) exec "{importer}" "$@" ;; merge) exec cat ;; esac\n'
        f'exec "{sys.executable}" "{__file__}"\n'
    )
    script.chmod(0o755)
    return script


if __name__ == "__main__":
    sys.exit(Run().main())
