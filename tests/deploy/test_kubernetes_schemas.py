"""What the overlays render to is what Kubernetes and KEDA have published schemas for, without a field of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.deploy.manifests import OVERLAYS, rendered

OLDEST, NEWEST = "1.31", "1.37"
"""What `deploy/README.md` promises, and the newest that the schemas' package knows."""


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str, version: str) -> None:
    for thing in rendered(overlay).objects:
        if thing["apiVersion"] == "keda.sh/v1alpha1":
            jsonschema.Draft202012Validator(keda_schema()).validate(thing)
        else:
            kubernetes_validate.validate(thing, version, strict=True)


def test_a_misspelt_field_is_found() -> None:
    (gateway,) = rendered("replicas").of_kind("ScaledObject")
    wrong = gateway | {"spec": gateway["spec"] | {"maxReplicas": 8}}
    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        jsonschema.Draft202012Validator(keda_schema()).validate(wrong)
    (server,) = rendered("replicas").of_kind("Deployment")
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(server | {"spec": server["spec"] | {"replica": 3}}, NEWEST, strict=True)


def test_objects_are_told_apart_by_kind_and_name() -> None:
    for overlay in OVERLAYS:
        names = [(thing["kind"], thing["metadata"]["name"]) for thing in rendered(overlay).objects]
        assert len(names) == len(set(names)), overlay
        namespaces = {thing["metadata"].get("namespace") for thing in rendered(overlay).objects}
        assert namespaces == {None, "tunesmith"}, overlay


def keda_schema() -> dict[str, Any]:
    """KEDA's own schema of a ScaledObject, with every object closed."""
    schema: dict[str, Any] = json.loads(Path(__file__).with_name("keda_scaledobject.json").read_text())
    return closed(schema)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    shut = dict(schema)
    if "properties" in schema:
        shut["properties"] = {name: closed(inner) for name, inner in schema["properties"].items()}
        shut["additionalProperties"] = False
    if "items" in schema:
        shut["items"] = closed(schema["items"])
    return shut
