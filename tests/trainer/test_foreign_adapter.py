"""Patterns by which PEFT gives modules scales of their own mean here what they mean to it."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.foreign_models import peft_adapter
from tunesmith_trainer.base_shapes import build_empty
from tunesmith_trainer.foreign_adapter import write_plain

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning",  # PEFT's own use of transformers
    "ignore:Could not find a config file in:UserWarning",  # what PEFT would ask a hub for
)


@pytest.mark.parametrize(
    "key",
    [
        "q_proj",
        "q.proj",
        "self_attn.q_proj",
        ".elf_attn.q_proj",
        "layers.1.self_attn.q_proj",
        "model.layers.0.self_attn.q_proj",
        "model.layers...self_attn.q_proj",
        "layers.0.self.attn.v_proj",
        "......",
    ],
)
def test_a_pattern_is_looked_up_as_peft_does(base: Path, tmp_path: Path, key: str) -> None:
    patterns = {key: 64, "v_proj": 32}
    theirs = peft_adapter(
        base, tmp_path, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], alpha_pattern=patterns
    )
    plain = tmp_path / "plain"
    plain.mkdir()
    write_plain(tmp_path, build_empty(base), "tiny", plain, merged=False)
    untuned = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ours = peft.PeftModel.from_pretrained(untuned, plain).eval()
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
