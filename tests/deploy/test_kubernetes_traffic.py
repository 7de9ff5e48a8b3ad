"""Who reaches whom in a cluster: probes, services and budgets hit pods, and nothing is open that need not be."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.manifests import OVERLAYS, RUN_LABELS, Manifest, labels_of, rendered, selects
from tunesmith_server.executors import kubernetes_objects
from tunesmith_server.executors.base import Launch
from tunesmith_server.executors.kubernetes_objects import PodSettings

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


def pods_of(overlay: str) -> dict[str, Manifest]:
    """Each workload's pods by its name."""
    return dict(rendered(overlay).pods())


def ports_of(pod: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for c in pod["spec"]["containers"] for port in c.get("ports", ())}


def chosen(overlay: str, selector: Manifest) -> list[str]:
    """The workloads whose pods a selector means, `run` for those of runs."""
    labels = {name: labels_of(pod) for name, pod in pods_of(overlay).items()} | {"run": RUN_LABELS}
    return [name for name, own in labels.items() if selects(selector, own)]


def test_workloads_find_their_own_pods_and_no_others(overlay: str) -> None:
    for workload in rendered(overlay).of_kind("Deployment", "StatefulSet"):
        assert chosen(overlay, workload["spec"]["selector"]) == [workload["metadata"]["name"]]


def test_policies_know_runs_by_the_labels_that_they_have(overlay: str) -> None:
    launch = Launch("attempt-a", "token", "server:8001")
    job = kubernetes_objects.job(launch, ["python3"], "secret", PodSettings(installation="i", image="trainer"))
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert labels.items() >= RUN_LABELS.items()
    assert chosen(overlay, rendered(overlay).named("NetworkPolicy", "run")["spec"]["podSelector"]) == ["run"]


def test_probes_ask_what_is_there(overlay: str) -> None:
    for name, pod in pods_of(overlay).items():
        ports = ports_of(pod)
        for container in pod["spec"]["containers"]:
            assert "readinessProbe" in container, name
            for probe in (container[key] for key in container if key.endswith("Probe")):
                if "httpGet" in probe:
                    assert probe["httpGet"]["port"] in ports, name
                    assert probe["httpGet"]["path"] == "/health", name
                elif "grpc" in probe:
                    assert probe["grpc"]["port"] in ports.values(), name
                elif "tcpSocket" in probe:
                    assert probe["tcpSocket"]["port"] in ports, name


def test_liveness_does_not_hang_on_the_database(overlay: str) -> None:
    (server,) = pods_of(overlay)["server"]["spec"]["containers"]
    assert "grpc" in server["livenessProbe"], "/health fails while the database is away, and restarts do not help"


def test_the_declared_ports_are_those_that_are_listened_on(overlay: str) -> None:
    server = rendered(overlay).environment("server")
    assert ports_of(pods_of(overlay)["server"]) == {"http": 8000, "grpc": 8001}
    assert not {"TUNESMITH_PORT", "TUNESMITH_GRPC_PORT"} & server.keys()
    gateway = rendered(overlay).environment("gateway")
    assert ports_of(pods_of(overlay)["gateway"]) == {"http": int(gateway["TUNESMITH_GATEWAY_PORT"])}
    for name in ("server", "gateway"):
        annotations = pods_of(overlay)[name]["metadata"]["annotations"]
        assert int(annotations["prometheus.io/port"]) == ports_of(pods_of(overlay)[name])["http"]
        assert (annotations["prometheus.io/scrape"], annotations["prometheus.io/path"]) == ("true", "/metrics")


