"""Several of each: what scales is not held back by its manifest, follows series that exist, and is reached by TLS."""

from __future__ import annotations

from tests.deploy.manifests import Manifest, labels_of, rendered, selects
from tests.deploy.metric_names import named_in, series
from tunesmith_server.inference_proxy import ROUTES

REPLICAS = rendered("replicas")


def test_gateways_are_as_many_as_the_wait_asks_for() -> None:
    (scaled,) = REPLICAS.of_kind("ScaledObject")
    target = scaled["spec"]["scaleTargetRef"]
    workload = REPLICAS.named(target["kind"], target["name"])
    assert "replicas" not in workload["spec"], "whoever applies this again would set the number back"
    assert 2 <= scaled["spec"]["minReplicaCount"] < scaled["spec"]["maxReplicaCount"]


def test_scaling_asks_for_series_that_exist() -> None:
    (scaled,) = REPLICAS.of_kind("ScaledObject")
    for trigger in scaled["spec"]["triggers"]:
        asked = named_in(trigger["metadata"]["query"])
        assert asked, trigger
        assert asked <= series()


def test_control_planes_are_several_and_apart() -> None:
    server = REPLICAS.named("Deployment", "server")
    assert server["spec"]["replicas"] > 1
    for _, pod in REPLICAS.pods():
        spread = pod["spec"]["topologySpreadConstraints"]
        assert {one["topologyKey"] for one in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        for one in spread:
            assert selects(one["labelSelector"], labels_of(pod))
            assert set(one["matchLabelKeys"]) <= labels_of(pod).keys()


def test_the_way_in_has_tls_and_leads_to_the_api_only() -> None:
    (ingress,) = REPLICAS.of_kind("Ingress")
    (rule,) = ingress["spec"]["rules"]
    (tls,) = ingress["spec"]["tls"]
    assert tls["hosts"] == [rule["host"]]
    ways = {(path["path"], path["pathType"]): backend(path) for path in rule["http"]["paths"]}
    assert ways == {(route, "Exact"): "gateway" for route in ROUTES} | {("/v1", "Prefix"): "server"}


def backend(path: Manifest) -> str:
    service = path["backend"]["service"]
    ports = REPLICAS.named("Service", service["name"])["spec"]["ports"]
    assert service["port"]["name"] in {port["name"] for port in ports}
    return str(service["name"])
