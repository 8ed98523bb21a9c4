"""When a node looks again, what it takes from the records, and when it says that it should move."""

import asyncio
import random
import time
from typing import Any

import pytest

from hivemint.node.placement.rule import Placed
from hivemint.node.placement.watch import MANY, PlacementWatch, pause, placed
from hivemint.protocol.errors import SwarmError
from hivemint.protocol.ids import BlockIndex, Credits, ModelId
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.records import CheckedRecord, NodeRecord, check_record, sign_record
from support.promises import signer

MODEL = ModelId(b"\x07" * 32)
OWN = signer(1)


def record(number: int, first: int, end: int, tokens_per_s: float) -> CheckedRecord:
    key, who = PeerKey.generate(), signer(number)
    told = NodeRecord(
        network="test",
        model_id=MODEL,
        first_block=BlockIndex(first),
        end_block=BlockIndex(end),
        peer=key.peer_id,
        operator=who.address,
        numerics=("fp32/fp32/fp32",),
        ask=Credits(1),
        tokens_per_s=tokens_per_s,
        expires=time.time() + 60,
    )
    return check_record(sign_record(told, who, key).to_bytes())


class Listed:
    """A directory that says what it is told to."""

    def __init__(self, *found: CheckedRecord, unregistered: tuple[CheckedRecord, ...] = ()) -> None:
        self.found, self.unregistered, self.looks = list(found), unregistered, 0
        self.ranks = bool(unregistered)
        self.fails = 0

    async def find(self, model_id: ModelId, blocks: range) -> list[CheckedRecord]:
        self.looks += 1
        if self.looks <= self.fails:
            raise SwarmError("nobody answers")
        return self.found

    def is_registered(self, one: CheckedRecord) -> bool:
        return one not in self.unregistered


def watch(listed: Any, own: Placed, every: float = 0.001) -> PlacementWatch:
    return PlacementWatch(listed, MODEL, 4, OWN.address, own, own.end - own.first, every, source=random.Random(1))


CROWDED = (record(2, 0, 2, 5), record(3, 0, 2, 5), record(4, 2, 4, 5))


async def test_a_clear_move_is_told_once_it_was_seen_twice() -> None:
    listed = Listed(*CROWDED)
    one = watch(listed, Placed(0, 2, 10))
    task = asyncio.create_task(one.run())
    found = await asyncio.wait_for(one.chosen, 30)
    task.cancel()
    assert found.span == (2, 4)
    assert listed.looks >= 2


async def test_a_move_that_another_has_made_meanwhile_is_not_made_again() -> None:
    class Moving(Listed):
        async def find(self, model_id: ModelId, blocks: range) -> list[CheckedRecord]:
            self.looks += 1
            return list(CROWDED) if self.looks == 1 else [CROWDED[0], record(3, 2, 4, 5), CROWDED[2]]

    listed = Moving()
    one = watch(listed, Placed(0, 2, 10))
    task = asyncio.create_task(one.run())
    for _ in range(10_000):
        if listed.looks >= 6:
            break
        await asyncio.sleep(0.005)
    assert not one.chosen.done()
    task.cancel()


async def test_a_swarm_that_does_not_answer_is_looked_at_again() -> None:
    listed = Listed(*CROWDED)
    listed.fails = 2
    one = watch(listed, Placed(0, 2, 10))
    task = asyncio.create_task(one.run())
    assert (await asyncio.wait_for(one.chosen, 30)).span == (2, 4)
    task.cancel()


async def test_a_balanced_swarm_keeps_its_places() -> None:
    assert await watch(Listed(CROWDED[0], CROWDED[2], record(5, 2, 4, 5)), Placed(0, 2, 10)).look() is None


def test_records_become_places() -> None:
    mine, twice = record(1, 0, 2, 5), record(2, 0, 2, 7)
    beyond, stranger = record(6, 3, 9, 2), record(7, 0, 4, 100)
    listed = Listed(unregistered=(stranger,))
    found = placed([mine, CROWDED[0], twice, beyond, stranger, record(8, 9, 11, 1)], listed, OWN.address, 4)
    assert found == [Placed(0, 2, 14), Placed(3, 4, 12)]


@pytest.mark.parametrize("nodes", [1, MANY, 10 * MANY])
def test_looks_are_spread_and_rarer_in_large_swarms(nodes: int) -> None:
    source = random.Random(3)
    pauses = [pause(100.0, nodes, source) for _ in range(1000)]
    times = max(1, nodes / MANY)
    assert 50 * times <= min(pauses) < 60 * times
    assert 140 * times < max(pauses) <= 150 * times
