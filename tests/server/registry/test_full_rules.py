"""What a model's config.json must not have is said with what to do; `test_foreign_models.py` has the other rules."""

from __future__ import annotations

from tunesmith_server.registry.full_rules import full_problems
from tunesmith_server.registry.safetensors_header import Tensor


def test_a_model_that_names_code_of_its_own_is_told_what_suffices() -> None:
    config = {"model_type": "phi3", "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}}

    (problem,) = full_problems(config, {"a": Tensor("F32", (1,))})

    assert problem.code == "config_has_code"
    assert "Where transformers knows the model_type by itself, delete that key" in problem.message
