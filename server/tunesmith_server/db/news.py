"""Owns the word that something was committed, within one process: who waits for a row is woken at once.

It must not know what is news to whom. It only saves time: the database is the truth, since other processes write too.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy.ext.asyncio import AsyncSession

_TOPICS = "tunesmith_topics"


class News:
    """Events of asyncio by topic; the id of the row that changed is the topic."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def about(self, topic: str) -> Iterator[asyncio.Event]:
        """An event that is set after every commit that touched the topic; whoever waits clears it."""
        woken = asyncio.Event()
        self._waiting[topic].add(woken)
        try:
            yield woken
        finally:
            self._waiting[topic].discard(woken)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def announce(self, topics: Iterable[str]) -> None:
        """Wakes those who wait for one of the topics."""
        for topic in topics:
            for woken in self._waiting.get(topic, ()):
                woken.set()

    def announce_all(self) -> None:
        """Wakes everybody, so that they see that the server stops."""
        self.announce(list(self._waiting))


def tell_after_commit(session: AsyncSession, topic: str) -> None:
    """Has the topic announced once the session's transaction is committed; nothing is announced if it is not."""
    session.info.setdefault(_TOPICS, set()).add(topic)


def topics_of(session: AsyncSession) -> set[str]:
    """The topics that the session has touched."""
    topics: set[str] = session.info.get(_TOPICS, set())
    return topics
