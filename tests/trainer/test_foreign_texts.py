"""What lies beside uploaded weights says what the base's does, however it is written; stop tokens are the base's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith_trainer.errors import BadData
from tunesmith_trainer.foreign_texts import require_same_texts

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
NFC = {"type": "NFC"}
SPACES = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
Send = Callable[..., None]
STOPS = [2]


@pytest.fixture
def send(base: Path, tmp_path: Path) -> Send:
    """Holds parts of a tokenizer.json against others; the rest of the two is the same."""

    def check(sent: dict[str, Any], own: dict[str, Any]) -> None:
        document = json.loads((base / "tokenizer.json").read_text())
        parts = {key: value for key, value in document.items() if key not in ("normalizer", "pre_tokenizer")}
        for name, changes in (("base", own), ("sent", sent)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "tokenizer.json").write_text(json.dumps(parts | changes))
        require_same_texts(tmp_path / "sent", tmp_path / "base", STOPS)

    return check


@pytest.mark.parametrize(
    ("sent", "own"),
    [
        ({}, {"normalizer": NFC, "pre_tokenizer": BYTES}),
        ({"normalizer": None, "pre_tokenizer": dict(reversed(BYTES.items()))}, {"pre_tokenizer": BYTES}),
        ({"pre_tokenizer": BYTES | {"trim_offsets": False}}, {"pre_tokenizer": BYTES}),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}},
            {"pre_tokenizer": BYTES},
        ),
        ({"normalizer": {"type": "Sequence", "normalizers": [NFC]}}, {"normalizer": NFC}),
        ({"normalizer": {"type": "Sequence", "normalizers": []}}, {"normalizer": None}),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES]}}, {"pre_tokenizer": BYTES}),
        (
            {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "str_rep": "▁", "add_prefix_space": True}},
            {"pre_tokenizer": SPACES},
        ),
    ],
)
def test_the_same_steps_written_otherwise_pass(send: Send, sent: dict[str, Any], own: dict[str, Any]) -> None:
    send(sent, own)


@pytest.mark.parametrize(
    ("sent", "own", "named"),
    [
        ({"normalizer": {"type": "Lowercase"}}, {}, "normalizer"),
        ({"normalizer": None}, {"normalizer": NFC}, "normalizer"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}},
            {"pre_tokenizer": BYTES},
            "pre_tokenizer",
        ),
        ({"pre_tokenizer": BYTES | {"use_regex": False}}, {"pre_tokenizer": BYTES}, "pre_tokenizer"),
        ({"pre_tokenizer": BYTES | {"add_prefix_space": True}}, {"pre_tokenizer": BYTES}, "pre_tokenizer"),
        ({"pre_tokenizer": SPACES | {"prepend_scheme": "first"}}, {"pre_tokenizer": SPACES}, "pre_tokenizer"),
        ({"pre_tokenizer": ["x"]}, {"pre_tokenizer": BYTES}, "pre_tokenizer"),
        ({"pre_tokenizer": {"type": ["x"]}}, {"pre_tokenizer": BYTES}, "pre_tokenizer"),
    ],
)
def test_texts_that_are_split_otherwise_are_refused(
    send: Send, sent: dict[str, Any], own: dict[str, Any], named: str
) -> None:
    with pytest.raises(BadData, match=f"{named} in tokenizer.json is not the base model's") as refused:
        send(sent, own)
    assert refused.value.problems[0].code == "tokenizer_differs"


@pytest.fixture
def folders(base: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An upload's folder, still empty, and that of a base that stops at 2."""
    (tmp_path / "sent").mkdir()
    own = Path(shutil.copytree(base, tmp_path / "base"))
    (own / "generation_config.json").write_text(json.dumps({"eos_token_id": STOPS}))
    return tmp_path / "sent", own


def tell(folder: Path, **stops: Any) -> None:
    for name, stop in stops.items():
        (folder / f"{name}.json").write_text(json.dumps({"eos_token_id": stop}))


@pytest.mark.parametrize(
    "stops",
    [
        {},
        {"config": None, "generation_config": None},
        {"config": 2},
        {"config": [2]},
        {"generation_config": 2},
        {"config": 7, "generation_config": [2]},  # libraries stop where the latter says
    ],
)
def test_stop_tokens_of_the_base_pass(folders: tuple[Path, Path], stops: dict[str, Any]) -> None:
    tell(folders[0], **stops)
    require_same_texts(*folders, STOPS)


def test_a_base_need_not_name_all_its_stop_tokens_in_its_config(folders: tuple[Path, Path]) -> None:
    """Many that were tuned to chat stop elsewhere than their config.json says; a copy of it is no difference."""
    config = json.loads((folders[1] / "config.json").read_text())
    (folders[1] / "config.json").write_text(json.dumps(config | {"eos_token_id": 0}))
    tell(folders[0], config=0)
    require_same_texts(*folders, STOPS)


@pytest.mark.parametrize(
    "stops",
    [
        {"config": 0},
        {"config": 2, "generation_config": [2, 7]},
        {"generation_config": 0},
        {"generation_config": "</s>"},
        {"generation_config": [[2]]},
        {"generation_config": list(range(100_000))},
    ],
)
def test_other_stop_tokens_are_refused(folders: tuple[Path, Path], stops: dict[str, Any]) -> None:
    tell(folders[0], **stops)
    with pytest.raises(BadData, match=r"the base's own stop tokens, \[2\]") as refused:
        require_same_texts(*folders, STOPS)
    (problem,) = refused.value.problems
    assert (problem.code, problem.param) == ("stop_tokens_differ", "file")
    assert len(problem.message) < 600
