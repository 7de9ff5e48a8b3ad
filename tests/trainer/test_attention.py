"""Every family that is trained: packs, losses and adapters are what its own code and PEFT make of them."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tests.support import tiny_families
from tests.support.adapters import wake
from tunesmith_trainer import attention, lora
from tunesmith_trainer.base_model import read_facts
from tunesmith_trainer.base_shapes import build_empty, read_shapes, stored_shapes
from tunesmith_trainer.example import Example
from tunesmith_trainer.model import Hardware, load, load_for_generation
from tunesmith_trainer.objectives import pack_for, score
from tunesmith_trainer.packing import pack

FLOAT32 = Hardware(torch.device("cpu"), "float32", 256, "exact comparison")
LENGTHS = (30, 12, 55, 5)  # longer and shorter than the windows


@pytest.fixture(scope="module", params=tiny_families.FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one family's tiny model."""
    return tiny_families.build(request.param, tmp_path_factory.mktemp(request.param))


def rows() -> list[Example]:
    generator = np.random.default_rng(1)
    return [
        Example(index, generator.integers(3, 259, length).astype(np.int32), np.arange(length) >= 1)
        for index, length in enumerate(LENGTHS)
    ]


def alike() -> list[Example]:
    """Rows of three kinds that begin alike, some of them in more; one like none; two that are shorter than windows."""
    generator = np.random.default_rng(2)

    def made(count: int) -> list[int]:
        return [int(token) for token in generator.integers(3, 259, count)]

    first, second, strange = made(21), made(40), made(6)
    third = second + made(17)
    beginnings = (first, second, first, third, strange, third, second)
    texts = [(start, made(9 + index)) for index, start in enumerate(beginnings)]
    short = made(5)
    texts += [(short, made(4)), (short, made(4))]
    return [
        Example(index, np.array(start + rest, np.int32), np.arange(len(start + rest)) > len(start) + 2)
        for index, (start, rest) in enumerate(texts)
    ]


def eager(folder: Path) -> nn.Module:
    """The model with transformers' own attention, one document at a time."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def eager_loss(model: nn.Module, examples: list[Example]) -> torch.Tensor:
    """Cross-entropies of all rows' labelled tokens, one after the other."""
    losses = []
    for row in examples:
        ids = torch.from_numpy(row.token_ids.astype(np.int64))
        wanted = torch.from_numpy(row.labelled[1:])
        logits = model(input_ids=ids[None]).logits[0, :-1]
        losses.append(functional.cross_entropy(logits[wanted], ids[1:][wanted], reduction="none"))
    return torch.cat(losses)


def _shared(config: Any) -> int:
    """Beginnings that rows alike share here: none where scores are bounded, that of short rows where windows end."""
    if getattr(config, "attn_logit_softcapping", None):
        return 0
    return 1 if getattr(config, "sliding_window", None) else 4


@pytest.mark.parametrize("make", [rows, alike])
def test_packs_give_the_losses_and_gradients_of_documents_alone(
    family: Path, make: Callable[[], list[Example]]
) -> None:
    ours, theirs = load(family, FLOAT32), eager(family)
    (batch,) = pack_for(ours, make(), 512, apart=False)
    assert len(batch.shared) == (0 if make is rows else _shared(ours.config))
    scored = score(ours, batch)
    expected = eager_loss(theirs, make())
    scored.total.backward()  # type: ignore[no-untyped-call]  # torch
    expected.sum().backward()  # type: ignore[no-untyped-call]  # torch

    torch.testing.assert_close(scored.losses, expected, rtol=1e-4, atol=1e-5)
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own use of transformers
@pytest.mark.parametrize("targets", [(), ("attention",), ("mlp",)])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_peft_makes_the_same_of_the_adapter(
    family: Path, tmp_path: Path, targets: tuple[str, ...], use_rslora: bool
) -> None:
    model = load(family, FLOAT32)
    names = lora.attach(model, 4, 8, 1, targets, use_rslora=use_rslora)
    wake(model)
    lora.save(model, tmp_path, "tiny")
    (batch,) = pack(rows(), 256)
    ours = score(model, batch)
    theirs = peft.PeftModel.from_pretrained(eager(family), tmp_path, is_trainable=True)
    expected = eager_loss(theirs, rows())
    ours.total.backward()  # type: ignore[no-untyped-call]  # torch
    expected.sum().backward()  # type: ignore[no-untyped-call]  # torch

    torch.testing.assert_close(ours.losses, expected, rtol=1e-4, atol=1e-4)
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert len(wanted) == 2 * len(names), "PEFT adapts the same layers"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = wanted[f"base_model.model.{name}.default.weight"]
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_merged_weights_say_what_base_and_adapter_say(family: Path, tmp_path: Path) -> None:
    model = load_for_generation(family, torch.device("cpu"))
    untouched = {name: parameter.shape for name, parameter in model.named_parameters()}
    lora.attach(model, 4, 8, 1)
    wake(model)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        lora.merge(model)
        merged = model(input_ids=ids).logits
    model.save_pretrained(tmp_path)  # type: ignore[operator]  # transformers models have it
    with torch.no_grad():
        reread = eager(tmp_path)(input_ids=ids).logits

    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reread, adapted, rtol=1e-4, atol=1e-4)
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == untouched


