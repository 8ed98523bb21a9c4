"""The rule that places nodes, against a linear programme and by what must hold of any placement."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from hivemint.node.placement.rule import GAIN, MOST_CLAIMED, Placed, believed, better, choose, levels, lowest


def by_programme(blocks: int, placed: list[Placed]) -> float:
    """The highest level that all blocks can have at once: every node's rate shared out over its blocks."""
    columns = [(node, block) for node, one in enumerate(placed) for block in range(one.first, one.end)]
    shares, needs = np.zeros((len(placed), len(columns) + 1)), np.zeros((blocks, len(columns) + 1))
    needs[:, -1] = 1
    for column, (node, block) in enumerate(columns):
        shares[node, column], needs[block, column] = 1, -1
    goal = np.zeros(len(columns) + 1)
    goal[-1] = -1
    limits = np.concatenate([[one.rate for one in placed], np.zeros(blocks)])
    found = linprog(goal, A_ub=np.vstack([shares, needs]), b_ub=limits)
    return -float(found.fun)


def some_swarm(source: random.Random) -> tuple[int, list[Placed]]:
    blocks = source.randint(1, 24)
    placed = []
    for _ in range(source.randint(1, 12)):
        first = source.randrange(blocks)
        placed.append(Placed(first, source.randint(first + 1, blocks), source.uniform(1, 100)))
    return blocks, placed


@pytest.mark.parametrize("seed", range(40))
def test_the_lowest_level_is_what_the_swarm_can_do(seed: int) -> None:
    blocks, placed = some_swarm(random.Random(seed))
    mean = sum(one.rate for one in placed) / blocks
    assert lowest(blocks, placed) == pytest.approx(by_programme(blocks, placed), abs=0.01 * mean)


@pytest.mark.parametrize("seed", range(10))
def test_all_of_every_node_is_shared_out(seed: int) -> None:
    blocks, placed = some_swarm(random.Random(seed))
    assert levels(blocks, placed).sum() == pytest.approx(sum(one.rate for one in placed))


@pytest.mark.parametrize(
    ("others", "size", "span"),
    [
        ([], 2, (0, 2)),
        ([Placed(0, 2, 1)], 2, (2, 4)),
        ([Placed(0, 2, 1), Placed(3, 4, 1)], 1, (2, 3)),
        ([Placed(0, 2, 9), Placed(2, 4, 1)], 2, (2, 4)),  # as many nodes, but slower ones
        ([Placed(0, 1, 3), Placed(1, 3, 1), Placed(3, 4, 3)], 2, (1, 3)),
        ([Placed(0, 4, 2)], 9, (0, 4)),
    ],
)
def test_a_new_node_goes_where_the_swarm_is_weakest(others: list[Placed], size: int, span: tuple[int, int]) -> None:
    assert choose(4, others, size, 1.0).span == span


def test_a_choice_says_what_it_brings() -> None:
    found = choose(4, [Placed(0, 4, 8), Placed(0, 2, 10)], 2, 4.0)
    assert found.span == (2, 4)
    assert [found.before, found.after] == pytest.approx([4, 5.5], rel=0.01)


def test_a_node_moves_to_a_hole_where_it_can_be_spared_and_stays_where_it_can_not() -> None:
    own = Placed(0, 2, 1)
    assert better(4, [Placed(0, 2, 1)], own, 2) is not None
    assert better(6, [Placed(2, 4, 1)], own, 2) is None, "there would be as many holes as before"
    assert better(4, [Placed(2, 4, 1), Placed(2, 4, 1)], own, 2) is None, "others need it where it is"


def test_a_node_moves_for_a_good_part_of_its_share_only() -> None:
    """Three of 0:2 beside one of 2:4: one of the three moves. Of two and two none does, however they wobble."""
    own = Placed(0, 2, 10)
    found = better(4, [Placed(0, 2, 10), Placed(0, 2, 10), Placed(2, 4, 10)], own, 2)
    assert found is not None
    assert found.span == (2, 4)
    assert found.after - found.before >= GAIN * own.rate / 4
    for wobble in (0.97, 1.0, 1.03):
        assert better(4, [Placed(0, 2, 10 * wobble), Placed(2, 4, 10), Placed(2, 4, 10)], own, 2) is None


def test_a_move_never_leaves_a_block_that_had_a_node() -> None:
    for seed in range(60):
        blocks, placed = some_swarm(random.Random(1000 + seed))
        own, others = placed[0], placed[1:]
        found = better(blocks, others, own, own.end - own.first)
        if found is None:
            continue
        before = {block for one in placed for block in range(one.first, one.end)}
        after = {block for one in others for block in range(one.first, one.end)} | set(range(*found.span))
        assert len(after) >= len(before)


