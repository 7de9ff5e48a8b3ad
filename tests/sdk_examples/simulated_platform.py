"""A stand-in for `tunesmithd` that answers at once: the parts of the quickstart are tested against it.

It knows the shapes of the answers and trains nothing; the real way is the end-to-end tests' matter. SIMULATED says how
it behaves: `good`, `useless` (the tuned model answers like the base), `failing` (the job fails), `endless` (the job
never ends) or `broken` (it does not start).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TUNED = "ft:smollm2-135m-instruct:default:tickets:abcd1234"
REPORT = "<!doctype html><html><head></head><body><main><h1>the job's report</h1></main></body></html>"
SCORE = {"loss": 0.5, "token_accuracy": 0.9, "exact_match": 0.5}
HELDOUT = Path(__file__).parents[2] / "sdk" / "examples" / "support_tickets_heldout.jsonl"


class Requests(BaseHTTPRequestHandler):
    """Answers every route that the examples use."""

    looks = 0
    cancelled = False

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/report"):
            self.send(REPORT.encode(), "text/html; charset=utf-8")
        elif path.endswith("/events"):
            self.send_json({"object": "list", "data": events(Requests.cancelled), "has_more": False})
        elif path.startswith("/v1/fine_tuning/jobs/"):
            Requests.looks += 1
            self.send_json(job(self.status()))
        else:
            self.send_json({"object": "list", "data": [], "has_more": False})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/chat/completions"):
            self.send_json(completion(json.loads(body)))
        elif self.path.endswith("/cancel"):
            Requests.cancelled = True
            Path(sys.argv[sys.argv.index("--home") + 1], "cancelled").touch()
            self.send_json(job("cancelled"))
        elif self.path.endswith("/jobs"):
            self.send_json(job("queued"))
        else:
            self.send_json(stored_file("file-1"))

    def status(self) -> str:
        """Two looks of work, then the end."""
        if Requests.cancelled:
            return "cancelled"
        if Requests.looks < 3 or os.environ["SIMULATED"] == "endless":
            return "running"
        return "failed" if os.environ["SIMULATED"] == "failing" else "succeeded"

    def send_json(self, content: dict[str, Any]) -> None:
        self.send(json.dumps(content).encode())

    def send(self, content: bytes, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def job(status: str) -> dict[str, Any]:
    succeeded = status == "succeeded"
    return {
        "id": "ftjob-1",
        "object": "fine_tuning.job",
        "created_at": 1,
        "finished_at": None,
        "model": "smollm2-135m-instruct",
        "fine_tuned_model": TUNED if succeeded else None,
        "organization_id": "default",
        "status": status,
        "error": {"code": "out_of_memory", "message": "Too big.", "param": None} if status == "failed" else None,
        "hyperparameters": {"n_epochs": 1, "batch_size": 8, "learning_rate_multiplier": 1.0},
        "training_file": "file-1",
        "validation_file": "file-1",
        "result_files": [],
        "trained_tokens": 1000 if succeeded else None,
        "seed": 1,
        "progress": {"phase": "training", "step": 1, "total_steps": 2, "remaining_seconds": 61.0},
        "evaluation": {"rows": 100, "base": {**SCORE, "exact_match": 0.0}, "tuned": SCORE} if succeeded else None,
    }


def events(cancelled: bool) -> list[dict[str, Any]]:
    kind = {"object": "fine_tuning.job.event", "created_at": 1, "level": "info", "type": "message"}
    ended = {"id": "ftevent-2", "message": "The run of the cancelled job has ended", "data": None, **kind}
    return [ended] * cancelled + [{"id": "ftevent-1", "message": "batch_size is 8", "data": None, **kind}]


def stored_file(file_id: str) -> dict[str, Any]:
    kind = {"object": "file", "purpose": "fine-tune", "status": "processed"}
    return {"id": file_id, "bytes": 1, "created_at": 1, "filename": file_id, **kind}


def completion(request: dict[str, Any]) -> dict[str, Any]:
    """The tuned model knows every held-out answer, the base model none."""
    content = "I am sorry."
    if request["model"] == TUNED and os.environ["SIMULATED"] == "good":
        rows = [json.loads(line)["messages"] for line in HELDOUT.read_text(encoding="utf-8").splitlines()]
        content = {row[1]["content"]: row[2]["content"] for row in rows}.get(request["messages"][1]["content"], content)
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    kind = {"object": "chat.completion", "created": 1, "model": request["model"]}
    return {"id": "chatcmpl-1", "choices": [choice], **kind}


def main() -> None:
    if os.environ["SIMULATED"] == "broken":
        sys.exit("cannot start")
    home, port = (sys.argv[sys.argv.index(name) + 1] for name in ("--home", "--port"))
    Path(home).mkdir(parents=True, exist_ok=True)
    Path(home, "api_key").write_text("sk-simulated\n")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Requests)
    server.daemon_threads = True
    print(f"ready http://127.0.0.1:{port} grpc 127.0.0.1:1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
