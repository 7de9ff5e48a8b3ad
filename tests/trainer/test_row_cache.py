"""Rendered rows: found again by content, never a wrong one, never in the way of a run."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.training_server import TrainingServer
from tests.trainer.conftest import chat_line
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer import row_cache
from tunesmith_trainer.config import Wanted
from tunesmith_trainer.preflight import Examined, examine
from tunesmith_trainer.row_cache import MOST_SECONDS, RowCache
from tunesmith_trainer.row_checks import FileRows, RowReader

WANTED = Wanted(full_weights=False, seed=3, context_length=200, long_rows="cut")


def preference(index: int) -> str:
    answers = [[{"role": "assistant", "content": text}] for text in (f"yes {index}", f"no {index}")]
    asked = {"messages": [{"role": "user", "content": f"Is {index} a number?"}]}
    return json.dumps({"input": asked, "preferred_output": answers[0], "non_preferred_output": answers[1]})


ROWS: dict[str, list[str]] = {
    # A long row that is cut, a row twice, one without a label, one that is no JSON, one with a special token.
    "supervised": [
        *(chat_line(index) for index in range(12)),
        chat_line(3),
        chat_line(20, "long " * 100),
        '{"messages": [{"role": "user", "content": "nothing to learn"}]}',
        "no JSON",
        chat_line(21, "<|im_end|>"),
    ],
    "dpo": [preference(index) for index in range(12)],
    "continued_pretraining": [json.dumps({"text": f"Text {index}. " * 40}) for index in range(6)],
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes lines as a training file."""

    def write(*lines: str) -> Path:
        path = tmp_path / "train.jsonl"
        path.write_text("\n".join(lines))
        return path

    return write


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read and rendered."""
    seen: list[Path] = []
    read = RowReader.read

    def watched(self: RowReader, path: Path, param: str) -> FileRows:
        seen.append(path)
        return read(self, path, param)

    monkeypatch.setattr(RowReader, "read", watched)
    return seen


def look(base: Path, rows: Path, cache: Path | None, wanted: Wanted = WANTED) -> Examined:
    return examine(base, rows, None, wanted, lambda done, all_rows: None, cache)


def told(examined: Examined) -> list[Any]:
    """All that preflight and run take from a file."""
    file = examined.training
    examples = [
        (type(one), one.row, one.token_ids.tolist(), one.labelled.tolist(), one.splits, one.documents)
        for one in file.examples
    ]
    about = (file.param, file.rows, file.lengths, file.seen, file.duplicates)
    return [examples, about, examined.findings.listed(), [astuple(one) for one in examined.findings.rejects]]


@pytest.mark.parametrize("method", list(ROWS))
def test_rows_found_again_are_the_same_in_everything(
    base: Path, tmp_path: Path, write: Callable[..., Path], reads: list[Path], method: Any
) -> None:
    rows, wanted = write(*ROWS[method]), replace(WANTED, method=method)
    plain = told(look(base, rows, None, wanted))
    first = told(look(base, rows, tmp_path / "rows", wanted))
    again = told(look(base, rows, tmp_path / "rows", wanted))

    assert first == again == plain
    assert len(reads) == 2


def test_a_job_with_nothing_to_find_is_found_again(
    base: Path, tmp_path: Path, write: Callable[..., Path], reads: list[Path]
) -> None:
    rows = write("no JSON")
    assert told(look(base, rows, tmp_path / "rows")) == told(look(base, rows, tmp_path / "rows"))
    assert len(reads) == 1


def test_whatever_rows_depend_on_makes_them_anew(
    base: Path, tmp_path: Path, write: Callable[..., Path], reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, rows = tmp_path / "rows", write(*ROWS["supervised"])
    look(base, rows, cache)
    other = tmp_path / "base"
    shutil.copytree(base, other)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("You are a test.", "You are another."))
    generation = tmp_path / "generation"
    shutil.copytree(base, generation)
    (generation / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    changes: list[Callable[[], object]] = [
        lambda: look(base, write(*ROWS["supervised"], chat_line(30)), cache),
        lambda: look(base, rows, cache, replace(WANTED, context_length=199)),
        lambda: look(base, rows, cache, replace(WANTED, long_rows="drop")),
        lambda: look(base, rows, cache, replace(WANTED, method="dpo")),
        lambda: look(other, rows, cache),
        lambda: look(generation, rows, cache),
        lambda: (monkeypatch.setattr(row_cache, "_code", lambda: "another version"), look(base, rows, cache)),
    ]
    for number, change in enumerate(changes, start=2):
        change()
        assert len(reads) == number


def test_weights_and_the_job_s_own_numbers_do_not(
    base: Path, tmp_path: Path, write: Callable[..., Path], reads: list[Path]
) -> None:
    cache, rows = tmp_path / "rows", write(*ROWS["supervised"])
    small = tmp_path / "base"
    shutil.copytree(base, small, ignore=shutil.ignore_patterns("*.safetensors", "manifest.json"))
    look(small, rows, cache)  # as preflight sees the base: without weights
    look(base, rows, cache, replace(WANTED, seed=4, n_epochs=7, batch_size=2, lora_rank=2))

    assert len(reads) == 1


def test_damage_anywhere_is_noticed_or_harmless(
    base: Path, tmp_path: Path, write: Callable[..., Path], reads: list[Path]
) -> None:
    cache, rows = tmp_path / "rows", write(*ROWS["supervised"])
    plain = told(look(base, rows, cache))
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    damaged = [whole[: len(whole) // 2], b"", b"\x80\x04N."]
    damaged += [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(0, len(whole), 97)]
    for content in damaged:
        entry.write_bytes(content)
        assert told(look(base, rows, cache)) == plain
    assert len(reads) > len(damaged) // 2  # most of the bytes are content


def test_nothing_that_a_file_holds_is_executed(
    base: Path, tmp_path: Path, write: Callable[..., Path], reads: list[Path]
) -> None:
    class Touches:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    cache, rows = tmp_path / "rows", write(*ROWS["supervised"])
    plain = told(look(base, rows, cache))
    (entry,) = cache.iterdir()
    with entry.open("wb") as file:
        np.savez(file, about=np.array([Touches()], dtype=object))

    assert told(look(base, rows, cache)) == plain
    assert len(reads) == 2
    assert not (tmp_path / "executed").exists()


def kept(folder: Path, base: Path, numbers: range, most_bytes: int) -> None:
    """Keeps an entry for each number, the later the more recently used."""
    for number in numbers:
        (folder.parent / "file").write_text(str(number))
        RowCache(folder, base, [], most_bytes).read(folder.parent / "file", "training_file", lambda _, p: FileRows(p))
        newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (time.time() - 1000 + number, time.time() - 1000 + number))


def test_the_least_recently_used_make_room(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    kept(folder, base, range(1), 1 << 20)
    (first,) = folder.iterdir()
    size = first.stat().st_size
    kept(folder, base, range(1, 3), 3 * size)
    assert len(list(folder.iterdir())) == 3
    kept(folder, base, range(1), 3 * size)  # the first is used again, as the last of all
    os.utime(first)
    kept(folder, base, range(3, 5), 3 * size)

    assert len(list(folder.iterdir())) == 3
    assert first.exists()


def test_what_is_larger_than_all_room_drives_nothing_out(base: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "rows", tmp_path / "file"
    kept(folder, base, range(2), 1 << 20)
    before = set(folder.iterdir())
    file.write_text("large")
    large = FileRows("training_file", lengths=list(range(100_000)))
    RowCache(folder, base, [], 1 << 16).read(file, "training_file", lambda path, param: large)

    assert set(folder.iterdir()) == before


def test_what_nobody_asked_for_in_a_week_is_removed(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    kept(folder, base, range(2), 1 << 20)
    forgotten, other = folder.iterdir()
    long_ago = time.time() - MOST_SECONDS - 60
    os.utime(forgotten, (long_ago, long_ago))
    (folder / ".left-by-a-killed-run").touch()
    os.utime(folder / ".left-by-a-killed-run", (long_ago, long_ago))
    kept(folder, base, range(2, 3), 1 << 20)

    names = set(folder.iterdir())
    assert len(names) == 2
    assert other in names


def test_only_its_owner_may_read_what_is_kept(base: Path, tmp_path: Path) -> None:
    kept(tmp_path / "rows", base, range(1), 1 << 20)
    (entry,) = (tmp_path / "rows").iterdir()

    assert (tmp_path / "rows").stat().st_mode & 0o077 == 0
    assert entry.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_stops_nobody(
    base: Path, tmp_path: Path, write: Callable[..., Path], reads: list[Path]
) -> None:
    rows, in_the_way = write(*ROWS["supervised"]), tmp_path / "rows"
    in_the_way.write_text("a file")

    assert told(look(base, rows, in_the_way)) == told(look(base, rows, None))


def test_a_full_disk_leaves_nothing_behind(
    base: Path, tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    rows = write(*ROWS["supervised"])

    assert told(look(base, rows, tmp_path / "rows")) == told(look(base, rows, None))
    assert list((tmp_path / "rows").iterdir()) == []


def test_a_run_and_its_next_attempt_use_what_preflight_rendered(
    server: TrainingServer, run_attempt: Callable[[TrainingServer], int], cache: Path, reads: list[Path]
) -> None:
    (server.root / "train.jsonl").write_text("".join(chat_line(index) + "\n" for index in range(100, 120)))
    server.spec.training_file.CopyFrom(server.remote("train.jsonl"))
    server.spec.kind = pb.RUN_KIND_PREFLIGHT
    assert run_attempt(server) == 0
    server.spec.kind = pb.RUN_KIND_TRAINING
    assert run_attempt(server) == 0
    assert run_attempt(server) == 0

    assert len(reads) == 1
