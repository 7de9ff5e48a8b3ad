"""Owns who may touch the bytes of a revision that no row names yet: those who promote it, or the sweep, never both.

It must not know bytes. A revision that has its row, not retired, needs no
claim: nobody deletes it.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db import leases
from tunesmith_server.db.tables import RevisionRow
from tunesmith_server.errors import UnavailableError

PROMOTION_SECONDS = 6 * 3600.0
"""From the first copied byte to the commit; a slower promotion may find its bytes swept, and then starts over."""
SWEEP_SECONDS = 600.0

_PREFIX = "revision/"
_PROMOTION = "promotion"
_SWEEP = "sweep"
_RETRY_SECONDS = 2


async def begin_promotion(session: AsyncSession, revision_id: str, now: float) -> None:
    """Keeps the sweep away until the commit; promotions of the same bytes share the claim. Raises UnavailableError."""
    expires_at = now + PROMOTION_SECONDS
    if not await leases.take(session, _PREFIX + revision_id, _PROMOTION, now=now, expires_at=expires_at):
        raise _in_removal()


async def end_promotion(session: AsyncSession, revision_id: str) -> None:
    """To be called in the transaction that writes the revision's row; raises UnavailableError if it was swept."""
    name = _PREFIX + revision_id
    # Dropped and not read: whoever waits here for the sweep's own commit must then see it.
    if not await leases.drop(session, name, _PROMOTION) and await leases.holder(session, name) is not None:
        raise _in_removal()


async def begin_sweep(session: AsyncSession, revision_id: str, now: float) -> bool:
    """False when the revision has a row that somebody needs, or somebody promotes it."""
    name = _PREFIX + revision_id
    if not await leases.take(session, name, _SWEEP, now=now, expires_at=now + SWEEP_SECONDS):
        return False
    # Looked at after the claim: a promotion that committed while the claim waited for it is seen now.
    row = await session.get(RevisionRow, revision_id)
    if row is None or row.removed_at is not None:
        return True
    await leases.drop(session, name, _SWEEP)
    return False


async def end_sweep(session: AsyncSession, revision_id: str) -> None:
    """The next promotion may copy the bytes anew; one that began before the sweep is refused at its commit."""
    await leases.release(session, _PREFIX + revision_id, _SWEEP)


async def forget_old(session: AsyncSession, now: float) -> None:
    """Removes claims so old that no promotion from before them can still be under way."""
    await leases.drop_expired(session, _PREFIX, now - 2 * PROMOTION_SECONDS)


def _in_removal() -> UnavailableError:
    message = "Bytes of an earlier, unfinished try are being removed. Try again in a moment."
    return UnavailableError("revision_in_removal", message, retry_after=_RETRY_SECONDS)
