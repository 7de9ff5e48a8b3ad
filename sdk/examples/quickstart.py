"""The way from nothing to a tuned model that answers: start, ask, fine-tune, ask again, report.

It uses the SDK as any program would and knows nothing of what is behind the base URL.

Exit status 0: the tuned model was served and beats the base model on exact match. Else 1, and the reason is printed.
"""

import argparse
import contextlib
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from examples.local_platform import PlatformFailed, RunningPlatform, local_platform
from examples.progress_line import ProgressLine
from examples.report import Served, with_served
from examples.scoring import Comparison, ask, exact_match, is_exact, load_rows
from tunesmith import FineTuneFailedError, Tunesmith, TunesmithError
from tunesmith.types import Evaluation, FineTune

BASE_MODEL = "smollm2-135m-instruct"
EXAMPLES = Path(__file__).parent
TRAINING_DATA = EXAMPLES / "support_tickets_train.jsonl"
HELDOUT_DATA = EXAMPLES / "support_tickets_heldout.jsonl"
CPU_ROWS = 480  # a row has about 69 tokens and two cores train about 165 in a second: a good three minutes
BATCH_SIZE = 4  # so few rows, seen once, teach more in many small steps
CPU_ASKED = 40  # two cores generate about 30 to 55 tokens in a second: about a minute for both models
SHOWN = 6
THREADS = 8
ENGINE_PATIENCE = 8  # answers of "not up yet, try again in a while" that a request takes
CANCEL_LIMIT_S = 30.0


@dataclass(frozen=True)
class Plan:
    """How much this run does."""

    rows: int
    asked: int
    folder: Path
    keep: bool


