"""Owns what users can do with webhook endpoints and deliveries.

It must not know transports, nor when messages are sent: delivery.py does that.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import Principal, Signer
from tunesmith_server.core import Core
from tunesmith_server.db.tables import OutboxRow, WebhookDeliveryRow, WebhookEndpointRow
from tunesmith_server.errors import ConflictError, InvalidRequestError, NotFoundError
from tunesmith_server.ids import new_id
from tunesmith_server.paging import check_limit, is_id, unknown_cursor
from tunesmith_server.webhooks import repository
from tunesmith_server.webhooks.messages import event_body
from tunesmith_server.webhooks.schemas import (
    OFFERED_EVENT_TYPES,
    CreateEndpoint,
    DeliveryObject,
    DeliveryPage,
    EndpointObject,
    EndpointPage,
    EndpointTestResult,
    EndpointWithSecret,
    RotateSecret,
    SendTest,
    UpdateEndpoint,
)
from tunesmith_server.webhooks.sender import WebhookSender
from tunesmith_server.webhooks.signing import endpoint_secret, hint, signed_headers

MAX_ENDPOINTS = 20
"""Per project: each event is sent to all that asked for it."""

_OLD_SECRET_SECONDS = 24 * 3600
_TEST_SUBJECT = "ftjob-test"


class WebhooksService:
    """Endpoints of one project at a time."""

    def __init__(self, core: Core, sender: WebhookSender) -> None:
        self._core = core
        self._sender = sender

    async def create(self, principal: Principal, request: CreateEndpoint) -> EndpointWithSecret:
        """Makes an endpoint and shows its secret, once; raises InvalidRequestError, also for a refused target."""
        _check_text(request.name, request.url)
        _check_event_types(request.event_types)
        async with self._core.database.read() as session:
            await _require_room(session, principal)
        await self._sender.check(request.url)
        now = int(self._core.clock())
        row = WebhookEndpointRow(
            id=new_id("whe_"),
            project_id=principal.project_id,
            name=request.name,
            url=request.url,
            event_types=_distinct(request.event_types),
            secret_version=1,
            created_at=now,
            updated_at=now,
        )
        async with self._core.database.write() as session:
            await _require_room(session, principal)
            session.add(row)
        return self._with_secret(row)

    async def get(self, principal: Principal, endpoint_id: str) -> EndpointObject:
        """One endpoint; raises NotFoundError."""
        async with self._core.database.read() as session:
            return self._shown(await _require(session, principal, endpoint_id))

    async def list(self, principal: Principal, *, after: str | None = None, limit: int = 20) -> EndpointPage:
        """Endpoints, newest first; raises InvalidRequestError for a bad cursor."""
        check_limit(limit)
        async with self._core.database.read() as session:
            cursor = None
            if after is not None:
                cursor = await _find(session, principal, after)
                if cursor is None:
                    raise unknown_cursor(after)
            rows = await repository.list_endpoints(session, principal.project_id, after=cursor, limit=limit + 1)
        data = [self._shown(row) for row in rows[:limit]]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return EndpointPage(data=data, first_id=first, last_id=last, has_more=len(rows) > limit)

    async def update(self, principal: Principal, endpoint_id: str, request: UpdateEndpoint) -> EndpointObject:
        """Changes what was sent; raises NotFoundError or InvalidRequestError."""
        changes: dict[str, Any] = {name: value for name, value in request.model_dump().items() if value is not None}
        _check_text(request.name, request.url)
        if request.event_types is not None:
            _check_event_types(request.event_types)
            changes["event_types"] = _distinct(request.event_types)
        # Before the host is looked up, so that strangers' ids and one's own are not told apart by the time it takes.
        await self.get(principal, endpoint_id)
        if request.url is not None:
            await self._sender.check(request.url)
        return self._shown(await self._change(principal, endpoint_id, changes))

    async def delete(self, principal: Principal, endpoint_id: str) -> None:
        """Ends an endpoint and what waits to be sent to it; raises NotFoundError."""
        now = int(self._core.clock())
        async with self._core.database.write() as session:
            endpoint = await _require(session, principal, endpoint_id)
            endpoint.deleted_at = now
            await repository.give_up_all(session, endpoint.id, now)

    async def rotate_secret(self, principal: Principal, endpoint_id: str, request: RotateSecret) -> EndpointWithSecret:
        """Gives the endpoint another secret and shows it, once; the old one may sign as well for another day."""
        now = int(self._core.clock())
        async with self._core.database.write() as session:
            endpoint = await _require(session, principal, endpoint_id)
            keep = request.keep_old_secret_active_for_24_hours
            changes = {
                "secret_version": endpoint.secret_version + 1,
                "old_secret_until": now + _OLD_SECRET_SECONDS if keep else None,
                "updated_at": now,
            }
            if not await repository.change_endpoint(session, endpoint, changes):
                message = "Another call changed this endpoint's secret at the same moment. Ask again for a new one."
                raise ConflictError("webhook_endpoint_changed", message)
            return self._with_secret(await _require(session, principal, endpoint_id))

    async def test(self, principal: Principal, endpoint_id: str, request: SendTest) -> EndpointTestResult:
        """Sends a sample now and says what was answered; raises InvalidRequestError when nothing was."""
        _check_event_types([request.event_type], "event_type")
        async with self._core.database.read() as session:
            endpoint = await _require(session, principal, endpoint_id)
        now = int(self._core.clock())
        body = event_body(new_id("evt_"), request.event_type, now, _TEST_SUBJECT)
        secrets = secrets_in_force(self._core.signer, endpoint, now)
        answer = await self._sender.post(endpoint.url, signed_headers(new_id("wh_"), now, body, secrets), body)
        if answer.status is None:
            raise InvalidRequestError("webhook_test_failed", f"The test could not be delivered. {answer.error}")
        return EndpointTestResult(
            webhook_endpoint_id=endpoint.id, event_type=request.event_type, status_code=answer.status
        )

    async def list_deliveries(
        self, principal: Principal, endpoint_id: str, *, after: str | None = None, limit: int = 20
    ) -> DeliveryPage:
        """What was and will be sent to the endpoint, newest first; raises NotFoundError or InvalidRequestError."""
        check_limit(limit)
        async with self._core.database.read() as session:
            endpoint = await _require(session, principal, endpoint_id)
            cursor = None
            if after is not None:
                cursor = await repository.get_delivery(session, endpoint.id, after) if is_id(after) else None
                if cursor is None:
                    raise unknown_cursor(after)
            rows = await repository.list_deliveries(
                session, endpoint.id, after=cursor[0] if cursor else None, limit=limit + 1
            )
        data = [_delivery(row, news) for row, news in rows[:limit]]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return DeliveryPage(data=data, first_id=first, last_id=last, has_more=len(rows) > limit)

    async def retry_delivery(self, principal: Principal, endpoint_id: str, delivery_id: str) -> DeliveryObject:
        """Has a delivery sent again at once, under its old id; raises NotFoundError, or ConflictError meanwhile."""
        async with self._core.database.write() as session:
            endpoint = await _require(session, principal, endpoint_id)
            await _require_delivery(session, endpoint.id, delivery_id)
            if not await repository.reopen(session, delivery_id, self._core.clock()):
                message = f"The delivery {delivery_id} is being sent at this moment. Look at what comes of it first."
                raise ConflictError("webhook_delivery_in_progress", message)
            return _delivery(*await _require_delivery(session, endpoint.id, delivery_id))

    async def _change(self, principal: Principal, endpoint_id: str, changes: dict[str, Any]) -> WebhookEndpointRow:
        async with self._core.database.write() as session:
            endpoint = await _require(session, principal, endpoint_id)
            if any(getattr(endpoint, name) != value for name, value in changes.items()):
                for name, value in changes.items():
                    setattr(endpoint, name, value)
                endpoint.updated_at = int(self._core.clock())
        return endpoint

    def _shown(self, row: WebhookEndpointRow) -> EndpointObject:
        return EndpointObject(
            id=row.id,
            created_at=row.created_at,
            updated_at=row.updated_at,
            name=row.name,
            url=row.url,
            event_types=row.event_types,
            signing_secret_hint=hint(self._secret(row)),
        )

    def _with_secret(self, row: WebhookEndpointRow) -> EndpointWithSecret:
        return EndpointWithSecret(**self._shown(row).model_dump(), signing_secret=self._secret(row))

    def _secret(self, row: WebhookEndpointRow) -> str:
        return endpoint_secret(self._core.signer, row.id, row.secret_version)


def secrets_in_force(signer: Signer, endpoint: WebhookEndpointRow, now: int) -> list[str]:
    """The secrets that sign at this moment, the newest first."""
    versions = [endpoint.secret_version]
    if endpoint.old_secret_until is not None and now < endpoint.old_secret_until:
        versions.append(endpoint.secret_version - 1)
    return [endpoint_secret(signer, endpoint.id, version) for version in versions]


async def _find(session: AsyncSession, principal: Principal, endpoint_id: str) -> WebhookEndpointRow | None:
    return await repository.get_endpoint(session, principal.project_id, endpoint_id) if is_id(endpoint_id) else None


async def _require(session: AsyncSession, principal: Principal, endpoint_id: str) -> WebhookEndpointRow:
    endpoint = await _find(session, principal, endpoint_id)
    if endpoint is None:
        message = f"There is no webhook endpoint {endpoint_id[:80]!r} in this project. GET /v1/webhook_endpoints lists."
        raise NotFoundError("webhook_endpoint_not_found", message, param="webhook_endpoint_id")
    return endpoint


async def _require_room(session: AsyncSession, principal: Principal) -> None:
    if await repository.count_endpoints(session, principal.project_id) >= MAX_ENDPOINTS:
        message = f"A project may have {MAX_ENDPOINTS} webhook endpoints. Delete one that is not needed."
        raise InvalidRequestError("too_many_webhook_endpoints", message)


async def _require_delivery(
    session: AsyncSession, endpoint_id: str, delivery_id: str
) -> tuple[WebhookDeliveryRow, OutboxRow]:
    found = await repository.get_delivery(session, endpoint_id, delivery_id) if is_id(delivery_id) else None
    if found is None:
        message = f"The endpoint {endpoint_id} has no delivery {delivery_id[:80]!r}."
        raise NotFoundError("webhook_delivery_not_found", message, param="delivery_id")
    return found


def _delivery(row: WebhookDeliveryRow, news: OutboxRow) -> DeliveryObject:
    open_still = row.state in (repository.PENDING, repository.SENDING)
    return DeliveryObject(
        id=row.id,
        created_at=row.created_at,
        webhook_endpoint_id=row.endpoint_id,
        event_id=news.id,
        event_type=news.type,
        data={"id": news.subject_id},
        status="pending" if open_still else "delivered" if row.state == repository.DELIVERED else "given_up",
        attempts=row.attempts,
        next_attempt_at=int(row.not_before) if row.state == repository.PENDING else None,
        last_status_code=row.last_status,
        last_error=row.last_error,
        finished_at=row.finished_at,
    )


def _check_event_types(event_types: list[str], param: str = "event_types") -> None:
    unknown = [name for name in event_types if name not in OFFERED_EVENT_TYPES]
    if unknown:
        message = f"The event type {unknown[0]!r} is not sent here. Choose of: {', '.join(OFFERED_EVENT_TYPES)}."
        raise InvalidRequestError("unsupported_event_type", message, param=param)


def _check_text(name: str | None, url: str | None) -> None:
    for param, text in (("name", name), ("url", url)):
        if text is not None and not text.isprintable():
            message = f"`{param}` may hold printable characters only."
            raise InvalidRequestError("invalid_value", message, param=param)


def _distinct(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))
