"""Every pod is one that a namespace of the level "restricted" takes, bounded, without a secret in its manifest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.deploy.manifests import COMPONENT, KUBERNETES, OVERLAYS, Manifest, labels_of, rendered
from tunesmith._version import __version__
from tunesmith_inference.config import Settings as GatewaySettings
from tunesmith_server import serve
from tunesmith_server.config import Settings as ServerSettings

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
DRAIN = "TUNESMITH_DRAIN_SECONDS"
ENGINES_END_SECONDS = 15
BOTO3 = {"AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def test_the_namespace_takes_restricted_pods_only(overlay: str) -> None:
    (namespace,) = rendered(overlay).of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_pods_are_restricted(overlay: str) -> None:
    for name, pod in rendered(overlay).pods():
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for volume in spec.get("volumes", ()):
            assert volume.keys() - {"name"} <= VOLUMES, (name, volume)


def test_containers_are_restricted_and_write_to_volumes_only(overlay: str) -> None:
    for name, container in rendered(overlay).containers():
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert not {"privileged", "runAsUser", "procMount"} & context.keys(), name
        assert all("hostPort" not in port for port in container.get("ports", ())), name


def test_every_container_says_what_it_needs_and_may_take(overlay: str) -> None:
    for name, container in rendered(overlay).containers():
        for kind in ("requests", "limits"):
            assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"][kind].keys(), (name, kind)
        assert all("sizeLimit" in volume["emptyDir"] for volume in scratch(overlay)), name


def scratch(overlay: str) -> list[Manifest]:
    return [v for _, pod in rendered(overlay).pods() for v in pod["spec"].get("volumes", ()) if "emptyDir" in v]


def test_mounts_have_volumes_and_volumes_are_mounted(overlay: str) -> None:
    for workload in rendered(overlay).of_kind("Deployment", "StatefulSet"):
        spec = workload["spec"]["template"]["spec"]
        claims = workload["spec"].get("volumeClaimTemplates", ())
        there = {volume["name"] for volume in spec.get("volumes", ())} | {claim["metadata"]["name"] for claim in claims}
        containers = spec["containers"] + spec.get("initContainers", [])
        assert {mount["name"] for container in containers for mount in container["volumeMounts"]} == there


def test_images_have_a_version(overlay: str) -> None:
    for name, container in rendered(overlay).containers():
        assert re.fullmatch(r"[\w./-]+:(?!latest)[\w.-]+", container["image"]), name


def test_our_images_are_of_this_version(overlay: str) -> None:
    ours = {container["image"] for _, container in rendered(overlay).containers()}
    ours = {image for image in ours if image.startswith("tunesmith-")}
    ours.add(rendered(overlay).environment("server")["TUNESMITH_KUBERNETES_IMAGE"])
    device = "cpu" if overlay == "trial" else "cuda"
    wanted = {f"tunesmith-server:{__version__}"}
    wanted |= {f"tunesmith-{name}:{__version__}-{device}" for name in ("trainer", "inference")}
    assert ours == wanted


def test_the_cluster_knows_the_control_plane_by_its_account(overlay: str) -> None:
    pod = next(pod for name, pod in rendered(overlay).pods() if name == "server")
    for binding in rendered(overlay).of_kind("RoleBinding", "ClusterRoleBinding"):
        assert rendered(overlay).named(binding["roleRef"]["kind"], binding["roleRef"]["name"])
        (subject,) = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == (pod["spec"]["serviceAccountName"], "tunesmith")
    accounts = {account["metadata"]["name"] for account in rendered(overlay).of_kind("ServiceAccount")}
    assert accounts == {"server", "gateway"}
    namespace = rendered(overlay).environment("server")["TUNESMITH_KUBERNETES_NAMESPACE"]
    assert namespace == "tunesmith"


def test_only_the_control_plane_may_speak_to_the_cluster(overlay: str) -> None:
    for name, pod in rendered(overlay).pods():
        assert pod["spec"]["automountServiceAccountToken"] is (name == "server"), name
    for account in rendered(overlay).of_kind("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_no_secret_is_in_a_manifest(overlay: str) -> None:
    assert rendered(overlay).of_kind("Secret") == []
    for name, container in rendered(overlay).containers():
        for variable in container.get("env", ()):
            if re.search(r"TOKEN|PASSWORD|SECRET|API_KEY|ACCESS_KEY|DATABASE_URL", variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"], (name, variable["name"])
    for settings in rendered(overlay).of_kind("ConfigMap"):
        for name, value in settings["data"].items():
            assert not re.search(r"TOKEN|PASSWORD|SECRET|API_KEY|ACCESS_KEY|DATABASE_URL", name), name
            assert "@" not in value, f"{name} looks like a URL with a password"


def test_the_readme_makes_every_secret(overlay: str) -> None:
    readme = (KUBERNETES.parent / "README.md").read_text()
    for name, container in rendered(overlay).containers():
        for variable in container.get("env", ()):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                assert f"generic {reference['name']}" in readme, name
                assert f"--from-literal={reference['key']}=" in readme, (name, reference)


def test_the_control_plane_starts_with_its_settings(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = rendered(overlay).environment("server")
    aliases = {str(field.validation_alias) for field in ServerSettings.model_fields.values() if field.validation_alias}
    known = {f"TUNESMITH_{name.upper()}" for name in ServerSettings.model_fields} | aliases | BOTO3
    assert environment.keys() <= known
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = ServerSettings()
    assert (settings.executor, settings.host) == ("kubernetes", "0.0.0.0")
    assert settings.storage_url.startswith("s3://")
    assert settings.max_lora_rank == int(environment["TUNESMITH_MAX_LORA_RANK"])


def test_a_gateway_starts_with_its_settings(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = rendered(overlay).environment("gateway")
    assert environment.keys() <= {f"TUNESMITH_{name.upper()}" for name in GatewaySettings.model_fields}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = GatewaySettings()
    server = rendered(overlay).environment("server")
    assert settings.gateway_host == "0.0.0.0"
    assert server["TUNESMITH_GATEWAY_URL"] == f"http://gateway:{settings.gateway_port}"
    assert settings.control_plane == server["TUNESMITH_PUBLIC_GRPC_ADDRESS"]
    assert str(settings.max_lora_rank) == server["TUNESMITH_MAX_LORA_RANK"], "jobs of ranks that no engine loads"
    assert environment["TUNESMITH_SERVICE_TOKEN"] == server["TUNESMITH_SERVICE_TOKEN"]


def test_pods_have_the_time_that_their_ends_take(overlay: str) -> None:
    pods = dict(rendered(overlay).pods())
    drains = {"server": serve._DRAIN_SECONDS, "gateway": int(rendered(overlay).environment("gateway")[DRAIN])}
    for name, drain in drains.items():
        (container,) = pods[name]["spec"]["containers"]
        before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pods[name]["spec"]["terminationGracePeriodSeconds"] >= before + drain + ENGINES_END_SECONDS, name


def test_what_is_written_lies_on_volumes(overlay: str) -> None:
    for component, name in (("server", "TUNESMITH_HOME"), ("gateway", "TUNESMITH_CACHE_DIR")):
        folder = Path(rendered(overlay).environment(component)[name])
        pod = next(pod for _, pod in rendered(overlay).pods() if labels_of(pod).get(COMPONENT) == component)
        mounts = [Path(mount["mountPath"]) for mount in pod["spec"]["containers"][0]["volumeMounts"]]
        assert any(folder.is_relative_to(mount) for mount in mounts), component
        assert Path("/tmp") in mounts, component
