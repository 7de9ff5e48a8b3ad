"""Owns getting a base model into memory: on which device, in which dtype.
Must not know data, losses or the control plane."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import is_accelerate_available

from tunesmith_trainer import attention, four_bit_linear, processor_linear
from tunesmith_trainer.base_model import unsupported
from tunesmith_trainer.base_shapes import decoder_layers
from tunesmith_trainer.errors import InfrastructureFailed, Problem
from tunesmith_trainer.gpus import FIRST_WITH_BFLOAT16, visible_gpus
from tunesmith_trainer.processor import choose_cpu_dtype
from tunesmith_trainer.products import uses_onednn

CPU_PACK_TOKENS, GPU_PACK_TOKENS = 1024, 16_384

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# As safetensors names them. The control plane takes no wider ones than float32.
_STORED_DTYPES = {
    "F64": torch.float32,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where the run computes. `pack_tokens` is the size of a micro-batch that keeps the device busy."""

    device: torch.device
    dtype: str  # float32 | bfloat16
    pack_tokens: int
    reason: str


def choose_hardware(dtype: str | None = None) -> Hardware:
    """Picks the device, and the dtype that it multiplies fastest unless one is given (as when resuming).

    Raises InfrastructureFailed where there is a GPU that torch cannot use: on the processor the run would take days.
    """
    gpu = torch.cuda.is_available()
    if not gpu and (gpus := visible_gpus()):
        message = (
            f"There is a GPU ({gpus[0].name}) that torch {torch.__version__} cannot use. Bring the driver up to date, "
            "take the GPU build (`make install`), or hide the GPU by an empty CUDA_VISIBLE_DEVICES."
        )
        raise InfrastructureFailed(Problem("gpu_unusable", message))
    device, pack_tokens = (torch.device("cuda"), GPU_PACK_TOKENS) if gpu else (torch.device("cpu"), CPU_PACK_TOKENS)
    if dtype is not None:
        return Hardware(device, dtype, pack_tokens, "as before the run was resumed")
    if not gpu:
        dtype, _, reason = choose_cpu_dtype()
    elif torch.cuda.get_device_capability()[0] >= FIRST_WITH_BFLOAT16:
        dtype, reason = "bfloat16", "this GPU multiplies bfloat16 natively"
    else:
        dtype, reason = "float32", "this GPU is too old for bfloat16"
    return Hardware(device, dtype, pack_tokens, reason)


def load(folder: Path, hardware: Hardware, into: torch.device | None = None) -> nn.Module:
    """Loads a model folder for training and scoring packs. Runs none of the folder's code; safetensors only.

    Its weights are left on the device `into`, unless that is None where `hardware` computes.
    """
    attention.register()
    model = _load(folder, _DTYPES[hardware.dtype], into or hardware.device, attention.NAME)
    if hardware.device.type == "cpu" and hardware.dtype == "float32" and uses_onednn():
        processor_linear.install(decoder_layers(model))
    return model


def load_in_four_bits(folder: Path, hardware: Hardware) -> nn.Module:
    """As `load`, with the weights of the decoder's linear layers in four bits, made of what the files hold.

    The whole weights are in main memory first: the device may be too small for them.
    """
    attention.register()
    model = _load(folder, _stored_dtype(folder), torch.device("cpu"), attention.NAME)
    four_bit_linear.install(decoder_layers(model), hardware.device)
    for parameter in model.parameters():  # scales are no parameters and stay in float32
        parameter.data = parameter.data.to(_DTYPES[hardware.dtype])
    return model.to(hardware.device)


def load_for_generation(folder: Path, device: torch.device, *, as_four_bits: bool = False) -> nn.Module:
    """Loads a model folder in float32, the dtype in which proofs are recorded, for `generate`.

    It is left no settings of its own for that: engines do not follow the model's repetition penalty either.
    `as_four_bits`: with the weights that `load_in_four_bits` computes with.
    """
    model = _load(folder, torch.float32, device, "eager")  # all families have it
    model.generation_config = GenerationConfig()
    if as_four_bits:
        four_bit_linear.round_weights(decoder_layers(model))
    return model


def load_as_stored(folder: Path) -> nn.Module:
    """Loads a model folder into main memory in the dtype of its files, to be changed and saved again.

    Where they hold several, in one that holds the numbers of all.
    """
    return _load(folder, _stored_dtype(folder), torch.device("cpu"), "eager")


def _stored_dtype(folder: Path) -> torch.dtype:
    """By the files' headers: config.json may tell of other weights, as that of a base does beside an upload's."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  no mapping
    dtypes = [_STORED_DTYPES[name] for name in names if name in _STORED_DTYPES]
    return functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float32


def _load(folder: Path, dtype: torch.dtype, device: torch.device, attention_name: str) -> nn.Module:
    # Straight onto a GPU, by its number, since "cuda" alone means another one to transformers where there are ranks.
    # Through main memory a proof of 8 billion weights would need 30 GiB of it beside an offloaded optimizer.
    straight = device.type == "cuda" and is_accelerate_available()
    model, loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=attention_name,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        device_map={"": torch.device("cuda", torch.cuda.current_device())} if straight else None,
    )
    if loaded["missing_keys"]:  # they would be random numbers
        raise unsupported(f"its files lack the weights {sorted(loaded['missing_keys'])[0]}")
    return cast("nn.Module", model).to(device).eval()
