"""Settings come from TUNESMITH_* alone, derive what is unset, and never show secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tunesmith_server.config import Settings


def test_unset_urls_follow_the_home(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "my home", port=8123, grpc_port=8124)
    assert settings.resolved_database_url == f"sqlite:///{tmp_path}/my home/tunesmith.db"
    assert settings.resolved_storage_url == f"file://{tmp_path}/my%20home/objects"
    assert settings.resolved_public_url == "http://127.0.0.1:8123"
    assert settings.resolved_grpc_address == "127.0.0.1:8124"


def test_the_environment_sets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", "postgresql://db/x")
    monkeypatch.setenv("TUNESMITH_STORAGE_URL", "s3://bucket/prefix")
    monkeypatch.setenv("TUNESMITH_PUBLIC_URL", "https://tune.example/")
    monkeypatch.setenv("TUNESMITH_MAX_UPLOAD_BYTES", "1000")
    settings = Settings()
    assert settings.resolved_database_url == "postgresql://db/x"
    assert settings.resolved_storage_url == "s3://bucket/prefix"
    assert settings.resolved_public_url == "https://tune.example"
    assert settings.max_upload_bytes == 1000


def test_lists_and_maps_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_KUBERNETES_NODE_SELECTOR", '{"pool": "gpu"}')
    monkeypatch.setenv("TUNESMITH_KUBERNETES_TOLERATIONS", '[{"key": "nvidia.com/gpu", "operator": "Exists"}]')
    monkeypatch.setenv("TUNESMITH_KUBERNETES_IMAGE_PULL_SECRETS", '["registry"]')
    settings = Settings()
    assert settings.kubernetes_node_selector == {"pool": "gpu"}
    assert settings.kubernetes_tolerations == ({"key": "nvidia.com/gpu", "operator": "Exists"},)
    assert settings.kubernetes_image_pull_secrets == ("registry",)


def test_a_cluster_with_gpus_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_KUBERNETES_GPU_RESOURCE", "nvidia.com/gpu")
    with pytest.raises(ValidationError, match=r"kubernetes_gpu\n.*name and MiB"):
        Settings()
    monkeypatch.setenv("TUNESMITH_KUBERNETES_GPU", "NVIDIA H200, 143771")
    assert Settings().kubernetes_gpu == "NVIDIA H200, 143771"


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_API_KEY", "")
    assert Settings().api_key is None


def test_settings_do_not_change_and_do_not_show_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_API_KEY", "ts-secret")
    settings = Settings()
    assert "ts-secret" not in repr(settings)
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "ts-secret"
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]  # what is to be impossible


def test_a_wrong_value_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_PORT", "ts-secret")
    with pytest.raises(ValidationError, match="port") as raised:
        Settings()
    assert "ts-secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("MAX_JOBS", "-1"), ("REQUESTS_PER_MINUTE", "0"), ("TOKENS_PER_MINUTE", "0"), ("SHARE", "0"), ("SHARE", "inf")],
)
def test_a_default_quota_has_the_bounds_of_a_projects_own(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"TUNESMITH_QUOTA_{name}", value)
    with pytest.raises(ValidationError, match=f"quota_{name.lower()}"):
        Settings()
