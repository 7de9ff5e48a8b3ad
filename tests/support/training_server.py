"""A control plane for one attempt: the real TrainingService over a folder, with a small HTTP server for its URLs."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_proto.training.v1 import training_pb2_grpc as pb_grpc

TOKEN = "attempt-token"


class TrainingServer(pb_grpc.TrainingServiceServicer):
    """Serves `spec` and records what a run reports. Objects lie below `root`, uploads below `root / "out"`.

    `commands` are handed out one per heartbeat once the run has reached the step that each is keyed with.
    `on_heartbeat` is called with each; `forget_replies` of them are recorded but answered with UNAVAILABLE. `on_commit`
    is called before a checkpoint is taken.
    """

    def __init__(self, root: Path, spec: pb.TrainingSpec) -> None:
        self.root = root
        self.spec = spec
        self.heartbeats: dict[int, pb.HeartbeatRequest] = {}
        self.commands: dict[int, pb.Command.ValueType] = {}
        self.checkpoints: list[pb.CommitCheckpointRequest] = []
        self.preflight: pb.CompletePreflightRequest | None = None
        self.completed: pb.CompleteTrainingRequest | None = None
        self.imported: pb.CompleteImportRequest | None = None
        self.failed: pb.FailRunRequest | None = None
        self.fenced = False
        self.forget_replies = 0
        self.on_heartbeat: Callable[[pb.HeartbeatRequest], None] = lambda request: None
        self.on_commit: Callable[[], None] = lambda: None
        self._server: grpc.Server | None = None
        self.port = 0
        self.http = _object_server(root)
        self.http_url = f"http://127.0.0.1:{self.http.server_address[1]}"

    @property
    def metrics(self) -> list[pb.StepMetrics]:
        """Every step's numbers in the order of delivery."""
        return [one for _, beat in sorted(self.heartbeats.items()) for one in beat.metrics]

    def start(self) -> None:
        """Begins to serve, on the former port after a stop."""
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        pb_grpc.add_TrainingServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        """Goes away at once, as if killed."""
        assert self._server is not None
        self._server.stop(None).wait()

    def close(self) -> None:
        """Ends everything."""
        self.stop()
        self.http.shutdown()
        self.http.server_close()

    def remote(self, key: str, path: str | None = None) -> pb.RemoteFile:
        """Describes the object at `key`, under the root, as a file to fetch."""
        data = (self.root / key).read_bytes()
        return pb.RemoteFile(
            path=path or key, size=len(data), sha256=hashlib.sha256(data).hexdigest(), url=f"{self.http_url}/{key}"
        )

    def GetSpec(self, request: pb.GetSpecRequest, context: grpc.ServicerContext) -> pb.GetSpecResponse:  # noqa: N802
        self._admit(context)
        return pb.GetSpecResponse(spec=self.spec)

    def Heartbeat(self, request: pb.HeartbeatRequest, context: grpc.ServicerContext) -> pb.HeartbeatResponse:  # noqa: N802
        self._admit(context)
        self.heartbeats.setdefault(request.sequence, request)
        self.on_heartbeat(request)
        if self.forget_replies:
            self.forget_replies -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "the reply is lost")
        due = [step for step in sorted(self.commands) if step <= request.step]
        command = self.commands.pop(due[0]) if due else pb.COMMAND_UNSPECIFIED
        return pb.HeartbeatResponse(command=command, lease_ttl_seconds=60)

    def CreateUploads(  # noqa: N802
        self, request: pb.CreateUploadsRequest, context: grpc.ServicerContext
    ) -> pb.CreateUploadsResponse:
        self._admit(context)
        uploads = [
            pb.Upload(path=file.path, url=f"{self.http_url}/out/{file.path}", headers={"x-size": str(file.size)})
            for file in request.files
        ]
        return pb.CreateUploadsResponse(uploads=uploads)

    def CommitCheckpoint(  # noqa: N802
        self, request: pb.CommitCheckpointRequest, context: grpc.ServicerContext
    ) -> pb.CommitCheckpointResponse:
        self._admit(context)
        self.on_commit()
        for file in [*request.artifact.files, *request.artifact.training_state]:
            self._verify(f"{request.artifact.prefix}/{file.path}", file)
        self.checkpoints.append(request)
        return pb.CommitCheckpointResponse(model_name=f"ft:tiny:default::test:ckpt-step-{request.step}")

    def CompletePreflight(  # noqa: N802
        self, request: pb.CompletePreflightRequest, context: grpc.ServicerContext
    ) -> pb.CompletePreflightResponse:
        self._admit(context)
        self.preflight = request
        return pb.CompletePreflightResponse()

    def CompleteTraining(  # noqa: N802
        self, request: pb.CompleteTrainingRequest, context: grpc.ServicerContext
    ) -> pb.CompleteTrainingResponse:
        self._admit(context)
        for file in request.result_files:
            self._verify(file.path, file)
        self.completed = request
        return pb.CompleteTrainingResponse(model_name="ft:tiny:default::test")

    def CompleteImport(  # noqa: N802
        self, request: pb.CompleteImportRequest, context: grpc.ServicerContext
    ) -> pb.CompleteImportResponse:
        self._admit(context)
        for file in request.artifact.files:
            self._verify(f"{request.artifact.prefix}/{file.path}", file)
        self.imported = request
        return pb.CompleteImportResponse(model_name="ft:tiny:default::test")

    def FailRun(self, request: pb.FailRunRequest, context: grpc.ServicerContext) -> pb.FailRunResponse:  # noqa: N802
        self._admit(context)
        self.failed = request
        return pb.FailRunResponse()

    def _admit(self, context: grpc.ServicerContext) -> None:
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown token")
        if self.fenced:
            _refuse_as_fenced(context)

    def _verify(self, path: str, file: pb.UploadFile) -> None:
        data = (self.root / "out" / path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)


def next_attempt(server: TrainingServer) -> None:
    """Forgets the run, and lets the next go on from the last committed checkpoint."""
    commit = server.checkpoints[-1]
    names = [file.path for file in [*commit.artifact.files, *commit.artifact.training_state]]
    kept = server.root / f"kept-{commit.step}-{len(server.checkpoints)}"
    (server.root / "out" / commit.artifact.prefix).rename(kept)
    server.spec.resume.CopyFrom(
        pb.Resume(step=commit.step, files=[server.remote(f"{kept.name}/{name}", name) for name in names])
    )
    server.heartbeats.clear()
    server.checkpoints.clear()
    server.commands.clear()


@contextmanager
def serving(server: TrainingServer) -> Iterator[TrainingServer]:
    """Serves for the length of a block."""
    server.start()
    try:
        yield server
    finally:
        server.close()


def _refuse_as_fenced(context: grpc.ServicerContext) -> NoReturn:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="fenced", domain="tunesmith"))
    status = status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, message="a newer attempt exists", details=[detail])
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status raises")


def _object_server(root: Path) -> ThreadingHTTPServer:
    class Objects(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = (root / self.path.lstrip("/")).read_bytes()
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start:])

        def do_PUT(self) -> None:
            target = root / self.path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            data = self.rfile.read(int(self.headers["Content-Length"]))
            target.write_bytes(data)
            self.send_response(200 if int(self.headers["x-size"]) == len(data) else 400)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Objects)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server
