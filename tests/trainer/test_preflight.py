"""Preflight finds every problem at once and says what it decided."""

import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tests.support.tiny_model import CHATML
from tunesmith_trainer.config import LongRows, Wanted
from tunesmith_trainer.errors import BadData
from tunesmith_trainer.findings import Finding
from tunesmith_trainer.preflight import MAX_EVALUATION_ROWS, Examined, Prepared, examine, prepare

WANTED = Wanted(full_weights=False, seed=3)
ANSWER = {"role": "assistant", "content": "b"}
TOOL = {"type": "function", "function": {"name": "f"}}


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def pair(index: int, answer: str = "yes") -> dict[str, str]:
    return {"prompt": f"Is {index} a number?", "completion": answer}


def chat(*messages: dict[str, object]) -> dict[str, object]:
    """A chat row that ends with an answer unless one is given."""
    has_answer = any(message["role"] == "assistant" and message.get("weight") == 0 for message in messages[1:])
    return {"messages": [*messages, *([] if has_answer else [ANSWER])]}


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
    assert any("6 training rows are held out for evaluation; scores on so few say little" in one for one in data.notes)


@pytest.mark.parametrize(("distinct", "copies", "kept", "held"), [(50, 2, 90, 5), (1, 12, 11, 1), (2, 20, 36, 4)])
def test_copies_of_rows_held_out_are_not_trained_on_unless_they_are_most_rows(
    base: Path, tmp_path: Path, distinct: int, copies: int, kept: int, held: int
) -> None:
    data = prepare(base, write(tmp_path / "train.jsonl", *map(pair, [*range(distinct)] * copies)), None, WANTED)

    trained, evaluated = ({one.token_ids.tobytes() for one in rows} for rows in (data.training, data.evaluation))
    assert (len(data.training), len(data.evaluation)) == (kept, held)
    assert trained.isdisjoint(evaluated) == (kept + held < distinct * copies)
    assert any("copies are not trained on" in note for note in data.notes) == trained.isdisjoint(evaluated)
    assert any("Copies of them are trained on" in note for note in data.notes) != trained.isdisjoint(evaluated)


@pytest.mark.parametrize("seed", range(8))
def test_beside_a_row_that_is_most_of_the_file_another_is_held_out(base: Path, tmp_path: Path, seed: int) -> None:
    rows = map(pair, [0] * 12 + [*range(1, 9)])
    data = prepare(base, write(tmp_path / "train.jsonl", *rows), None, replace(WANTED, seed=seed))

    [held] = data.evaluation
    assert len(data.training) == 19
    assert held.token_ids.tobytes() not in {one.token_ids.tobytes() for one in data.training}


def test_with_a_validation_file_all_training_rows_are_trained_on(base: Path, tmp_path: Path) -> None:
    data = prepared(base, tmp_path, 20, validation=3)

    assert not data.held_out_from_training
    assert (len(data.training), len(data.evaluation)) == (20, 3)
    assert data.tokens > data.labelled_tokens > 0


def test_a_long_validation_file_is_sampled_and_that_is_said(base: Path, tmp_path: Path) -> None:
    data = prepared(base, tmp_path, 10, validation=MAX_EVALUATION_ROWS + 20)

    assert len(data.evaluation) == MAX_EVALUATION_ROWS
    assert any("500 of 520" in note for note in data.notes)


def examined(base: Path, tmp_path: Path, *rows: object, validation: list[object] | None = None) -> Examined:
    """What is found in ten good rows and `rows`, which begin at line 11."""
    training = write(tmp_path / "train.jsonl", *(pair(index) for index in range(10)), *rows)
    held = None if validation is None else write(tmp_path / "valid.jsonl", *validation)
    return examine(base, training, held, WANTED, lambda done, all_rows: None)


def found(examined: Examined, code: str) -> Finding:
    """The only finding with this code."""
    (one,) = [finding for finding in examined.findings.listed() if finding.code == code]
    return one


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}), "unsupported_content"),
        (chat({"role": "user", "content": "a"}) | {"functions": [{"name": "f"}]}, "tools_unsupported"),
        (chat({"role": "user", "content": "a"}) | {"tools": [TOOL]}, "tools_unsupported"),
        (chat({"role": "assistant", "content": None, "tool_calls": [TOOL]}), "tools_unsupported"),
        (pair(1, " "), "empty_answer"),
        (chat({"role": "assistant", "content": "a", "weight": 0}, ANSWER | {"weight": 0}), "no_labelled_tokens"),
        (pair(1, "x" * 600), "row_too_long"),
        ({"prompt": "a"}, "invalid_file_format"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_refused_by_its_code(
    base: Path, tmp_path: Path, row: object, code: str
) -> None:
    result = examined(base, tmp_path, row)

    assert result.prepared is None
    assert [(one.code, one.severity, one.rows) for one in result.findings.listed()] == [(code, "error", (11,))]
    (reject,) = result.findings.rejects
    assert (reject.line, reject.param, reject.code, reject.action) == (11, "training_file", code, "refused")


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ("{{ raise_exception('roles must alternate') }}", "template_refused_row"),
        (CHATML.replace("<|im_end|>", ""), "stop_token_missing"),
    ],
)
def test_a_template_that_no_row_fits_is_one_finding_with_all_rows(
    base: Path, tmp_path: Path, template: str, code: str
) -> None:
    own = shutil.copytree(base, tmp_path / "own")
    (own / "chat_template.jinja").write_text(template)
    one = found(examined(own, tmp_path), code)

    assert (one.count, one.rows) == (10, tuple(range(1, 11)))
    assert "roles must alternate" in one.message or code == "stop_token_missing"


