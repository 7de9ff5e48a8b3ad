"""Preflight finds every problem at once and says what it decided."""

import json
from pathlib import Path

import pytest

from tunesmith_trainer.config import Wanted
from tunesmith_trainer.errors import BadData
from tunesmith_trainer.preflight import MAX_EVALUATION_ROWS, Prepared, prepare

WANTED = Wanted(full_weights=False, seed=3)


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def pair(index: int, answer: str = "yes") -> dict[str, str]:
    return {"prompt": f"Is {index} a number?", "completion": answer}


def prepared(base: Path, tmp_path: Path, rows: int, validation: int | None = None) -> Prepared:
    training = write(tmp_path / "train.jsonl", *(pair(index) for index in range(rows)))
    held = None if validation is None else write(tmp_path / "valid.jsonl", *(pair(i) for i in range(validation)))
    return prepare(base, training, held, WANTED)


def test_all_problems_of_both_files_come_at_once(base: Path, tmp_path: Path) -> None:
    training = write(
        tmp_path / "train.jsonl",
        *(pair(index) for index in range(9)),
        {"prompt": "word " * 200, "completion": "x"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
        "not json",
    )
    validation = write(tmp_path / "valid.jsonl", {"prompt": 1})
    with pytest.raises(BadData) as refused:
        prepare(base, training, validation, WANTED)

    found = {(problem.code, problem.param, problem.row) for problem in refused.value.problems}
    assert found == {
        ("invalid_file_format", "training_file", 12),
        ("row_too_long", "training_file", 10),
        ("no_labelled_tokens", "training_file", 11),
        ("invalid_file_format", "validation_file", 1),
    }
    (too_long,) = [problem for problem in refused.value.problems if problem.code == "row_too_long"]
    assert "Row 10 has 10" in too_long.message
    assert "512" in too_long.message


def test_too_few_rows_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData) as refused:
        prepared(base, tmp_path, 9)
    assert refused.value.problems[0].code == "invalid_n_examples"


def test_an_empty_validation_file_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData) as refused:
        prepared(base, tmp_path, 12, validation=0)
    assert refused.value.problems[0].param == "validation_file"


def test_without_a_validation_file_rows_are_held_out_and_not_trained_on(base: Path, tmp_path: Path) -> None:
    data = prepared(base, tmp_path, 60)

    assert data.held_out_from_training
    assert (len(data.training), len(data.evaluation)) == (54, 6)
    assert {one.row for one in data.training}.isdisjoint(one.row for one in data.evaluation)


def test_with_a_validation_file_all_training_rows_are_trained_on(base: Path, tmp_path: Path) -> None:
    data = prepared(base, tmp_path, 20, validation=3)

    assert not data.held_out_from_training
    assert (len(data.training), len(data.evaluation)) == (20, 3)
    assert data.tokens > data.labelled_tokens > 0


def test_a_long_validation_file_is_sampled_and_that_is_said(base: Path, tmp_path: Path) -> None:
    data = prepared(base, tmp_path, 10, validation=MAX_EVALUATION_ROWS + 20)

    assert len(data.evaluation) == MAX_EVALUATION_ROWS
    assert any("500 of 520" in warning for warning in data.warnings)


def test_special_tokens_in_texts_are_a_warning(base: Path, tmp_path: Path) -> None:
    training = write(tmp_path / "train.jsonl", *(pair(i) for i in range(10)), pair(10, "say <|im_start|>"))
    warnings = prepare(base, training, None, WANTED).warnings

    assert any("rows 11" in warning for warning in warnings)


def test_a_job_can_be_stopped_while_rows_are_rendered(base: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    training = write(tmp_path / "train.jsonl", *(pair(index) for index in range(300)))
    with pytest.raises(Stop):
        prepare(base, training, None, WANTED, stop)
