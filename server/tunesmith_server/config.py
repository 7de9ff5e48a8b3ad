"""Owns the control plane's settings: one frozen object, read once from the environment (`TUNESMITH_*`, trackers' own).

It must not know which process part uses a value; nothing else in this package reads the environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MEBIBYTE = 1024 * 1024


def default_cache_dir() -> Path:
    """Where base models are kept between homes: `$XDG_CACHE_HOME/tunesmith` or `~/.cache/tunesmith`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"


def default_max_lora_rank() -> int:
    """64 with a GPU, as gateways find it, else 16: on a CPU every token costs what an adapter of this rank costs."""
    has_gpu = Path("/proc/driver/nvidia/version").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
    return 64 if has_gpu else 16


class Settings(BaseSettings):
    """Every setting of the control plane. Unset URLs are derived from `home`."""

    model_config = SettingsConfigDict(
        env_prefix="TUNESMITH_", env_ignore_empty=True, frozen=True, extra="ignore", hide_input_in_errors=True
    )

    home: Path = Path("tunesmith-home")
    """Folder of the embedded database, objects, run folders and keys."""
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int = 8001
    database_url: str = ""
    """SQLAlchemy URL, `sqlite:///…` or `postgresql://…`; empty: `home`/tunesmith.db."""
    storage_url: str = ""
    """`file:///folder` or `s3://bucket/prefix`; empty: `home`/objects."""
    executor: Literal["local", "docker", "kubernetes", "slurm"] = "local"
    """Where runs run; `deploy/README.md` has a section on each."""
    docker_image: str = "tunesmith-trainer"
    docker_socket: Path = Path("/var/run/docker.sock")
    docker_network: str = "bridge"
    """What containers of runs are attached to: a network of the daemon's, `host` or `none`."""
    docker_cache_volume: str = "tunesmith-cache"
    """Where base models are kept between runs."""
    docker_memory_bytes: int | None = Field(default=None, ge=1)
    """Bound of a run's main memory; unset: that of the machine."""
    docker_process_limit: int = Field(default=4096, ge=1)
    """Processes and threads that a run may have."""
    kubernetes_namespace: str = "tunesmith"
    """Where runs run; everything that is named below is in it."""
    kubernetes_kubeconfig: Path | None = None
    """Which cluster, and as whom; unset: the one that this process is a pod of, as its service account."""
    kubernetes_image: str = "tunesmith-trainer"
    kubernetes_image_pull_secrets: tuple[str, ...] = ()
    """JSON, as the other lists and maps here."""
    kubernetes_service_account: str = ""
    kubernetes_gpu_resource: str = ""
    """The resource that one device is, such as `nvidia.com/gpu`; empty: runs ask for none."""
    kubernetes_gpu: str = Field(default="", validate_default=True)
    """What such a device is, as `nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits` says it."""
    kubernetes_cpu: str = "1"
    """What a run asks for, in Kubernetes' notation; it may use what else is free."""
    kubernetes_memory: str = "8Gi"
    """What a run asks for and is bounded by."""
    kubernetes_ephemeral_storage: str = "20Gi"
    """As the memory; checkpoints lie there until they are uploaded."""
    kubernetes_node_selector: dict[str, str] = Field(default_factory=dict)
    kubernetes_tolerations: tuple[dict[str, Any], ...] = ()
    kubernetes_priority_class: str = ""
    kubernetes_queue: str = ""
    """A LocalQueue of Kueue's; empty: runs start at once."""
    kubernetes_cache_claim: str = ""
    """A PersistentVolumeClaim for base models; empty: each run fetches its own."""
    slurm_folder: Path | None = None
    """Run folders, on a file system that all nodes have at this path; unset: `home`/runs."""
    slurm_gres: str = ""
    """The generic resource that one device is, such as `gpu`; empty: runs ask for none."""
    slurm_options: str = ""
    """Further options of sbatch, such as `--partition=gpu --time=1-0 --mem=64G`."""
    base_models: Path | None = None
    """YAML catalogue; unset: the bundled SmolLM2-135M-Instruct only."""
    cache_dir: Path = Field(default_factory=default_cache_dir)
    api_key: SecretStr | None = None
    """First key of the default project; unset: generated once and written to `home`/api_key."""
    secret_key: SecretStr | None = None
    """Signs keys, URLs and attempt tokens; unset: generated once and kept in `home`/secret_key."""
    service_token: SecretStr | None = None
    """What a gateway must present; unset: derived from the secret key."""
    public_url: str = ""
    """How trainers and gateways reach this server's HTTP port; empty: http://host:port."""
    public_grpc_address: str = ""
    """How trainers and gateways reach this server's gRPC port; empty: host:grpc_port."""
    gateway_url: str = ""
    """Where inference requests are sent on; empty: inference is off."""
    trainer_python: Path = Path(sys.executable)
    engine_python: Path | None = None
    """Interpreter of the environment that holds vLLM; unset: `.venv-engine` beside the running environment."""

    max_upload_bytes: int = 512 * MEBIBYTE
    """Bound of a file that is sent in one piece."""
    max_chunked_upload_bytes: int = 8192 * MEBIBYTE
    """Bound of a file that is sent in parts; completing it takes twice as much room in `home` for a while."""
    max_part_bytes: int = 64 * MEBIBYTE
    max_body_bytes: int = 32 * MEBIBYTE
    """Bound of every request body that is not a file upload."""
    min_training_rows: int = 10
    max_lora_rank: int = Field(default_factory=default_max_lora_rank)
    """The rank that serving engines accept; a job that asks for more is refused."""
    max_context_length: int | None = None
    """Tokens per row that serving accepts; unset: the base model's own limit."""
    max_concurrent_runs: int = 1
    """Training runs at once on a machine without GPUs, on Kubernetes and Slurm; else as many as the GPUs allow."""
    max_concurrent_preflights: int = 1
    """They run on the CPU beside training runs and take no device."""
    heartbeat_interval_seconds: int = 5
    lease_ttl_seconds: int = 60
    """A run that has been silent for so long is suspect."""
    unreachable_limit_seconds: int = 300
    """How long an executor that cannot be reached is waited for before a silent run counts as lost."""
    webhook_allow_private: bool = False
    """Lets webhooks reach private addresses and use plain http, for an intranet and for tests."""
    wandb_api_key: SecretStr | None = Field(default=None, validation_alias="WANDB_API_KEY")
    """This and the next two have the names that the trackers' own clients read (trackers/installation.py)."""
    wandb_mode: str = Field(default="", validation_alias="WANDB_MODE")
    mlflow_tracking_uri: SecretStr | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")
    leader_ttl_seconds: int = 10
    url_ttl_seconds: int = 3600
    price_per_million_tokens: float | None = Field(default=None, ge=0)
    """What estimates charge for trained tokens; unset: they name no cost."""
    price_currency: str = "USD"
    log_retention_days: int = 30
    """How long the output of ended runs is kept."""
    capture_retention_days: int = Field(default=30, ge=1)
    """How long captured chat completions are kept; the files made of them stay."""
    failpoint: str = ""
    """For tests of durability only: where this process is to be killed (failpoints.py)."""

    quota_max_jobs: int | None = Field(default=None, ge=0)
    """Jobs of a project that wait or run; this and the following are defaults that a project may override."""
    quota_max_running: int | None = Field(default=None, ge=0)
    quota_max_storage_bytes: int | None = Field(default=None, ge=0)
    quota_max_device_seconds: int | None = Field(default=None, ge=0)
    """Within 30 days."""
    quota_requests_per_minute: int | None = Field(default=None, ge=1)
    quota_tokens_per_minute: int | None = Field(default=None, ge=1)
    quota_share: float = Field(default=1.0, gt=0, le=1000)
    """A project's weight among those that wait for devices."""

    @field_validator("kubernetes_gpu")
    @classmethod
    def _names_the_gpu(cls, gpu: str, others: ValidationInfo) -> str:
        if others.data.get("kubernetes_gpu_resource") and not gpu.rpartition(",")[2].strip().isdecimal():
            raise ValueError(
                "give name and MiB of the GPU, such as 'NVIDIA H200, 143771': preflights plan for it without having one"
            )
        return gpu

    @property
    def resolved_database_url(self) -> str:
        """The database URL with the default filled in."""
        return self.database_url or f"sqlite:///{(self.home / 'tunesmith.db').resolve()}"

    @property
    def spool(self) -> Path:
        """Where bytes lie while they arrive; what is in it when a server starts, a crash left."""
        return self.home / "uploads"

    @property
    def resolved_storage_url(self) -> str:
        """The storage URL with the default filled in."""
        return self.storage_url or (self.home / "objects").resolve().as_uri()

    @property
    def resolved_public_url(self) -> str:
        """Base URL that other processes of this installation use, without a slash at the end."""
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def resolved_grpc_address(self) -> str:
        """host:port that other processes of this installation use for gRPC."""
        return self.public_grpc_address or f"{self.host}:{self.grpc_port}"
