"""What streams out equals the trainer's own merge bit by bit, and says what base and adapter say together."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support import tiny_families, tiny_model
from tests.support.adapters import wake
from tunesmith_trainer import lora
from tunesmith_trainer.adapter_file import from_float32, to_float32
from tunesmith_trainer.merging import merge_stream
from tunesmith_trainer.model import load_as_stored, load_for_generation


@pytest.mark.parametrize("family", ["llama-bfloat16", *(name for name in tiny_families.FAMILIES if name != "gpt2")])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_stream_equals_the_merged_model(tmp_path: Path, family: str, use_rslora: bool) -> None:
    base = tmp_path / "base"
    if family == "llama-bfloat16":
        tiny_model.build(base)
    else:
        tiny_families.build(family, base)
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    adapter.mkdir()
    write_adapter(base, adapter, use_rslora)

    streamed = io.BytesIO()
    with (base / "model.safetensors").open("rb") as source:
        merge_stream(adapter, source, streamed)

    model = load_as_stored(base)
    lora.attach_saved(model, adapter)
    lora.merge(model)
    model.save_pretrained(merged)  # type: ignore[operator]  # transformers models have it
    assert len(streamed.getvalue()) == (base / "model.safetensors").stat().st_size
    (merged / "streamed.safetensors").write_bytes(streamed.getvalue())
    expected, found = load_file(merged / "model.safetensors"), load_file(merged / "streamed.safetensors")
    before = load_file(base / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert any(not torch.equal(before[name], found[name]) for name in before)


def test_a_merged_model_answers_as_base_and_adapter_do(tmp_path: Path) -> None:
    base, adapter = tiny_families.build("llama", tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    write_adapter(base, adapter, use_rslora=False)
    adapted = load_for_generation(base, torch.device("cpu"))
    lora.attach_saved(adapted, adapter)
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits

    content = (base / "model.safetensors").read_bytes()
    with (base / "model.safetensors").open("wb") as target:
        merge_stream(adapter, io.BytesIO(content), target)
    with torch.no_grad():
        found = load_for_generation(base, torch.device("cpu"))(input_ids=ids).logits

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_weights_that_end_early_are_refused(tmp_path: Path) -> None:
    base, adapter = tiny_model.build(tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    write_adapter(base, adapter, use_rslora=False)
    content = (base / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="end early"):
        merge_stream(adapter, io.BytesIO(content[:-1]), io.BytesIO())


def test_a_control_plane_without_torch_can_merge() -> None:
    forbid = "import sys; sys.modules.update(torch=None, transformers=None, safetensors=None)"
    subprocess.run([sys.executable, "-c", f"{forbid}; import tunesmith_trainer.merging"], check=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_are_rounded_as_torch_rounds_them(dtype: torch.dtype) -> None:
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -0.0, float("inf"), -float("inf"), 3e-41])
    values = torch.cat([ties, torch.randn(4096, generator=torch.Generator().manual_seed(0))])
    expected = values.to(dtype)
    name = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[dtype]

    content = from_float32(values.numpy(), name)

    assert content == expected.view(torch.uint8).numpy().tobytes()
    back = to_float32(content, {"dtype": name, "shape": list(values.shape)})
    assert torch.equal(torch.from_numpy(back), expected.float())
    nothing = from_float32(np.array([np.nan], dtype=np.float32), name)
    assert np.isnan(to_float32(nothing, {"dtype": name, "shape": [1]})).all()


def write_adapter(base: Path, folder: Path, use_rslora: bool) -> None:
    """An adapter of the base whose deltas are not zero."""
    model = load_as_stored(base)
    lora.attach(model, 4, 8.0, 0, use_rslora=use_rslora)
    wake(model, seed=1)
    lora.save(model, folder, "tiny")