def test_what_nodes_say_of_themselves_has_bounds() -> None:
    found = believed([Placed(0, 1, 0), Placed(0, 1, 10), Placed(0, 1, 12), Placed(0, 1, 1e9)], 11.0)
    assert [one.rate for one in found] == [11, 10, 12, MOST_CLAIMED * 11]
    assert [one.rate for one in believed([Placed(0, 1, 0)], 7.0)] == [7.0]
    assert [one.rate for one in believed([Placed(0, 1, 1e9)], 7.0)] == [MOST_CLAIMED * 7], "its own word is no measure"


BLOCKS = 20
CLAIMS = st.sampled_from([0.0, 5e-324, 1e-9, 1e9, 1e18, 1e300]) | st.floats(1, 1e6)
RATES = st.floats(10, 5000)
"""Rows a second of honest nodes: cards differ by a factor of 12, a card and a processor by more than 100."""


@st.composite
def places(draw: st.DrawFn, rates: st.SearchStrategy[float]) -> Placed:
    first = draw(st.integers(0, BLOCKS - 1))
    return Placed(first, draw(st.integers(first + 1, BLOCKS)), draw(rates))


def holes(placed: list[Placed]) -> set[int]:
    return set(range(BLOCKS)) - {block for one in placed for block in range(one.first, one.end)}


def fewest(others: list[Placed], size: int) -> int:
    """Holes that stay when a node of that size goes where it closes most."""
    return min(len(holes([*others, Placed(first, first + size, 1.0)])) for first in range(BLOCKS - size + 1))


@given(honest=st.lists(places(RATES), max_size=6), liar=places(CLAIMS), size=st.integers(1, BLOCKS), own=RATES)
def test_no_claim_hides_a_hole_from_a_newcomer(honest: list[Placed], liar: Placed, size: int, own: float) -> None:
    """None that it could close stays open for the sake of blocks that others serve."""
    others = [*honest, liar]
    found = choose(BLOCKS, believed(others, own), size, own)
    assert len(holes([*others, Placed(*found.span, own)])) == fewest(others, size)


@given(honest=st.lists(places(RATES), max_size=6), liar=places(CLAIMS), own=places(RATES))
def test_no_claim_keeps_a_node_from_a_hole(honest: list[Placed], liar: Placed, own: Placed) -> None:
    others = [*honest, liar]
    found, size = better(BLOCKS, believed(others, own.rate), own, own.end - own.first), own.end - own.first
    if (least := fewest(others, size)) < len(holes([*others, own])):
        assert found is not None
        assert len(holes([*others, Placed(*found.span, own.rate)])) == least


@given(honest=st.lists(places(RATES), max_size=6), liar=places(CLAIMS), own=RATES)
def test_one_claim_moves_what_is_believed_within_bounds(honest: list[Placed], liar: Placed, own: float) -> None:
    """The usual rate stays one of the two in the middle of the honest ones and its own, whatever the liar tells: so its
    claim counts for MOST_CLAIMED times the greater of both at most, and no honest one is cut below that of the other.
    """
    *rest, its = believed([*honest, liar], own)
    told = sorted([own, *(one.rate for one in honest)])
    low, high = told[max(0, len(told) // 2 - 1)], told[len(told) // 2]
    assert its.rate <= MOST_CLAIMED * high
    for one, kept in zip(honest, rest, strict=True):
        assert min(one.rate, MOST_CLAIMED * low) <= kept.rate <= one.rate
    bounded = replace(liar, rate=min(liar.rate, MOST_CLAIMED * high))
    assert believed([*honest, bounded], own) == [*rest, its], "more than that is never more"
    assert levels(BLOCKS, [*rest, its]).sum() <= levels(BLOCKS, rest).sum() + MOST_CLAIMED * high * (1 + 1e-9)


@pytest.mark.parametrize("times", [1.0, 50.0, 200.0, 400.0, 1e4, 1e8])
def test_who_is_far_faster_or_says_so_draws_nobody_to_its_own_blocks(times: float) -> None:
    """One liar beside an honest node; and, without any lie, one node that is far faster than the newcomer."""
    for others in ([Placed(0, 10, 100), Placed(0, 10, 100 * times)], [Placed(0, 10, 100 * times)]):
        assert choose(20, believed(others, 100.0), 10, 100.0).span == (10, 20)
        assert choose(20, others, 10, 100.0).span == (10, 20), "holes come first without any bound"
    move = better(20, believed([Placed(0, 10, 100), Placed(0, 10, 100 * times)], 100.0), Placed(0, 10, 100), 10)
    assert move is not None
    assert move.span == (10, 20)


def test_a_weak_node_finds_the_weakest_blocks_of_a_strong_swarm() -> None:
    """What it gives is less than a hundredth of the mean everywhere: still it goes where that helps."""
    others = [Placed(0, 10, 1e5), Placed(10, 20, 50), Placed(20, 30, 1e5)]
    assert choose(30, others, 10, 50.0).span == (10, 20)


@pytest.mark.parametrize("wrong", [(2, 2, 1.0), (-1, 2, 1.0), (0, 1, float("nan")), (0, 1, -1.0)])
def test_what_is_no_place_is_refused(wrong: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="is no place"):
        Placed(*wrong)
