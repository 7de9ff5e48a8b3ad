"""Owns by which of torch's libraries a processor multiplies matrices in float32.
Must not know models, adapters or losses."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

# oneDNN's product with a transposed right side and an optional bias, as compiled models call it. Torch itself gives
# float32 to MKL, which has wide instructions for processors of its own maker only: on two cores of an AMD EPYC that has
# them oneDNN takes 0.45 of its time, on one without 1.1 times it.
_ONEDNN_NAME = "_linear_pointwise"


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left (n, k) · right (k, m) + bias (m), in left's dtype."""
    if left.dtype == torch.float32 and left.device.type == "cpu" and uses_onednn():
        made: Tensor = getattr(torch.ops.mkldnn, _ONEDNN_NAME)(left, right.t(), bias, "none", [], "")
        return made
    return left @ right if bias is None else torch.addmm(bias, left, right)


def exact_product(left: Tensor, right: Tensor) -> Tensor:
    """left (n, k) · right (k, m) in float32. GPUs do not round the sums of 16-bit numbers to 16 bits on the way."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return product(left, right).float()


@cache
def uses_onednn() -> bool:
    """Whether float32 is multiplied by oneDNN here.

    Not measured, since a resumed run has to compute as the first attempt did, to the last bit.
    """
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch
    return has_both and hasattr(torch.ops.mkldnn, _ONEDNN_NAME) and is_kept_narrow(Path("/proc/cpuinfo"))


def is_kept_narrow(cpuinfo: Path) -> bool:
    """Whether the processor has wide instructions (AVX-512) that MKL does not use, for its maker's name."""
    about = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "AuthenticAMD" in about and " avx512f " in about
