from __future__ import annotations

from dataclasses import replace

import pytest

from tunesmith_inference.errors import GatewayError
from tunesmith_inference.router import Kind, Servable, route


def _servable(name: str, project: str) -> Servable:
    return Servable(name, project, Kind.ADAPTER, "a" * 64, "tiny", "b" * 64, 0, checkpoint=False)


MODELS = {model.name: model for model in (_servable("base", ""), _servable("mine", "p1"), _servable("theirs", "p2"))}


@pytest.mark.parametrize("name", ["base", "mine"])
def test_a_project_reaches_its_own_models_and_everybodys(name: str) -> None:
    assert route(MODELS, name, "p1").name == name


@pytest.mark.parametrize("name", ["theirs", "nothing", "", "r-aaaaaaaaaaaaaaaa"])
def test_unknown_and_foreign_models_look_the_same(name: str) -> None:
    with pytest.raises(GatewayError) as caught:
        route(MODELS, name, "p1")
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    assert caught.value.message == f"The model `{name}` does not exist or your key has no access to it."


def test_a_shared_model_is_reached_by_those_it_is_shared_with() -> None:
    shared = replace(_servable("theirs", "p2"), shared_with=frozenset({"p1"}))
    models = {"theirs": shared}
    assert route(models, "theirs", "p1") is shared
    with pytest.raises(GatewayError):
        route(models, "theirs", "p3")
