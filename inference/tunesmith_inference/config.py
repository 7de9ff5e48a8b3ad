"""Owns the gateway's settings, all read from environment variables with the prefix TUNESMITH_.

It must not know what the settings are used for.

Engine defaults come from measurements with vLLM 0.32 on two cores, SmolLM2-135M, eight requests at once through an
adapter, counted in tokens per second of processor time and given as ratios:

* `max_lora_rank` 8 : 16 : 32 = 1.95 : 1.45 : 1. The CPU kernels copy a whole slot of that rank for every token, however
  small the adapter is, so the smallest value that covers the adapters in use is the fastest.
* two different adapters in a batch cost what one costs (1 : 1), so four slots are kept.
* one process for scheduler and model instead of the default two: start-up 0.8 : 1, processor time while idle 0.1 : 1.
* threads that sleep while they wait: beside other work two of them cost per token what one does (1 : 1); with threads
  that spin the answers took five times as long.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that the engine takes for its largest adapter rank."""

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def has_gpu() -> bool:
    """Whether an NVIDIA driver is loaded and the operator has not hidden its GPUs, by an empty CUDA_VISIBLE_DEVICES."""
    return _NVIDIA_DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def _default_kv_cache_gib(read: dict[str, Any]) -> int:
    """By `engine_device`, which is read before."""
    device = read.get("engine_device")
    return 8 if device is Device.CUDA or (device == "auto" and has_gpu()) else 1


class Device(StrEnum):
    """What engines compute on."""

    CPU = "cpu"
    CUDA = "cuda"


class Settings(BaseSettings):
    """Everything an operator can set; frozen, so that it means the same for the life of the process."""

    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", frozen=True, extra="ignore")

    control_plane: str = "127.0.0.1:8001"
    """host:port of the control plane's gRPC."""
    service_token: SecretStr = SecretStr("")
    """Bearer token of gateways."""
    cache_dir: Path = Path("~/.cache/tunesmith")
    """Models on this machine: `base_models/`, `revisions/`, and the engines' logs in `engine_logs/`."""
    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(default=8010, ge=0, le=65535)
    gateway_address: str = ""
    """URL at which other gateways reach this one, so that they share models out; empty: it works alone."""
    max_body_bytes: int = Field(default=4 * 1024 * 1024, gt=0)
    """Larger request bodies are answered with 413."""
    max_requests: int = Field(default=1024, gt=0)
    """Requests under way or waiting at once; more are answered with 503."""
    hold_seconds: float = Field(default=300.0, ge=0)
    """How long a request waits for its engine and its model before it is answered with 503."""
    drain_seconds: int = Field(default=10, ge=0)
    """How long answers may go on once the gateway was told to stop; what is not ended then is cut off."""

    moderation_url: str = ""
    """Service that is asked about every prompt and answer, in the form of OpenAI's /v1/moderations; empty: nobody."""
    moderation_api_key: SecretStr = SecretStr("")
    moderation_model: str = ""
    """Sent to it as `model`."""
    moderation_fails_open: bool = False
    """Whether texts pass while it cannot be asked; otherwise requests are answered with 503."""
    moderation_stream_characters: int = Field(default=500, gt=0)
    """Streamed answers are held until so many characters more have passed."""
    redaction_rules: Path | None = None
    """YAML list of what is taken out of captures; unset: redaction_rules.yaml beside this file."""
    redaction_url: str = ""
    """Service that is asked for the texts of captures as they may be kept, after the rules; empty: nobody."""
    redaction_api_key: SecretStr = SecretStr("")
    hook_seconds: float = Field(default=10.0, gt=0)
    """How long either service may take."""

    engine_python: Path = Path(".venv-engine/bin/python")
    """The interpreter that has vLLM."""
    engine_device: Literal["auto"] | Device = "auto"
    """`auto` takes the GPU when an NVIDIA driver is loaded and CUDA_VISIBLE_DEVICES is not empty."""
    engine_threads: int | None = Field(default=None, gt=0)
    """Threads of one CPU engine. Default: all cores this process may use."""
    max_engines: int = Field(default=2, gt=0)
    """Engines alive at once, the base model's included."""
    engine_memory_bytes: int | None = Field(default=None, gt=0)
    """Main memory that CPU engines may have together, as predicted from their weights and `kv_cache_gib`. Default: no
    bound but `max_engines`. Of a GPU each engine gets what it is predicted to need."""
    engine_idle_seconds: float = Field(default=1800.0, gt=0)
    """An engine of full weights that nobody has asked for so long is stopped; the next request starts it."""
    max_model_len: int | None = Field(default=None, gt=0)
    """Longest prompt and answer together in tokens, at most the model's own. Default: what fits into memory."""
    kv_cache_gib: int = Field(default_factory=_default_kv_cache_gib, gt=0)
    """Memory for keys and values of one engine, in GiB. Default: 8 on a GPU, else 1."""
    max_lora_rank: int = Field(default_factory=lambda: 64 if has_gpu() else 16, gt=0, le=512)
    """Largest adapter rank that can be served; rounded up to the next one the engine knows."""
    max_loras: int = Field(default=4, gt=1)
    """Different adapters in one batch; on CPU one of the slots serves the base model."""
    max_loaded_adapters: int = Field(default=32, gt=1)
    """Adapters that an engine holds in memory; the least recently used idle one goes first."""

    @field_validator("cache_dir", "engine_python")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        # Never resolved: a virtual environment's interpreter is a link that must be called by its own name.
        return value.expanduser().absolute()

    @field_validator("moderation_url", "redaction_url", "gateway_address")
    @classmethod
    def _reachable(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and not (parts.scheme in ("http", "https") and parts.hostname):
            raise ValueError("must be an http or https URL")
        return value

    @field_validator("max_lora_rank")
    @classmethod
    def _on_the_ladder(cls, value: int) -> int:
        return next(rank for rank in LORA_RANKS if rank >= value)

    @property
    def device(self) -> Device:
        """What engines compute on, with `auto` resolved."""
        if self.engine_device != "auto":
            return self.engine_device
        return Device.CUDA if has_gpu() else Device.CPU
