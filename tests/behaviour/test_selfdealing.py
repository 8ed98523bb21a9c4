"""Self-dealing doesn't pay (P2, P7): random coalitions on the model that `test_differential.py` holds equal to the
chain.

`benchmarks/selfdealing.py` plays the same for thousands of epochs.
"""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from support.money_model import Item, Money
from support.self_dealing import COIN, HMC, RULES, Coalition, CountsWholeBurn, Game

coalitions = st.builds(
    Coalition,
    nodes=st.integers(1, 6),
    stake=st.sampled_from([1, 5, 30, 300]),
    purse=st.sampled_from([1, 1_000, 100_000]),
    greed=st.integers(1, 5),
)
seeds = st.integers(0, 2**32)
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@quick
@given(coalitions, seeds)
def test_p2_no_burn_inside_a_coalition_brings_back_more_than_it_cost(coalition: Coalition, seed: int) -> None:
    """`play` also checks after each move that paid work alone has not raised W."""
    outcome = Game(coalition, seed).play(40)
    assert outcome.worst < 0, "an epoch's burn inside raised the mint by more than its share of the fee"


def test_the_same_play_shows_the_fault_of_an_emission_that_counts_the_whole_burn() -> None:
    rich = Coalition(nodes=2, stake=300, purse=1_000)  # so much stake that it is not what limits the mint
    whole, right = Game(rich, 7, kind=CountsWholeBurn).play(200), Game(rich, 7).play(200)
    assert whole.worst > 0
    assert whole.ratio > 1 > right.ratio


@quick
@given(st.lists(st.integers(1, 10**24), min_size=1, max_size=8), st.integers(1, 10**30))
def test_p2_an_accounts_life_costs_exactly_the_fee_rounded_up(amounts: list[int], purse: int) -> None:
    money = Money(RULES, now=RULES.epoch)
    money.nodes["node"] = "purse"
    money.credits["purse"] = money.supply = purse
    for amount in amounts:
        amount = min(amount, money.credits["purse"])
        if amount:
            money.fund("purse", "purse", {"node": amount})
            total = money.accounts["node", "purse"].collected + amount
            money.settle("node", [Item("purse", total, "purse")])
    collected = money.accounts["node", "purse"].collected
    assert purse - money.credits["purse"] == -(-collected * RULES.fee // 10_000)


@quick
@given(
    stake=st.integers(1, 10**6 * COIN),
    cuts=st.lists(st.integers(1, 100), min_size=1, max_size=8),
    work=st.integers(1, 10**15),
    others=st.integers(0, 10**15),
)
def test_p7_splitting_stake_and_work_never_raises_the_sum(stake: int, cuts: list[int], work: int, others: int) -> None:
    def minted(parts: list[tuple[int, int]]) -> int:
        money, epoch = Money(RULES, now=RULES.epoch), 2
        nodes = [f"part {index}" for index in range(len(parts))]
        for node, (coins, _) in zip(nodes, parts, strict=True):
            money.nodes[node] = "purse"
            money.bond(node, coins)
        money.nodes["other"] = "somebody"
        money.bond("other", 10**9 * COIN)
        money.now = 3 * RULES.epoch
        for node, (_, units) in zip(nodes, parts, strict=True):
            money.claim(node, epoch, [(b"\1", units)])
        money.claim("other", epoch, [(b"\1", others)])
        money.now = 4 * RULES.epoch
        return sum(money.mint(node, epoch) for node in nodes if money.shares[node, epoch].weight)

    whole, sums = minted([(stake, work)]), [0]
    for cut in cuts:
        sums.append(sums[-1] + cut)
    parts = [
        (stake * end // sums[-1] - stake * start // sums[-1], work * end // sums[-1] - work * start // sums[-1])
        for start, end in pairwise(sums)
    ]
    assert minted(parts) <= whole <= RULES.bootstrap
    assert whole * COIN * COIN <= RULES.max_per_unit * RULES.units_per_coin * stake


def test_a_big_purse_washed_every_day_only_shrinks() -> None:
    """No donated work at all: what is left after n rounds is what the fee leaves."""
    money = Money(RULES, now=RULES.epoch)
    money.nodes["node"] = "purse"
    money.credits["purse"] = money.supply = 100 * HMC
    for _ in range(50):
        amount = money.credits["purse"]
        money.fund("purse", "purse", {"node": amount})
        total = money.accounts["node", "purse"].collected + amount
        money.settle("node", [Item("purse", total, "purse")])
    assert 0.95**50 * 100 * HMC - 50 <= money.credits["purse"] <= 0.95**50 * 100 * HMC * (1 + 1e-9)
