"""The other gateways as one gateway knows them: who is asked for a model, and what is left to them."""

from __future__ import annotations

import pytest

from tests.support.clock import MovableClock
from tunesmith_inference.circuits import Circuits
from tunesmith_inference.peers import Peers
from tunesmith_inference.placement import Peer
from tunesmith_inference.router import Kind, Servable

BASE = "b" * 64
MODEL = Servable("ft:1", "p", Kind.ADAPTER, "1" * 64, "base", BASE, 0, checkpoint=False)
HERE = Peer("here", "http://here", ready=frozenset({BASE}))
HOLDER = Peer("holder", "http://holder", ready=frozenset({BASE, MODEL.revision}))
OTHER = Peer("other", "http://other", in_flight=5, ready=HOLDER.ready)


@pytest.fixture
def circuits() -> Circuits:
    return Circuits(MovableClock(0.0))


@pytest.fixture
def peers(circuits: Circuits) -> Peers:
    return Peers(lambda: HERE, circuits, alone=False)


def test_before_others_could_be_heard_of_only_base_models_are_for_this_gateway(peers: Peers) -> None:
    base = Servable("base", "", Kind.BASE, BASE, "base", BASE, 0, checkpoint=False)
    assert (peers.elsewhere()(base), peers.elsewhere()(MODEL)) == (False, True)
    assert peers.choose(MODEL) is None
    peers.follow([])
    assert not peers.elsewhere()(MODEL)


def test_what_a_peer_has_is_asked_for_there_and_not_loaded_here(peers: Peers) -> None:
    peers.follow([HOLDER])
    assert peers.choose(MODEL) == HOLDER
    assert peers.elsewhere()(MODEL)


def test_who_failed_on_the_request_or_on_many_is_passed_over(peers: Peers, circuits: Circuits) -> None:
    peers.follow([HOLDER, OTHER])
    assert peers.choose(MODEL) == HOLDER
    assert peers.choose(MODEL, {HOLDER.address}) == OTHER
    assert peers.choose(MODEL, {HOLDER.address, OTHER.address}) is None
    for _ in range(3):
        circuits.failed(HOLDER.address)
    assert peers.choose(MODEL) == OTHER
    assert [state["asked"] for state in peers.states()] == [False, True]


def test_what_was_passed_on_counts_before_the_peer_tells_of_it(peers: Peers) -> None:
    peers.follow([HOLDER, OTHER])
    requests = [peers.passing(HOLDER) for _ in range(6)]
    for request in requests:
        request.__enter__()
    assert peers.choose(MODEL) == OTHER
    for request in requests:
        request.__exit__(None, None, None)
    assert peers.choose(MODEL) == HOLDER


def test_news_is_what_others_hold_and_not_how_busy_they_are(peers: Peers) -> None:
    assert peers.follow([HOLDER])
    assert not peers.follow([Peer("holder", "http://holder", in_flight=9, ready=HOLDER.ready)])
    assert peers.follow([Peer("holder", "http://holder")])
    assert peers.follow([])


def test_one_that_works_alone_or_leaves_tells_and_asks_nobody(peers: Peers) -> None:
    assert peers.presence() == HERE
    peers.follow([HOLDER])
    peers.leave()
    alone = Peers(lambda: HERE, Circuits(), alone=True)
    for one in (peers, alone):
        one.follow([HOLDER])
        assert (one.presence(), one.choose(MODEL), one.states()) == (None, None, [])
        assert not one.elsewhere()(MODEL)
