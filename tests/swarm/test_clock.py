"""What time it is for the swarm: clocks that are off, peers that lie, chains that stand still or run ahead."""

import time
from dataclasses import dataclass, replace

import pytest

from hivemint.protocol.errors import ProofError
from hivemint.swarm.daemon import _load_hivemind
from hivemint.swarm.dht.clock import MOST_CORRECTED, SwarmClock, span
from hivemint.swarm.dht.places import Places
from hivemint.swarm.host import Host, HostSettings
from hivemint.swarm.records import LIFETIME, SignedRecord
from support.node_records import MODEL, of, signed
from support.wire import NETWORK, hosts

NOON = 1_700_000_000.0
MINUTES = 300.0


@dataclass
class Hands:
    """A machine's clock, `off` seconds from the time, and its steady one."""

    off: float = 0.0
    time: float = NOON
    steady: float = 0.0

    def own(self) -> float:
        return self.time + self.off

    def pass_by(self, seconds: float) -> None:
        self.time += seconds
        self.steady += seconds

    def clock(self) -> SwarmClock:
        return SwarmClock(self.own, lambda: self.steady)


def heard(off: float, *peers: float) -> SwarmClock:
    """A clock that is `off`, after peers of as many networks, whose clocks are off too, have told their time."""
    clock = Hands(off).clock()
    clock.hear(enumerate(other - off for other in peers))
    return clock


@pytest.mark.parametrize("off", [MINUTES, -MINUTES])
@pytest.mark.parametrize("peers", [(0.0,), (0.0, 0.0), (0.0, 0.1, 0.0), (0.0, 0.0, -MINUTES), (0.0, 900.0, 0.0, 0.0)])
def test_what_most_peers_say_corrects_a_clock_that_is_off(off: float, peers: tuple[float, ...]) -> None:
    clock = heard(off, *peers)
    assert clock.now() == pytest.approx(NOON, abs=0.2)
    assert "5 min 0 s" in clock.trouble()
    assert f"it is {'ahead' if off > 0 else 'behind'}" in clock.trouble()


@pytest.mark.parametrize("peers", [(), (0.0, 0.0), (0.0, MINUTES), (MINUTES, -MINUTES), (0.0, MINUTES, 0.0), (1.0,)])
def test_a_clock_that_is_right_stays_so(peers: tuple[float, ...]) -> None:
    clock = heard(0.0, *peers)
    assert clock.now() == NOON
    assert clock.trouble() == ""


def test_many_peers_of_one_network_have_one_vote() -> None:
    clock = Hands().clock()
    clock.hear([("liars", MINUTES)] * 20 + [("a", 0.0), ("b", 0.0)])
    assert clock.now() == NOON
    assert clock.votes == 3


def test_a_clock_is_corrected_by_an_hour_at_most_and_the_rest_is_told() -> None:
    clock = heard(-MOST_CORRECTED - 60, 0.0, 0.0, 0.0)
    assert clock.offset == 0.0
    assert "1 h 1 min" in clock.trouble()
    assert "too much to be corrected" in clock.trouble()
    assert heard(-MOST_CORRECTED + 60, 0.0).now() == pytest.approx(NOON)


def test_where_the_chain_agrees_with_this_machine_peers_are_not_believed() -> None:
    clock = heard(0.0, MINUTES, MINUTES, MINUTES)
    clock.see_block(NOON - 12)
    assert clock.now() == NOON
    assert clock.trouble() == ""


@pytest.mark.parametrize(("off", "side"), [(MINUTES, "ahead"), (-MINUTES, "behind")])
def test_a_clock_that_is_off_is_told_beside_the_chains(off: float, side: str) -> None:
    clock = heard(off, 0.0, 0.0)
    clock.see_block(NOON - 2)
    told = clock.trouble()
    assert told.startswith(f"your clock differs from the chain's by {span(off + 2)}")
    assert f"it is {side}" in told
    assert clock.now() == pytest.approx(NOON)


