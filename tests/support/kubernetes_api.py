"""Owns a Kubernetes API over HTTPS as far as the executor uses it: verbs, versions, conflicts, watches, refusals.

It must not know what makes the objects change (kubernetes_cluster.py).
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.kubernetes_admission import RefusedError, Roles, admit
from tests.support.kubernetes_store import AlreadyExistsError, GoneError, Object, Store, has_labels, now

_KINDS = {"jobs": ("batch/v1", "JobList"), "pods": ("v1", "PodList")}
_FOREGROUND = "foregroundDeletion"


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request that was let through."""

    verb: str
    resource: str
    path: str
    query: dict[str, str]
    body: Object | None


@dataclass
class ApiServer:
    """Answers from a store. `read_log` gives a pod's output; the token is what callers must present."""

    store: Store
    roles: Roles
    read_log: Callable[[Object], bytes]
    token: str
    latency_seconds: float = 0.0
    timed_out: list[tuple[str, str]] = field(default_factory=list)
    """Verb and resource of requests to come that are carried out and then answered as if they had not been."""
    requests: list[Recorded] = field(default_factory=list)

    def app(self) -> Starlette:
        """The routes."""
        batch, core = "/apis/batch/v1/namespaces/{namespace}", "/api/v1/namespaces/{namespace}"
        paths = {"batch": [f"{batch}/jobs", f"{batch}/jobs/{{name}}"]}
        paths[""] = [f"{core}/{kind}{name}" for kind in ("pods", "secrets") for name in ("", "/{name}")]
        paths[""] += [f"{core}/pods/{{name}}/log", "/api/v1/nodes/{name}"]
        methods = ["GET", "POST", "PATCH", "DELETE"]
        return Starlette(
            routes=[
                Route(path, self._answering(group), methods=methods) for group, each in paths.items() for path in each
            ]
        )

    def count(self, verb: str, resource: str) -> int:
        """How many such requests there were."""
        return sum((each.verb, each.resource) == (verb, resource) for each in self.requests)

    def bodies(self, verb: str, resource: str) -> list[Object]:
        """What such requests brought."""
        return [each.body for each in self.requests if (each.verb, each.resource) == (verb, resource) and each.body]

    def _answering(self, group: str) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            await asyncio.sleep(self.latency_seconds)
            try:
                return await self._answer(group, request)
            except RefusedError as refused:
                return failure(refused.status, str(refused))

        return answer

    async def _answer(self, group: str, request: Request) -> Response:
        if request.headers.get("authorization", "").lower() != f"bearer {self.token}":
            raise RefusedError(401, "Unauthorized")
        name = request.path_params.get("name", "")
        parts = request.url.path.split("/")
        resource = "pods/log" if parts[-1] == "log" else parts[-2] if name else parts[-1]
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(request.method, "get")
        if verb == "get" and not name:
            verb = "watch" if request.query_params.get("watch") == "true" else "list"
        self.roles.check(group, resource, verb)
        content = await request.body()
        body = json.loads(content) if content else None
        recorded = Recorded(verb, resource, request.url.path, dict(request.query_params), body)
        self.requests.append(recorded)
        namespace = request.path_params.get("namespace", "")
        answer = self._carry_out(recorded, namespace, name)
        if (verb, resource) in self.timed_out:
            self.timed_out.remove((verb, resource))
            raise RefusedError(504, "Timeout: request did not complete within the allotted timeout")
        return answer

    def _carry_out(self, request: Recorded, namespace: str, name: str) -> Response:
        if request.verb == "create":
            return self._create(request, namespace)
        if request.verb == "list":
            return self._list(request)
        if request.verb == "watch":
            return self._watch(request)
        resource = request.resource.partition("/")[0]
        thing = self.store.get(resource, name, namespace)
        if thing is None:
            raise RefusedError(404, f'{resource} "{name}" not found')
        if request.resource == "pods/log":
            return self._log(thing, request.query)
        if request.verb == "patch":
            return JSONResponse(self._patch(resource, thing, request.body or {}))
        if request.verb == "delete":
            return self._delete(resource, thing, request.body or {})
        return JSONResponse(thing)

    def _create(self, request: Recorded, namespace: str) -> Response:
        thing = request.body or {}
        admit(thing)
        try:
            return JSONResponse(self.store.create(request.resource, thing, namespace), 201)
        except AlreadyExistsError as error:
            raise RefusedError(409, f'{request.resource} "{thing["metadata"]["name"]}" already exists') from error

    def _list(self, request: Recorded) -> Response:
        version, kind = _KINDS[request.resource]
        items = self.store.list(request.resource, _labels(request.query))
        metadata = {"resourceVersion": str(self.store.version)}
        return JSONResponse({"apiVersion": version, "kind": kind, "metadata": metadata, "items": items})

    def _watch(self, request: Recorded) -> Response:
        if self.store.forgets(int(request.query["resourceVersion"])):
            raise RefusedError(410, "too old resource version")
        return StreamingResponse(self._events(request), media_type="application/json")

    async def _events(self, request: Recorded) -> AsyncIterator[bytes]:
        wanted = _labels(request.query)
        try:
            async with asyncio.timeout(float(request.query["timeoutSeconds"])):
                async for change in self.store.changes(request.resource, int(request.query["resourceVersion"])):
                    if has_labels(change.object, wanted):
                        yield json.dumps({"type": change.type, "object": change.object}).encode() + b"\n"
        except TimeoutError:
            return
        except GoneError:
            status = {"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired"}
            yield json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"

    def _log(self, pod: Object, query: dict[str, str]) -> Response:
        if pod["status"].get("phase") == "Pending":
            raise RefusedError(400, f'container "{query["container"]}" in pod is waiting to start: ContainerCreating')
        lines = self.read_log(pod).splitlines(keepends=True)
        return PlainTextResponse(b"".join(lines[-int(query["tailLines"]) :]))

    def _patch(self, resource: str, thing: Object, patch: Object) -> Object:
        changed = merged(thing, patch)
        if changed.get("spec", {}).get("template") != thing.get("spec", {}).get("template"):
            raise RefusedError(422, "spec.template: field is immutable")
        return self.store.put(resource, changed)

    def _delete(self, resource: str, thing: Object, options: Object) -> Response:
        metadata = thing["metadata"]
        if options.get("preconditions", {}).get("uid", metadata["uid"]) != metadata["uid"]:
            raise RefusedError(409, "the UID in the precondition does not match")
        if resource == "jobs":
            if options.get("propagationPolicy") != "Foreground":
                raise RefusedError(422, "a Job whose pods are left behind cannot be told from one that has ended")
            metadata["finalizers"] = [_FOREGROUND]
        else:
            spared = options.get("gracePeriodSeconds", thing["spec"]["terminationGracePeriodSeconds"])
            if spared == 0:
                raise RefusedError(422, "a pod deleted with no grace is gone while it runs")
            metadata["deletionGracePeriodSeconds"] = min(spared, metadata.get("deletionGracePeriodSeconds", spared))
        metadata.setdefault("deletionTimestamp", now())
        return JSONResponse(self.store.put(resource, thing))


def merged(thing: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = copy.deepcopy(thing) if isinstance(thing, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def failure(status: int, message: str) -> Response:
    """How the API says no."""
    return JSONResponse({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message}, status)


def _labels(query: dict[str, str]) -> dict[str, str]:
    return dict(each.split("=", 1) for each in query["labelSelector"].split(","))
