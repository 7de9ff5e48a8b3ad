"""Owns the program that tells one tracker of one job: requests in as JSON lines, an answer for each, or an error.

It must not know the database. A tracker's client can hang, crash and leave threads behind: here it hurts nobody.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from tunesmith_server.trackers.installation import redacted

_NICENESS = 10
"""Training comes first where both share a machine."""


def main() -> None:
    """`open`, then any number of `log`, then `close`; an end of input before that leaves the run open."""
    os.nice(_NICENESS)
    # Clients write to standard output as they like; the answers' own pipe stays ours.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run: Any = None
    for line in sys.stdin:
        ((request, content),) = json.loads(line).items()
        try:
            if request == "open":
                run = _opened(content)
                _say(answers, {"last_step": run.last_step, "run_id": run.run_id, "url": run.url})
            elif request == "log":
                run.log(content)
                _say(answers, {})
            else:
                run.close(content)
                _say(answers, {})
                return
        except Exception as error:
            _say(answers, {"error": redacted(f"{type(error).__name__}: {error}")[:1000]})
            break
    # Not by a return: the client would say at the exit that the run is over.
    os._exit(1)


def _opened(opening: dict[str, Any]) -> Any:
    """A run of the tracker; its client is imported only now and only here."""
    if opening["tracker"] == "wandb":
        from tunesmith_server.trackers.wandb_run import WandbRun

        return WandbRun(opening, Path(sys.argv[1]))
    from tunesmith_server.trackers.mlflow_run import MlflowRun

    return MlflowRun(opening)


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
