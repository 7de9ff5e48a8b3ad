"""Owns which model answers to a name, and that a deployment goes over to other models when those are ready.

It must not know engines or how names are learnt.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from tunesmith_inference.errors import model_not_found
from tunesmith_inference.router import Deployment, Names, Servable, route


class Switch:
    """What each deployment stands for in this gateway. `is_ready` says whether a model would answer at once."""

    def __init__(self, is_ready: Callable[[Servable], bool]) -> None:
        self._is_ready = is_ready
        self._serving: dict[tuple[str, str], Deployment] = {}

    def route(self, names: Names, name: str, project_id: str, end_user: str | None) -> Servable:
        """What `name` means for `project_id`; raises 404 model_not_found.

        Requests go to a deployment's models by weight; those of one end user to the same one.
        """
        wanted = names.deployments.get((project_id, name))
        if wanted is None:
            return route(names.models, name, project_id)
        weighted = [(model, weight) for model, weight in names.behind(self._current(names, wanted)) if weight]
        if not weighted:
            raise model_not_found(name)
        point = _point(project_id, name, end_user) * sum(weight for _, weight in weighted)
        for model, weight in weighted:
            point -= weight
            if point < 0:
                return model
        return weighted[-1][0]

    def follow(self, names: Names) -> None:
        """Takes the deployments that exist now; a new one answers with what it stands for when it is first seen."""
        self._serving = {key: self._serving.get(key, wanted) for key, wanted in names.deployments.items()}

    def _current(self, names: Names, wanted: Deployment) -> Deployment:
        """The version that answers: `wanted`, or the one before it while a model of `wanted` is not ready."""
        key = (wanted.project_id, wanted.name)
        serving = self._serving.get(key)
        if serving is not None and serving.version < wanted.version and self._must_wait(names, serving, wanted):
            return serving
        self._serving[key] = wanted
        return wanted

    def _must_wait(self, names: Names, serving: Deployment, wanted: Deployment) -> bool:
        if not any(weight for _, weight in names.behind(serving)):
            return False
        return not all(self._is_ready(model) for model, weight in names.behind(wanted) if weight)


def _point(project_id: str, name: str, end_user: str | None) -> float:
    """Where a request falls, from 0 up to but not including 1."""
    if end_user is None:
        return random.random()  # noqa: S311  # shares requests out, no secret
    text = "\0".join((project_id, name, end_user)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48
