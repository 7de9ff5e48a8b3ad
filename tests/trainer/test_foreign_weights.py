"""Whole weights from outside are exactly the base model's, each once; `test_import_run.py` has what else is refused."""

import shutil
from pathlib import Path

import pytest

from tunesmith_trainer.base_shapes import build_empty
from tunesmith_trainer.errors import BadData
from tunesmith_trainer.foreign_weights import require_fitting_weights


def test_weights_that_are_in_two_files_are_refused(base: Path, tmp_path: Path) -> None:
    shutil.copyfile(base / "model.safetensors", tmp_path / "model-00001-of-00002.safetensors")
    require_fitting_weights(tmp_path, build_empty(base))
    shutil.copyfile(base / "model.safetensors", tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(BadData, match="more than one of the files") as refused:
        require_fitting_weights(tmp_path, build_empty(base))
    assert refused.value.problems[0].code == "weights_repeated"