def test_rows_whose_answers_are_rendered_apart_are_a_warning(base: Path, tmp_path: Path) -> None:
    own = shutil.copytree(base, tmp_path / "own")
    thought = "+ ('<think></think>' if loop.last and message['role'] == 'assistant' else '') + message['content']"
    (own / "chat_template.jinja").write_text(CHATML.replace("+ message['content']", thought))
    ask: dict[str, object] = {"role": "user", "content": "a"}
    result = examined(own, tmp_path, chat(ask, {**ANSWER}, ask))
    one = found(result, "answers_rendered_apart")

    assert (one.severity, one.rows) == ("warning", (11,))
    assert result.training.examples[-1].token_ids.size == sum(result.training.examples[-1].documents)


def test_rows_of_a_dated_template_are_the_same_on_another_day(base: Path, tmp_path: Path) -> None:
    dated = Path(shutil.copytree(base, tmp_path / "dated"))
    (dated / "chat_template.jinja").write_text(CHATML.replace("You are a test.", "' + strftime_now('%d') + '"))
    file = write(tmp_path / "train.jsonl", *(pair(index) for index in range(10)))
    days = [replace(WANTED, day=date(2026, 3, day)) for day in (5, 6)]
    first, other = (prepare(dated, file, None, day, cache=tmp_path / "cache") for day in days)
    again = prepare(dated, file, None, days[0])

    rows = [[example.token_ids.tolist() for example in data.training] for data in (first, other, again)]
    assert rows[0] == rows[2] != rows[1]


def test_a_token_that_the_base_has_no_weights_for_is_refused(base: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(base, tmp_path / "own"))
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] - 1}))
    one = found(examined(own, tmp_path, pair(10, "yes \u00ad")), "token_unknown")

    assert (one.severity, one.rows) == ("error", (11,))


def test_names_and_first_answers_that_do_not_reach_the_model_are_told(base: Path, tmp_path: Path) -> None:
    ask: dict[str, object] = {"role": "user", "content": "a"}
    result = examined(base, tmp_path, chat(ask | {"name": "bob"}), chat({"role": "assistant", "content": "Hi"}, ask))

    assert result.prepared is not None
    assert [(one.severity, one.rows) for one in (found(result, "names_not_shown"),)] == [("warning", (11,))]
    assert [(one.severity, one.rows) for one in (found(result, "answer_without_question"),)] == [("warning", (12,))]


def test_a_row_learnt_answer_by_answer_keeps_what_is_whole_of_it_when_it_is_cut(base: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(base, tmp_path / "own"))
    thought = "+ ('<think></think>' if loop.last and message['role'] == 'assistant' else '') + message['content']"
    (own / "chat_template.jinja").write_text(CHATML.replace("+ message['content']", thought))
    turns = [{"role": "user", "content": "a"}, ANSWER, {"role": "user", "content": "word " * 200}, ANSWER]
    file = write(tmp_path / "train.jsonl", *(pair(index) for index in range(10)), {"messages": turns})
    result = examine(own, file, None, replace(WANTED, long_rows="cut"), lambda done, rows: None)

    assert found(result, "row_cut").rows == (11,)
    assert len(result.training.examples[-1].documents) == 1
    assert result.training.examples[-1].teaches


def test_a_pair_of_which_the_cut_leaves_the_same_twice_is_dropped(base: Path, tmp_path: Path) -> None:
    def row(first: str, other: str) -> dict[str, object]:
        answers = ([{"role": "assistant", "content": text}] for text in (first, other))
        return {"input": {"messages": [{"role": "user", "content": "a"}]}} | dict(
            zip(("preferred_output", "non_preferred_output"), answers, strict=True)
        )

    file = write(tmp_path / "train.jsonl", *(row(f"a{i}", "b") for i in range(10)), row("x" * 600, "x" * 600 + "y"))
    wanted = replace(WANTED, method="dpo", long_rows="cut")
    result = examine(base, file, None, wanted, lambda done, rows: None)

    assert found(result, "row_dropped").rows == (11,)
    assert len(result.training.examples) == 10


def test_special_tokens_in_texts_are_a_warning(base: Path, tmp_path: Path) -> None:
    result = examined(base, tmp_path, pair(10, "say <|im_start|>"), pair(11, "say <|im_end|>"))
    one = found(result, "special_tokens_in_text")

    assert result.prepared is not None
    assert (one.severity, one.rows, one.count) == ("warning", (11, 12), 2)
    assert "<|im_start|>" in one.message