def test_without_peers_the_chain_alone_is_told_with_the_doubt() -> None:
    alone = Hands(-MINUTES).clock()
    alone.see_block(NOON)
    assert "differs from the chain's by 5 min 0 s: it is behind, or that chain runs ahead" in alone.trouble()
    alone = Hands(MINUTES).clock()
    alone.see_block(NOON)
    assert "it is ahead, or that chain stands still" in alone.trouble()
    assert alone.offset == 0.0


def test_a_development_chain_that_runs_ahead_or_stands_still_says_nothing_against_the_clock() -> None:
    for block, note in ((7200.0, "2 h 0 min ahead"), (-7200.0, "2 h 0 min old")):
        clock = heard(0.0, 0.0, 0.1)
        clock.see_block(NOON + block)
        assert clock.trouble() == ""
        assert note in clock.chain_note()


def test_a_clock_that_was_set_is_noticed_and_the_chains_word_forgotten() -> None:
    hands = Hands()
    clock = hands.clock()
    clock.see_block(NOON)
    hands.pass_by(1000)
    assert not clock.stepped
    hands.off = MINUTES
    assert clock.stepped
    clock.hear([("a", -MINUTES), ("b", -MINUTES)])
    assert not clock.stepped
    assert clock.now() == pytest.approx(hands.time)


def test_lies_about_the_time_hide_no_record_that_is_good_by_the_own_clock() -> None:
    for lie in (MINUTES, -MINUTES, MOST_CORRECTED, -MOST_CORRECTED):
        clock = SwarmClock()
        clock.hear([("a", lie)])
        assert clock.now() == pytest.approx(time.time() + lie, abs=5)
        clock.check(signed(life=LIFETIME).to_bytes())
    with pytest.raises(ProofError, match="has expired"):
        SwarmClock().check(signed(life=-1).to_bytes())


@pytest.mark.parametrize("off", [0.0, MINUTES, -MINUTES])
@pytest.mark.parametrize("claimed", [LIFETIME, 250.0])
def test_a_peer_keeps_an_entry_for_a_records_life_from_when_it_came_by_any_clock(off: float, claimed: float) -> None:
    """Whatever the record claims, and whichever clock is wrong: so the dead are gone for all."""
    _load_hivemind()
    hands = Hands(off)
    clock = hands.clock()
    clock.hear([("a", -off), ("b", -off)])
    places = Places(lambda _: 0, ranked=lambda: False, clock=clock)
    assert places.store_subkey("place", b"peer", b"record", NOON + claimed)
    hands.pass_by(LIFETIME - 1)
    assert places.get("place").value.get(b"peer").value == b"record"
    hands.pass_by(1)
    assert places.get("place") is None
    if off >= 0:  # a clock that is behind can't tell that it is over
        assert not places.store_subkey("other", b"peer", b"record", NOON + LIFETIME)


# ---- real hosts with clocks that are off


def wrong(off: float) -> HostSettings:
    return HostSettings(NETWORK, clock=lambda: time.time() + off)


@pytest.mark.parametrize("who", ["boot", "node", "client"])
@pytest.mark.parametrize("off", [MINUTES, -MINUTES], ids=["ahead", "behind"])
async def test_a_clock_that_is_off_empties_no_swarm(who: str, off: float) -> None:
    offs = {name: off if name == who else 0.0 for name in ("boot", "node", "client")}
    async with hosts(wrong(offs["boot"])) as (boot,):
        joined = {name: replace(wrong(offs[name]), bootstrap=boot.addresses) for name in ("node", "client")}
        async with hosts(HostSettings(NETWORK, bootstrap=boot.addresses), joined["node"]) as (other, node):
            await node.publish(published(node))
            async with hosts(replace(joined["client"], listen=())) as (client,):
                (found,) = await client.find(MODEL, range(15))
                assert found.peer == node.peer_id
                if who == "boot":  # who has met that one alone can't tell which of both is wrong
                    return
                for name, one in {"node": node, "client": client, "other": other}.items():
                    assert ("5 min 0 s" in one.clock.trouble()) == (name == who), name


def published(host: Host) -> SignedRecord:
    return of(host, (0, 15), expires=host.clock.now() + LIFETIME)
