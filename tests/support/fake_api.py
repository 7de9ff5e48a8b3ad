"""Owns a small Tunesmith REST server in memory, on a real loopback socket, for the SDK's tests.
Must not know the SDK: it speaks the wire shapes only.

Faults are queued and met by the next requests; a job's or a model's future is a queue of steps, one of which happens
each time it is read. So nothing here depends on time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from tests.support.fake_answers import Json, error_answer, json_answer, missing, model, multipart, page
from tests.support.loopback_http import Answer, LoopbackServer, Received

API_KEY = "sk-test-key"


@dataclass(frozen=True)
class Fault:
    """What the next request meets: an answer in place of the real one, or a connection that closes without any.

    With `after_effect` the request is carried out first, and only its answer is lost.
    """

    answer: Answer | None = None
    after_effect: bool = False


class FakeApi:
    """The server and everything that a test sets or looks at; `stop` and `start` keep state and port."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.faults: deque[Fault] = deque()
        self.files: dict[str, tuple[Json, bytes]] = {}
        self.uploads: dict[str, tuple[Json, dict[str, bytes]]] = {}
        """By id: what was announced, and the parts by their ids."""
        self.jobs: dict[str, Json] = {}
        self.futures: dict[str, deque[Callable[[], object]]] = {}
        self.events: dict[str, list[Json]] = {}
        self.checkpoints: dict[str, list[Json]] = {}
        self.estimates: dict[str, Json] = {}
        self.models: dict[str, Json] = {"smollm2-135m-instruct": model("smollm2-135m-instruct")}
        self.archives: dict[str, bytes] = {}
        """Tars of models, by name."""
        self.archive_cuts: deque[int] = deque()
        """Bytes after which the next answers with a tar break off."""
        self.stream_pieces: Sequence[bytes] = ()
        self.stream_is_cut_off = False
        self.ignores_filters = False
        self._replays: dict[str, Answer] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._port = 0
        self._server: LoopbackServer | None = None

    @property
    def url(self) -> str:
        """The base URL, without /v1."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen; the second time on the same port as the first."""
        self._server = LoopbackServer(self._port, self._respond)
        self._port = self._server.port

    def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def paths(self, method: str) -> list[str]:
        """The paths that were asked for with this method, in order."""
        return [request.path for request in self.received if request.method == method]

    def add_job(self, **values: object) -> str:
        """Store a job and return its id."""
        number = next(self._numbers)
        job = {
            "id": f"ftjob-{number}",
            "object": "fine_tuning.job",
            "created_at": 1_700_000_000 + number,
            "finished_at": None,
            "model": "smollm2-135m-instruct",
            "fine_tuned_model": None,
            "organization_id": "org-default",
            "status": "queued",
            "error": None,
            "hyperparameters": {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"},
            "training": {"weights": "lora", "lora_rank": "auto", "lora_alpha": "auto"},
            "training_file": "file-1",
            "validation_file": None,
            "result_files": [],
            "trained_tokens": None,
            "seed": 1,
            "progress": None,
            "evaluation": None,
        } | values
        self.jobs[str(job["id"])] = job
        self.events[str(job["id"])] = []
        self.checkpoints[str(job["id"])] = []
        return str(job["id"])

    def add_event(self, job_id: str, message: str, data: Json | None = None, level: str = "info") -> None:
        """Append an event; with data it is one of metrics."""
        number = next(self._numbers)
        self.events[job_id].append(
            {
                "id": f"ftevent-{number}",
                "object": "fine_tuning.job.event",
                "created_at": 1_700_000_000 + number,
                "level": level,
                "message": message,
                "type": "metrics" if data else "message",
                "data": data,
            }
        )

    def _respond(self, request: Received) -> Answer | None:
        with self._lock:
            self.received.append(request)
            fault = self.faults.popleft() if self.faults else None
            if fault is not None and not fault.after_effect:
                return fault.answer
            answer = self._carry_out(request)
            return answer if fault is None else fault.answer

    def _carry_out(self, request: Received) -> Answer:
        if request.headers.get("authorization") != f"Bearer {API_KEY}":
            return error_answer(401, "Incorrect API key provided.", "invalid_api_key")
        key = request.headers.get("idempotency-key")
        if key in self._replays:
            return self._replays[key]
        for method, pattern, verb in _ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and method == request.method:
                answer = verb(self, request, *map(unquote, match.groups()))
                if key is not None and answer.status < 500:
                    self._replays[key] = answer
                return answer
        return error_answer(404, f"Unknown route {request.path}", "not_found")

    def _create_file(self, request: Received) -> Answer:
        fields, filename, content = multipart(request)
        return json_answer(self._add_file(filename, fields["purpose"], content))

    def _add_file(self, filename: str, purpose: str, content: bytes) -> Json:
        number = next(self._numbers)
        file = {
            "id": f"file-{number}",
            "object": "file",
            "bytes": len(content),
            "created_at": 1_700_000_000 + number,
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
            "status_details": None,
            "expires_at": None,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        self.files[f"file-{number}"] = (file, content)
        return file

    def _create_upload(self, request: Received) -> Answer:
        upload_id = f"upload_{next(self._numbers)}"
        self.uploads[upload_id] = (request.json, {})
        return json_answer({"id": upload_id, "object": "upload", "status": "pending", "file": None})

    def _add_part(self, request: Received, upload_id: str) -> Answer:
        part_id = f"part_{next(self._numbers)}"
        self.uploads[upload_id][1][part_id] = multipart(request)[2]
        return json_answer({"id": part_id, "object": "upload.part", "upload_id": upload_id})

    def _complete_upload(self, request: Received, upload_id: str) -> Answer:
        announced, parts = self.uploads[upload_id]
        content = b"".join(parts[part_id] for part_id in request.json["part_ids"])
        right = hashlib.md5(content).hexdigest() == request.json["md5"] and len(content) == announced["bytes"]
        if not right:
            return error_answer(400, "These are not the bytes of the file.", "md5_mismatch", "md5")
        file = self._add_file(announced["filename"], announced["purpose"], content)
        return json_answer({"id": upload_id, "object": "upload", "status": "completed", "file": file})

    def _list_files(self, request: Received) -> Answer:
        names = () if self.ignores_filters else ("purpose", "sha256")
        wanted = {name: request.query[name] for name in names if name in request.query}
        files = [file for file, _ in self.files.values() if all(file[name] == wanted[name] for name in wanted)]
        return page(files, request)

    def _get_file(self, request: Received, file_id: str) -> Answer:
        return json_answer(self.files[file_id][0]) if file_id in self.files else missing(file_id)

    def _get_content(self, request: Received, file_id: str) -> Answer:
        return Answer(body=self.files[file_id][1]) if file_id in self.files else missing(file_id)

    def _delete_file(self, request: Received, file_id: str) -> Answer:
        if self.files.pop(file_id, None) is None:
            return missing(file_id)
        return json_answer({"id": file_id, "object": "file", "deleted": True})

    def _create_job(self, request: Received) -> Answer:
        body = request.json
        if body["model"] not in self.models:
            status = 404 if body["model"].startswith("ft:") else 400
            return error_answer(status, f"There is no model {body['model']}.", "model_not_found", "model")
        asked = {name: body[name] for name in ("model", "training_file", "validation_file", "metadata") if name in body}
        job = self.jobs[self.add_job(**asked)]
        job["training"] |= body.get("training", {})
        return json_answer(job)

    def _list_jobs(self, request: Received) -> Answer:
        return page(list(self.jobs.values()), request)

    def _get_job(self, request: Received, job_id: str) -> Answer:
        if job_id not in self.jobs:
            return missing(job_id)
        if self.futures.get(job_id):
            self.futures[job_id].popleft()()
        return json_answer(self.jobs[job_id])

    def _cancel_job(self, request: Received, job_id: str) -> Answer:
        if job_id not in self.jobs:
            return missing(job_id)
        self.jobs[job_id]["status"] = "cancelled"
        return json_answer(self.jobs[job_id])

    def _pause_job(self, request: Received, job_id: str) -> Answer:
        return self._become(job_id, "paused")

    def _resume_job(self, request: Received, job_id: str) -> Answer:
        return self._become(job_id, "queued")

    def _become(self, job_id: str, status: str) -> Answer:
        if job_id not in self.jobs:
            return missing(job_id)
        self.jobs[job_id]["status"] = status
        return json_answer(self.jobs[job_id])

    def _get_log(self, request: Received, job_id: str) -> Answer:
        return Answer(body=f"attempt {request.query.get('attempt', 'newest')}\n".encode())

    def _get_report(self, request: Received, job_id: str) -> Answer:
        return Answer(body=f"<!doctype html><title>{job_id} – report</title>".encode())

    def _estimate(self, request: Received) -> Answer:
        number = next(self._numbers)
        estimate = {
            "id": f"ftest-{number}",
            "object": "fine_tuning.estimate",
            "created_at": 1_700_000_000 + number,
            "status": "ready",
            "error": None,
            "model": request.json["model"],
            "rows": 10,
            "tokens": 200,
            "trained_tokens": 600,
            "steps": 6,
            "memory": {"needed_bytes": 2**30, "available_bytes": 2**31, "fits": True},
            "seconds": 90.0,
            "queue": {"position": 2, "expected_start": None},
            "cost": None,
            "findings": [],
            "rejects_file": None,
        }
        self.estimates[str(estimate["id"])] = estimate
        return json_answer(estimate)

    def _get_estimate(self, request: Received, estimate_id: str) -> Answer:
        return json_answer(self.estimates[estimate_id]) if estimate_id in self.estimates else missing(estimate_id)

    def _list_events(self, request: Received, job_id: str) -> Answer:
        if request.query.get("stream") == "true":
            return self._stream_events(request, job_id)
        return page(self.events[job_id], request) if job_id in self.events else missing(job_id)

    def _stream_events(self, request: Received, job_id: str) -> Answer:
        """What there is after a cursor; cut off unless the job has ended, as if the server stopped each time."""
        if job_id not in self.jobs:
            return missing(job_id)
        if self.futures.get(job_id):
            self.futures[job_id].popleft()()
        events, after = self.events[job_id], request.query.get("after")
        known = 0 if after is None else next(n for n, event in enumerate(events, 1) if event["id"] == after)
        pieces = [f"data: {json.dumps(event)}\n\n".encode() for event in events[known:]]
        ended = self.jobs[job_id]["status"] in ("succeeded", "failed", "cancelled")
        pieces.append(b"data: [DONE]\n\n" if ended else b": keep-alive\n\n")
        return Answer(headers={"Content-Type": "text/event-stream"}, pieces=pieces, cut_off=not ended)

    def _list_checkpoints(self, request: Received, job_id: str) -> Answer:
        return page(self.checkpoints[job_id], request) if job_id in self.checkpoints else missing(job_id)

    def _get_archive(self, request: Received, name: str) -> Answer:
        if name not in self.archives:
            return missing(name, "model_not_found")
        content = self.archives[name]
        etag = hashlib.sha256(content).hexdigest()
        is_rest = request.headers.get("if-range") == etag
        start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-")) if is_rest else 0
        cut = self.archive_cuts.popleft() if self.archive_cuts else None
        pieces = [piece for piece in (content[start:][:cut],) if piece]  # an empty one would be the end
        return Answer(206 if is_rest else 200, headers={"etag": etag}, pieces=pieces, cut_off=cut is not None)

    def _list_models(self, request: Received) -> Answer:
        return json_answer({"object": "list", "data": list(self.models.values())})

    def _get_model(self, request: Received, name: str) -> Answer:
        if self.futures.get(name):
            self.futures[name].popleft()()
        return json_answer(self.models[name]) if name in self.models else missing(name, "model_not_found")

    def _create_model(self, request: Received) -> Answer:
        name = f"ft:{request.json['base_model']}:default:{request.json.get('suffix', '')}:abcd{next(self._numbers)}"
        self.models[name] = model(name) | {"status": "importing", "error": None}
        self.archives[name] = self.files[request.json["file"]][1]
        return json_answer(self.models[name])

    def _delete_model(self, request: Received, name: str) -> Answer:
        if self.models.pop(name, None) is None:
            return missing(name, "model_not_found")
        return json_answer({"id": name, "object": "model", "deleted": True})

    def _generate(self, request: Received) -> Answer:
        body = request.json
        if body["model"] not in self.models:
            return missing(body["model"], "model_not_found")
        if body["stream"]:
            headers = {"Content-Type": "text/event-stream"}
            return Answer(headers=headers, pieces=self.stream_pieces, cut_off=self.stream_is_cut_off)
        chat = request.path.endswith("/chat/completions")
        said = {"message": {"role": "assistant", "content": "Hello."}} if chat else {"text": "Hello."}
        return json_answer(
            {
                "id": "cmpl-1",
                "object": "chat.completion" if chat else "text_completion",
                "created": 1_700_000_000,
                "model": body["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None} | said],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            }
        )


_ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("POST", "/v1/files", FakeApi._create_file),
    ("GET", "/v1/files", FakeApi._list_files),
    ("GET", "/v1/files/([^/]+)", FakeApi._get_file),
    ("DELETE", "/v1/files/([^/]+)", FakeApi._delete_file),
    ("GET", "/v1/files/([^/]+)/content", FakeApi._get_content),
    ("POST", "/v1/uploads", FakeApi._create_upload),
    ("POST", "/v1/uploads/([^/]+)/parts", FakeApi._add_part),
    ("POST", "/v1/uploads/([^/]+)/complete", FakeApi._complete_upload),
    ("POST", "/v1/fine_tuning/jobs", FakeApi._create_job),
    ("GET", "/v1/fine_tuning/jobs", FakeApi._list_jobs),
    ("GET", "/v1/fine_tuning/jobs/([^/]+)", FakeApi._get_job),
    ("POST", "/v1/fine_tuning/jobs/([^/]+)/cancel", FakeApi._cancel_job),
    ("POST", "/v1/fine_tuning/jobs/([^/]+)/pause", FakeApi._pause_job),
    ("POST", "/v1/fine_tuning/jobs/([^/]+)/resume", FakeApi._resume_job),
    ("GET", "/v1/fine_tuning/jobs/([^/]+)/logs", FakeApi._get_log),
    ("GET", "/v1/fine_tuning/jobs/([^/]+)/report", FakeApi._get_report),
    ("POST", "/v1/fine_tuning/estimates", FakeApi._estimate),
    ("GET", "/v1/fine_tuning/estimates/([^/]+)", FakeApi._get_estimate),
    ("GET", "/v1/fine_tuning/jobs/([^/]+)/events", FakeApi._list_events),
    ("GET", "/v1/fine_tuning/jobs/([^/]+)/checkpoints", FakeApi._list_checkpoints),
    ("GET", "/v1/model_archives/([^/]+)", FakeApi._get_archive),
    ("GET", "/v1/models", FakeApi._list_models),
    ("POST", "/v1/models", FakeApi._create_model),
    ("GET", "/v1/models/([^/]+)", FakeApi._get_model),
    ("DELETE", "/v1/models/([^/]+)", FakeApi._delete_model),
    ("POST", "/v1/chat/completions", FakeApi._generate),
    ("POST", "/v1/completions", FakeApi._generate),
)


@contextlib.contextmanager
def running_fake_api() -> Iterator[FakeApi]:
    """Run a fake API and stop it in the end."""
    api = FakeApi()
    api.start()
    try:
        yield api
    finally:
        api.stop()
