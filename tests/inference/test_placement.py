"""Which gateway answers for a model and which one loads it, as decisions over what gateways say of themselves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tunesmith_inference import placement
from tunesmith_inference.placement import Peer
from tunesmith_inference.router import Kind, Servable

BASE = "b" * 64


def model(number: int, kind: Kind = Kind.ADAPTER) -> Servable:
    return Servable(f"ft:{number}", "p", kind, f"{number:064}", "base", BASE, 0, checkpoint=False)


def gateways(count: int, **fields: object) -> list[Peer]:
    made = Peer("", "", ready=frozenset({BASE}))
    return [replace(made, name=f"gateway-{n}:8002", address=f"http://{n}", **fields) for n in range(count)]  # type: ignore[arg-type]  # a test's own fields


def home(servable: Servable, everyone: list[Peer]) -> str:
    """Where it goes when nobody has it, as each of them sees it."""
    chosen = {
        placement.place(servable, here, [peer for peer in everyone if peer is not here]).name for here in everyone
    }
    (name,) = chosen
    loading = [
        here for here in everyone if placement.is_to_load(servable, here, [peer for peer in everyone if peer != here])
    ]
    assert [one.name for one in loading] == [name], "the one that is asked is the one that loads"
    return name


def test_all_choose_the_same_home_and_homes_are_shared_out() -> None:
    everyone = gateways(4)
    homes = Counter(home(model(number), everyone) for number in range(400))
    assert homes.keys() == {one.name for one in everyone}
    assert max(homes.values()) < 2 * min(homes.values())


def test_only_models_of_a_gateway_that_goes_move() -> None:
    everyone = gateways(4)
    gone = everyone[2]
    left = [one for one in everyone if one is not gone]
    for number in range(200):
        before = home(model(number), everyone)
        assert (home(model(number), left) == before) is (before != gone.name)


def test_what_is_ready_here_stays_here() -> None:
    here, *peers = gateways(3)
    here = replace(here, ready=here.ready | {model(1).revision}, in_flight=1000)
    peers = [replace(peer, ready=peer.ready | {model(1).revision}) for peer in peers]
    assert placement.place(model(1), here, peers) is here


def test_a_request_goes_to_the_least_busy_peer_where_the_model_is_ready() -> None:
    here, *peers = gateways(4)
    ready = frozenset({model(1).revision})
    peers = [replace(peer, ready=ready, in_flight=busy) for peer, busy in zip(peers, (9, 3, 5), strict=True)]
    assert placement.place(model(1), here, peers) is peers[1]


def test_a_model_on_its_way_is_waited_for_where_it_comes_and_not_loaded_twice() -> None:
    for number in range(20):
        here, peer, other = gateways(3)
        peer = replace(peer, coming=frozenset({model(number).revision}))
        assert placement.place(model(number), here, [other, peer]) is peer
        assert not placement.is_to_load(model(number), here, [other, peer])


def test_an_overloaded_home_is_passed_over() -> None:
    everyone = gateways(3)
    for number in range(50):
        usual = home(model(number), everyone)
        busy = [replace(one, in_flight=100 if one.name == usual else 10) for one in everyone]
        assert home(model(number), busy) != usual
        calm = [replace(one, in_flight=32 if one.name == usual else 0) for one in everyone]
        assert home(model(number), calm) == usual


def test_a_hot_model_spreads_to_the_gateway_that_is_next_and_only_there() -> None:
    ready = frozenset({BASE, model(1).revision})
    hot, second, third = gateways(3)
    hot = replace(hot, ready=ready, in_flight=100)
    spreading = [
        placement.is_to_spread(model(1), second, [hot, third]),
        placement.is_to_spread(model(1), third, [hot, second]),
    ]
    assert sorted(spreading) == [False, True]
    full = [replace(one, has_room=False) for one in (second, third)]
    assert not any(placement.is_to_spread(model(1, Kind.FULL), one, [hot, *full]) for one in full)
    calm = replace(hot, in_flight=20)
    assert not placement.is_to_spread(model(1), second, [calm, third])
    assert not placement.is_to_spread(model(1), third, [calm, second])
    assert not placement.is_to_spread(model(1), hot, [second, third])


@pytest.mark.parametrize("kind", [Kind.FULL, Kind.BASE])
def test_an_engine_of_its_own_goes_where_there_is_room(kind: Kind) -> None:
    full, roomy = gateways(2)
    full = replace(full, has_room=False)
    assert {home(model(number, kind), [full, roomy]) for number in range(20)} == {roomy.name}
    adapters = {home(model(number), [full, roomy]) for number in range(20)}
    assert adapters == {full.name, roomy.name}, "adapters need none where their base model is"


def test_an_adapter_goes_where_its_base_model_is() -> None:
    with_base, without = gateways(2, has_room=False)
    without = replace(without, ready=frozenset())
    assert {home(model(number), [with_base, without]) for number in range(20)} == {with_base.name}


def test_a_deployment_goes_over_to_what_is_ready_anywhere_or_comes_only_when_asked_for() -> None:
    here, peer = gateways(2)
    theirs = next(model(n) for n in range(99) if placement.place(model(n), here, [peer]) is peer)
    mine = next(model(n) for n in range(99) if placement.place(model(n), here, [peer]) is here)
    revision = frozenset({theirs.revision})
    assert not placement.is_ready(theirs, here, [peer], is_ready_here=True)
    assert placement.is_ready(theirs, here, [replace(peer, ready=revision)], is_ready_here=False)
    assert not placement.is_ready(theirs, here, [replace(peer, coming=revision)], is_ready_here=True)
    assert placement.is_ready(theirs, here, [replace(peer, on_demand=revision)], is_ready_here=False)
    assert placement.is_ready(mine, here, [peer], is_ready_here=True)
    assert not placement.is_ready(mine, here, [peer], is_ready_here=False)