def test_repeated_rows_and_rows_in_both_files_are_warnings(base: Path, tmp_path: Path) -> None:
    result = examined(base, tmp_path, pair(3), pair(3), validation=[pair(90), pair(4)])

    assert result.prepared is not None
    assert (found(result, "duplicate_row").rows, result.training.duplicates) == ((11, 12), 2)
    assert "row 4" in found(result, "duplicate_row").message
    both = found(result, "row_in_both_files")
    assert (both.param, both.rows) == ("validation_file", (2,))
    assert "row 5 of the training file" in both.message


def test_a_file_that_is_nearly_all_prompt_is_a_warning(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{index}" + "x" * 300, "completion": "y"} for index in range(10)]
    training = write(tmp_path / "train.jsonl", *rows)
    result = examine(base, training, None, WANTED, lambda done, all_rows: None)

    assert found(result, "few_labelled_tokens").severity == "warning"


def test_a_base_without_a_template_is_told(base: Path, tmp_path: Path) -> None:
    own = shutil.copytree(base, tmp_path / "own")
    (own / "chat_template.jinja").unlink()

    assert found(examined(own, tmp_path), "no_chat_template").severity == "warning"
    chats = examined(own, tmp_path, chat({"role": "system", "content": "a"}, {"role": "user", "content": "a"}))
    assert {(one.severity, one.param) for one in chats.findings.listed() if one.code == "no_chat_template"} == {
        ("error", "training_file"),
        ("warning", "model"),
    }


def test_numbers_out_of_range_stand_beside_what_is_wrong_with_rows(base: Path, tmp_path: Path) -> None:
    training = write(tmp_path / "train.jsonl", *(pair(index) for index in range(10)), {})
    wanted = Wanted(full_weights=False, seed=3, lora_rank=128, max_rank=64)
    result = examine(base, training, None, wanted, lambda done, all_rows: None)

    assert [one.code for one in result.findings.listed()] == ["invalid_hyperparameter", "invalid_file_format"]


def with_long_rows(base: Path, tmp_path: Path, long_rows: LongRows, good: int = 10) -> Examined:
    """`good` short rows, then one that is too long by its answer, then one that is too long by its prompt."""
    rows = [*(pair(index) for index in range(good)), pair(1, "x" * 600), {"prompt": "x" * 600, "completion": "y"}]
    training = write(tmp_path / "train.jsonl", *rows)
    wanted = Wanted(full_weights=False, seed=3, long_rows=long_rows)
    return examine(base, training, None, wanted, lambda done, all_rows: None)


def test_long_rows_can_be_cut_and_those_without_labels_left_are_dropped(base: Path, tmp_path: Path) -> None:
    result = with_long_rows(base, tmp_path, "cut")

    assert [(one.line, one.code, one.action) for one in result.findings.rejects] == [
        (11, "row_cut", "cut"),
        (12, "row_dropped", "dropped"),
    ]
    assert result.prepared is not None
    examples = {one.row: one for one in [*result.prepared.training, *result.prepared.evaluation]}
    assert set(examples) == set(range(1, 12))
    assert len(examples[11].token_ids) == len(examples[11].labelled) == 512
    assert examples[11].labelled[-1]
    assert max(result.training.lengths) > 600


def test_long_rows_can_be_dropped(base: Path, tmp_path: Path) -> None:
    result = with_long_rows(base, tmp_path, "drop")

    assert found(result, "row_dropped").rows == (11, 12)
    assert result.prepared is not None
    assert {one.row for one in [*result.prepared.training, *result.prepared.evaluation]} == set(range(1, 11))


def test_too_few_rows_after_drops_are_refused(base: Path, tmp_path: Path) -> None:
    result = with_long_rows(base, tmp_path, "drop", good=9)

    assert result.prepared is None
    assert "2 of them are left out" in found(result, "invalid_n_examples").message


def test_progress_is_told_in_rows(base: Path, tmp_path: Path) -> None:
    training = write(tmp_path / "train.jsonl", *(pair(index) for index in range(600)))
    told: list[tuple[int, int]] = []
    examine(base, training, None, WANTED, lambda done, all_rows: told.append((done, all_rows)))

    assert told == [(0, 600), (250, 600), (500, 600)]


def test_few_rows_of_many_characters_are_rendered_at_once(base: Path, tmp_path: Path) -> None:
    rows = [pair(index, "long " * 80_000 if index in (2, 5, 6, 7) else "yes") for index in range(15)]
    told: list[int] = []
    wanted = replace(WANTED, long_rows="drop")
    examine(base, write(tmp_path / "train.jsonl", *rows), None, wanted, lambda done, _: told.append(done))

    assert told == [0, 7]


def test_a_job_can_be_stopped_while_rows_are_rendered(base: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    training = write(tmp_path / "train.jsonl", *(pair(index) for index in range(300)))
    with pytest.raises(Stop):
        prepare(base, training, None, WANTED, stop)