@dataclass
class Stopwatch:
    """Announces the stages of the run and keeps how long each took, in seconds."""

    timings: list[tuple[str, float]] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what happens inside, also if it fails."""
        print(f"\n» {name}", flush=True)
        started = time.monotonic()
        try:
            yield
        finally:
            self.timings.append((name, time.monotonic() - started))
        print(f"  {self.timings[-1][1]:.0f} s", flush=True)


def main() -> int:
    """Runs everything and returns the exit status."""
    plan = _plan()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the platform is stopped then, too
    try:
        return 0 if _run(plan) else 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (PlatformFailed, TunesmithError) as error:
        print(f"\nFailed: {error}\nThe platform's log is {plan.folder / 'platform.log'}.", file=sys.stderr)
        return 1


def _plan() -> Plan:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help=f"training rows (default: all with a GPU, {CPU_ROWS} without)")
    parser.add_argument("--all", action="store_true", help="use all training rows and ask all held-out rows")
    parser.add_argument("--keep", action="store_true", help="leave the platform running at the end")
    parser.add_argument("--folder", type=Path, default=Path(".quickstart"), help="where everything is put")
    given = parser.parse_args()
    has_gpu = shutil.which("nvidia-smi") is not None and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
    everything = given.all or has_gpu
    available, heldout = _line_count(TRAINING_DATA), _line_count(HELDOUT_DATA)
    rows = given.rows or (available if everything else CPU_ROWS)
    if not 10 <= rows <= available:
        parser.error(f"--rows must be from 10 to {available}")
    return Plan(rows, heldout if everything else CPU_ASKED, given.folder, given.keep)


def _run(plan: Plan) -> bool:
    """Returns whether the tuned model won; the platform is stopped on every way out."""
    watch = Stopwatch()
    with contextlib.ExitStack() as stack:
        with watch.stage("Start the platform"):
            platform = stack.enter_context(local_platform(plan.folder, plan.keep))
            print(f"  {platform.url}, log in {plan.folder / 'platform.log'}")
        client = Tunesmith(base_url=platform.url, api_key=platform.api_key, max_retries=ENGINE_PATIENCE)
        stack.enter_context(client)
        won = _tune_and_compare(client, plan, watch)
        if plan.keep:
            _explain_keeping(platform, plan)
    return won


def _tune_and_compare(client: Tunesmith, plan: Plan, watch: Stopwatch) -> bool:
    """Returns whether the tuned model, as it is served, beats the base model."""
    rows = load_rows(HELDOUT_DATA, plan.asked)
    # First, so that a machine that cannot serve says so before it trains.
    with watch.stage(f"Start the engine and ask the base model {len(rows)} held-out rows"):
        base = ask(client, BASE_MODEL, rows, THREADS)
    with watch.stage(f"Fine-tune {BASE_MODEL} on {plan.rows} of {_line_count(TRAINING_DATA)} rows, one pass"):
        job = _fine_tune(client, _training_file(plan))
    tuned_model = job.fine_tuned_model or ""
    with watch.stage(f"Ask {tuned_model} the same rows"):
        tuned = ask(client, tuned_model, rows, THREADS)
    served = Served(
        model=tuned_model,
        comparisons=[Comparison(r.message, r.expected, b, t) for r, b, t in zip(rows, base, tuned, strict=True)],
        base=exact_match(base, [row.expected for row in rows]),
        tuned=exact_match(tuned, [row.expected for row in rows]),
        timings=watch.timings,
        home=str(plan.folder / "home"),
    )
    page = with_served(client.fine_tunes.report(job.id), served)
    (plan.folder / "report.html").write_text(page, encoding="utf-8")
    _print_result(served, job.evaluation, plan)
    return served.tuned > served.base


def _fine_tune(client: Tunesmith, training_file: Path) -> FineTune:
    """Creates the job and follows it to its end. Raises FineTuneFailedError unless it succeeds."""
    job = client.fine_tunes.create(
        model=BASE_MODEL,
        training_file=training_file,
        validation_file=HELDOUT_DATA,
        suffix="tickets",
        n_epochs=1,
        batch_size=BATCH_SIZE,
    )
    print(f"  {job.id}")
    line = ProgressLine()
    try:
        for update in client.fine_tunes.follow(job.id):
            job = update.fine_tune
            line.show(job, update.events)
    except BaseException:  # Ctrl-C as well
        with contextlib.suppress(TunesmithError):
            _cancel(client, job)
        raise
    finally:
        line.close()
    if job.status != "succeeded":
        raise FineTuneFailedError(job)
    return job


def _cancel(client: Tunesmith, job: FineTune) -> None:
    """Cancels the job and waits for its run to end: it outlives the platform and would train on for nobody."""
    client.fine_tunes.cancel(job.id)
    deadline = time.monotonic() + CANCEL_LIMIT_S
    while job.status != "queued" and time.monotonic() < deadline:
        if any("run of the cancelled job has ended" in event.message for event in client.fine_tunes.events(job.id)):
            return
        time.sleep(0.5)


def _training_file(plan: Plan) -> Path:
    """The whole example file, or a copy of its first rows."""
    if plan.rows == _line_count(TRAINING_DATA):
        return TRAINING_DATA
    part = plan.folder / f"{TRAINING_DATA.stem}_{plan.rows}.jsonl"
    with TRAINING_DATA.open("rb") as lines:
        part.write_bytes(b"".join(itertools.islice(lines, plan.rows)))
    return part


def _print_result(served: Served, evaluation: Evaluation | None, plan: Plan) -> None:
    print(f"\nThe first {SHOWN} of {len(served.comparisons)} held-out rows")
    width = max(40, min(160, shutil.get_terminal_size((120, 24)).columns) - 12)
    for row in served.comparisons[:SHOWN]:
        print(f"\n  message   {_short(row.message, width)}\n  expected  {_short(row.expected, width)}")
        for name, answer in (("base", row.base), ("tuned", row.tuned)):
            print(f"  {name:<6} {'✓' if is_exact(answer, row.expected) else '✗'}  {_short(answer, width)}")
    print(f"\nExact match                    base   tuned\n  {_figures('served', len(served.comparisons))}", end="")
    print(f"{served.base:>6.0%}  {served.tuned:>6.0%}")
    if evaluation is not None:
        base, tuned = evaluation.base.exact_match or 0.0, evaluation.tuned.exact_match or 0.0
        print(f"  {_figures('in the job', evaluation.rows)}{base:>6.0%}  {tuned:>6.0%}")
    print(f"\nReport: {plan.folder / 'report.html'}   Total: {sum(s for _, s in served.timings):.0f} s")
    if served.tuned <= served.base:
        print("Failed: the tuned model, as it is served, does not beat the base model on exact match.", file=sys.stderr)


def _figures(name: str, rows: int) -> str:
    return f"{name + f' ({rows} rows)':<27}"


def _short(text: str, width: int) -> str:
    """One line of at most `width` characters; what cannot be printed safely is shown as a question mark."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"


def _explain_keeping(platform: RunningPlatform, plan: Plan) -> None:
    print(
        f"\nThe platform goes on at {platform.url}. In a shell:\n"
        f"  export TUNESMITH_BASE_URL={platform.url} TUNESMITH_API_KEY=$(cat {plan.folder / 'home' / 'api_key'})\n"
        f"  .venv/bin/tunesmith models list\n"
        f"Stop it with: kill {platform.process_id}"
    )


def _line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n")


if __name__ == "__main__":
    sys.exit(main())
