"""Owns `client.deployments`: names of the project's own that stand for models, by weight.
Must not know how models come about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith._blocking import BlockingResource, blocking
from tunesmith._errors import TunesmithError
from tunesmith._http import AsyncResource, Call, path_of
from tunesmith.types import (
    DeletedDeployment,
    Deployment,
    DeploymentList,
    DeploymentTarget,
    DeploymentVersion,
    DeploymentVersions,
)

Targets = str | Mapping[str, int] | Sequence[DeploymentTarget | Mapping[str, object]]
"""One model, or models with their weights: each gets its share of the sum, with 0 it is kept loaded and gets none.
Also as they travel and as deployments hold them: a list of `{"model", "weight"}`."""


class AsyncDeployments(AsyncResource):
    """Names that applications are pointed at, and that move from model to model without a change there."""

    async def create(self, name: str, targets: Targets, *, pinned: bool = False) -> Deployment:
        """Make a deployment.

        Args:
            name: what clients send as `model`: lower-case letters, digits, `.`, `_`, `-`.
            targets: what it stands for.
            pinned: the models stay loaded, also without traffic.

        Raises:
            TypeError: a target is nothing that has a model and a weight.
        """
        body = {"name": name, "targets": _wire(targets), "pinned": pinned}
        return await self._http.fetch(Deployment, Call("POST", path_of("deployments"), json=body))

    async def retrieve(self, name: str) -> Deployment:
        """Return one deployment."""
        return await self._http.fetch(Deployment, Call("GET", path_of("deployments", name)))

    async def list(self) -> Sequence[Deployment]:
        """List the project's deployments by name."""
        return (await self._http.fetch(DeploymentList, Call("GET", path_of("deployments")))).data

    async def update(self, name: str, targets: Targets | None = None, *, pinned: bool | None = None) -> Deployment:
        """Change what the name stands for; gateways go over when the new models are ready."""
        sent = {"targets": None if targets is None else _wire(targets), "pinned": pinned}
        body = {field: value for field, value in sent.items() if value is not None}
        return await self._http.fetch(Deployment, Call("POST", path_of("deployments", name), json=body))

    async def roll_back(self, name: str, version: int | None = None) -> Deployment:
        """Give the name what it stood for in an earlier version, by default in the one before.

        Raises:
            TunesmithError: there is no version before the present one.
        """
        if version is None:
            # Named, so that a request whose answer was lost can be repeated without going back and forth.
            newest = await self.versions(name, limit=2)
            if len(newest) < 2:
                raise TunesmithError(f"{name} has had one version only.", code="deployment_version_not_found")
            version = newest[1].version
        call = Call("POST", path_of("deployments", name, "rollback"), json={"version": version})
        return await self._http.fetch(Deployment, call)

    async def versions(self, name: str, *, limit: int = 20, after: int | None = None) -> Sequence[DeploymentVersion]:
        """List what the name stood for, newest first, below the version `after`."""
        call = Call("GET", path_of("deployments", name, "versions"), query={"limit": limit, "after": after})
        return (await self._http.fetch(DeploymentVersions, call)).data

    async def delete(self, name: str) -> DeletedDeployment:
        """End the name; its models stay."""
        return await self._http.fetch(DeletedDeployment, Call("DELETE", path_of("deployments", name)))


class Deployments(BlockingResource[AsyncDeployments]):
    """Names that applications are pointed at, and that move from model to model without a change there."""

    create = blocking(AsyncDeployments.create)
    retrieve = blocking(AsyncDeployments.retrieve)
    list = blocking(AsyncDeployments.list)
    update = blocking(AsyncDeployments.update)
    roll_back = blocking(AsyncDeployments.roll_back)
    versions = blocking(AsyncDeployments.versions)
    delete = blocking(AsyncDeployments.delete)


def _wire(targets: Targets) -> Sequence[Mapping[str, object]]:
    if isinstance(targets, str):
        return [{"model": targets, "weight": 1}]
    if isinstance(targets, Mapping):
        return [{"model": model, "weight": weight} for model, weight in targets.items()]
    return [_wire_target(target) for target in targets]


def _wire_target(target: DeploymentTarget | Mapping[str, object]) -> Mapping[str, object]:
    if isinstance(target, DeploymentTarget):
        # Without its state, which only the server tells.
        return {"model": target.model, "weight": target.weight}
    if isinstance(target, Mapping):
        return target
    raise TypeError(
        f'A target is {{"model": …, "weight": …}}, not {type(target).__name__}: '
        "give several models as {model: weight}."
    )