def test_its_small_files_tell_what_the_run_needs(family: Path) -> None:
    facts = read_facts(family, 2)
    shapes = read_shapes(build_empty(family))
    stored = stored_shapes(family)

    assert (facts.hidden_size, facts.max_context_length, facts.stop_ids) == (64, 512, (2,))
    assert facts.served_merged == (facts.model_type == "gpt2")
    assert shapes.parameters == sum(torch.Size(shape).numel() for shape in stored.values())
    assert len(shapes.linears) in (3 * 4, 3 * 7)


Kernel = Callable[..., torch.Tensor]


def kernel_of_2_11(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """As torch 2.11 declares `varlen_attn`: it groups queries and has no word for it. Computed plainly."""
    assert (cu_seq_q.tolist(), max_q) == (cu_seq_k.tolist(), max_k)
    parts = []
    for start, end in pairwise(cu_seq_q.tolist()):
        q, k, v = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
        seen = torch.ones(end - start, end - start, dtype=torch.bool).tril(window_size[1])
        if window_size[0] >= 0:
            seen = seen.triu(-window_size[0])
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def kernel_since_2_12(
    query: torch.Tensor, key: torch.Tensor, *rest: Any, enable_gqa: bool = False, **named: Any
) -> Any:
    """As later ones do: they refuse groups that they were not told of."""
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError("Try setting enable_gqa=True for GQA.")
    return kernel_of_2_11(query, key, *rest, **named)


def kernel_across_documents(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **named: Any) -> Any:
    ends = torch.tensor([0, len(query)])
    return kernel_of_2_11(query, key, value, ends, ends, 0, 0, **named)


def kernel_without_windows(*parts: Any, window_size: tuple[int, int], **named: Any) -> Any:
    return kernel_of_2_11(*parts, window_size=(-1, window_size[1]), **named)


def kernel_without_scale(*parts: Any, scale: float, **named: Any) -> Any:
    return kernel_of_2_11(*parts, **named)


def kernel_that_fails(*_: Any, **_named: Any) -> Any:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def kernel_of_other_arguments(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
    raise AssertionError("it is called with more")


def kernel_that_refuses(*_: Any, **_named: Any) -> Any:
    raise ValueError("window_size is not supported.")


# Of Llama 3 8B, Qwen2.5 1.5B, SmolLM2 135M, Gemma 2B and Phi 3 mini.
SIZES = [(32, 8, 128), (12, 2, 128), (9, 3, 64), (8, 1, 256), (32, 32, 96)]


@pytest.mark.parametrize(
    ("kernel", "has_to_be_told", "is_right"),
    [
        (kernel_of_2_11, False, True),
        (kernel_since_2_12, True, True),
        (kernel_across_documents, False, False),
        (kernel_without_windows, False, False),
        (kernel_without_scale, False, False),
        (kernel_that_fails, False, False),
        (kernel_of_other_arguments, False, False),
        (kernel_that_refuses, False, False),
    ],
)
@pytest.mark.parametrize(("heads", "key_heads", "width"), SIZES)
def test_a_kernel_is_tried_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
    kernel: Kernel,
    has_to_be_told: bool,
    is_right: bool,
    heads: int,
    key_heads: int,
    width: int,
) -> None:
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_HAS_TO_BE_TOLD_OF_GROUPS", has_to_be_told)
    found = attention.kernel_is_right.__wrapped__(torch.device("cpu"), torch.bfloat16, heads, key_heads, width)
    assert found == is_right


@pytest.mark.parametrize(
    ("width", "dtype", "capability", "fits"),
    [
        (64, torch.bfloat16, (9, 0), True),
        (256, torch.float16, (8, 0), True),
        (64, torch.bfloat16, (7, 5), False),
        (100, torch.bfloat16, (9, 0), False),
        (264, torch.bfloat16, (9, 0), False),
        (64, torch.float32, (9, 0), False),
    ],
)
def test_only_what_flash_attention_takes_goes_into_its_kernel(
    monkeypatch: pytest.MonkeyPatch, width: int, dtype: torch.dtype, capability: tuple[int, int], fits: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention, "kernel_is_right", lambda *_: True)
    assert attention._fits_kernel(torch.device("cuda"), dtype, 4, 2, width) == fits
