"""Products in float32: the same numbers by either library."""

from pathlib import Path

import pytest
import torch

from tunesmith_trainer import products

_LEFT, _RIGHT = torch.randn(7, 33), torch.randn(33, 5)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize(
    ("left", "right", "bias"),
    [
        (_LEFT, _RIGHT, None),
        (_LEFT, _RIGHT, torch.randn(5)),
        (_LEFT.t(), torch.randn(7, 3), None),
        (_LEFT, torch.randn(5, 33).t(), None),
        (_LEFT[:1], _RIGHT, None),
        (_LEFT.bfloat16(), _RIGHT.bfloat16(), None),
    ],
    ids=["plain", "bias", "left transposed", "right transposed", "one row", "bfloat16"],
)
def test_it_is_the_product(
    left: torch.Tensor,
    right: torch.Tensor,
    bias: torch.Tensor | None,
    onednn: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "uses_onednn", lambda: onednn)

    made = products.product(left, right, bias)

    wanted = left.double() @ right.double() + (0 if bias is None else bias.double())
    assert made.dtype == left.dtype
    torch.testing.assert_close(
        made.double(), wanted, rtol=1e-5 if left.dtype == torch.float32 else 0.05, atol=1e-5 if bias is None else 1e-4
    )


def test_the_same_product_twice_is_the_same_to_the_last_bit() -> None:
    assert torch.equal(products.product(_LEFT, _RIGHT), products.product(_LEFT.clone(), _RIGHT.clone()))


@pytest.mark.parametrize(
    ("name", "flags", "narrow"),
    [
        ("AuthenticAMD", "fpu avx512f sha", True),
        ("AuthenticAMD", "fpu avx2", False),
        ("GenuineIntel", "avx512f", False),
    ],
)
def test_the_makers_name_and_wide_instructions_decide(tmp_path: Path, name: str, flags: str, narrow: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {name}\nflags\t\t: {flags} \n")
    assert products.is_kept_narrow(tmp_path / "cpuinfo") is narrow


def test_without_a_list_of_processors_torch_decides(tmp_path: Path) -> None:
    assert not products.is_kept_narrow(tmp_path / "absent")
