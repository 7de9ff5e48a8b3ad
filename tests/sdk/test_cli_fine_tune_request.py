"""The options of `tunesmith fine-tunes create` and `estimate`: what they send and refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sdk.test_cli import MODEL, Run, rows, run
from tests.support.fake_api import FakeApi

__all__ = ["rows", "run"]

EVERY_OPTION = (
    "--validation-file file-7 --suffix tickets --seed 3 --n-epochs 2 --batch-size 4 --weights lora "
    "--learning-rate-multiplier 0.5 --lora-rank 8 --lora-alpha 16 --long-rows cut --rslora "
    "--lora-targets attention --lora-targets up_proj "
    "--early-stopping-patience 2 "
    "--metadata team=support --metadata a=b=c --wandb-project tickets --mlflow-experiment support"
)
EVERYTHING = {
    "model": MODEL,
    "training_file": "file-1",
    "validation_file": "file-7",
    "suffix": "tickets",
    "seed": 3,
    "method": {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}},
    },
    "training": {
        "weights": "lora",
        "lora_rank": 8,
        "lora_alpha": 16.0,
        "lora_targets": ["attention", "up_proj"],
        "use_rslora": True,
        "long_rows": "cut",
        "early_stopping_patience": 2,
    },
    "metadata": {"team": "support", "a": "b=c"},
    "integrations": [
        {"type": "wandb", "wandb": {"project": "tickets"}},
        {"type": "mlflow", "mlflow": {"experiment": "support"}},
    ],
}
"""What these make."""


@pytest.mark.parametrize("verb", ["create", "estimate"])
def test_every_option_arrives(run: Run, api: FakeApi, rows: Path, verb: str) -> None:
    assert run("fine-tunes", verb, rows, "--model", MODEL, *EVERY_OPTION.split()).exit_code == 0
    assert api.received[-1].json == EVERYTHING


def test_numbers_may_be_left_to_the_server(run: Run, api: FakeApi, rows: Path) -> None:
    numbers, training = ("n-epochs", "batch-size", "learning-rate-multiplier", "beta"), ("lora-rank", "lora-alpha")
    options = [part for name in (*numbers, *training) for part in (f"--{name}", "auto")]
    stopping = ("--early-stopping-patience", "auto")
    assert run("fine-tunes", "create", rows, "--model", MODEL, *options, *stopping).exit_code == 0
    sent = api.received[-1].json
    assert set(sent["method"]["supervised"]["hyperparameters"].values()) == {"auto"}
    assert sent["training"] == dict.fromkeys(("lora_rank", "lora_alpha", "early_stopping_patience"), "auto")
    assert run("fine-tunes", "estimate", rows, "--model", MODEL, *options, *stopping).exit_code == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--learning-rate-multiplier", "nan"),
        ("--beta", "inf"),
        ("--lora-alpha", "much"),
        ("--n-epochs", "2.5"),
        ("--batch-size", "Auto"),
    ],
)
def test_what_is_no_number(run: Run, api: FakeApi, option: str, value: str) -> None:
    result = run("fine-tunes", "create", "file-1", "--model", MODEL, option, value)
    assert result.exit_code == 2
    assert option in result.stderr
    assert f"'{value}' is neither a " in result.stderr
    assert api.received == []