def test_gateways_tell_each_other_the_address_of_their_pod(overlay: str) -> None:
    (container,) = pods_of(overlay)["gateway"]["spec"]["containers"]
    variables = {variable["name"]: variable for variable in container["env"]}
    assert variables["POD_IP"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert list(variables).index("POD_IP") < list(variables).index("TUNESMITH_GATEWAY_ADDRESS"), "or it is not put in"
    (port,) = ports_of(pods_of(overlay)["gateway"]).values()
    assert variables["TUNESMITH_GATEWAY_ADDRESS"]["value"] == f"http://$(POD_IP):{port}"


def test_services_lead_to_ports(overlay: str) -> None:
    for service in rendered(overlay).of_kind("Service"):
        spec = service["spec"]
        (name,) = chosen(overlay, {"matchLabels": spec["selector"]})
        ports = ports_of(pods_of(overlay)[name])
        assert service["metadata"]["name"] == name
        for port in spec["ports"]:
            assert ports[port["targetPort"]] == port["port"], name
        assert "type" not in spec, "the way in from outside is the ingress, with TLS"


def test_disruption_budgets_let_nodes_be_drained(overlay: str) -> None:
    budgets = rendered(overlay).of_kind("PodDisruptionBudget")
    assert [chosen(overlay, budget["spec"]["selector"]) for budget in budgets] == [["gateway"], ["server"]]
    assert all(budget["spec"]["maxUnavailable"] == 1 for budget in budgets)


def test_nothing_is_open_by_default(overlay: str) -> None:
    policy = rendered(overlay).named("NetworkPolicy", "default-deny")["spec"]
    assert policy == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_policies_mean_pods_and_ports_that_exist(overlay: str) -> None:
    for policy in rendered(overlay).of_kind("NetworkPolicy"):
        spec = policy["spec"]
        name = policy["metadata"]["name"]
        own = chosen(overlay, spec["podSelector"])
        assert own, name
        for rule in spec.get("ingress", ()):
            named(overlay, own, rule, name)
            for peer in rule.get("from", ()):
                assert chosen(overlay, peer["podSelector"]), name
        for rule in spec.get("egress", ()):
            for peer in rule.get("to", ()):
                if "podSelector" in peer:
                    named(overlay, chosen(overlay, peer["podSelector"]), rule, name)


def named(overlay: str, workloads: list[str], rule: Manifest, policy: str) -> None:
    """Asserts that the workloads exist and have a rule's ports."""
    assert workloads, policy
    for workload in workloads:
        for port in rule["ports"]:
            assert port["port"] in ports_of(pods_of(overlay)[workload]), (policy, workload)


def reachable(overlay: str, workload: str) -> list[tuple[Any, ...]]:
    """Where a workload's pods may go besides asking for names: peer and port."""
    ways = []
    for policy in rendered(overlay).of_kind("NetworkPolicy"):
        if policy["metadata"]["name"] == "names" or workload not in chosen(overlay, policy["spec"]["podSelector"]):
            continue
        for rule in policy["spec"].get("egress", ()):
            if "to" not in rule:
                ways.append(("anywhere",))
            for peer in rule.get("to", ()):
                who = chosen(overlay, peer["podSelector"]) if "podSelector" in peer else peer["ipBlock"]["cidr"]
                ways += [(*([who] if isinstance(who, str) else who), port["port"]) for port in rule["ports"]]
    return ways


def test_gateways_and_runs_reach_the_control_plane_and_the_object_store_only(overlay: str) -> None:
    store = ("object-store", "s3") if overlay == "trial" else ("192.0.2.0/24", 443)
    for workload, peers in (("gateway", [("gateway", "http")]), ("run", [])):
        assert sorted(reachable(overlay, workload), key=str) == sorted([("server", "grpc"), store, *peers], key=str)
    others = [name for name in pods_of(overlay) if name not in ("server", "gateway")]
    assert all(reachable(overlay, name) == [] for name in others)


def test_only_control_plane_and_gateway_can_be_called_by_everyone(overlay: str) -> None:
    open_to_all = {
        (workload, port["port"])
        for policy in rendered(overlay).of_kind("NetworkPolicy")
        for rule in policy["spec"].get("ingress", ())
        if "from" not in rule
        for workload in chosen(overlay, policy["spec"]["podSelector"])
        for port in rule["ports"]
    }
    assert open_to_all == {("server", "http"), ("server", "grpc"), ("gateway", "http")}
