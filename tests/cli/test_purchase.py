"""What a deposit buys, and how a budget is shared out."""

from hypothesis import given
from hypothesis import strategies as st

from hivemint.cli.wallet.purchase import answers, top_ups

WEI = st.integers(0, 10**20)
ACCOUNTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), WEI, max_size=8)


@given(ACCOUNTS, WEI, WEI)
def test_a_top_up_never_passes_the_budget_and_never_what_is_kept(left: dict[str, int], keep: int, budget: int) -> None:
    chosen = top_ups(left, keep, budget)
    assert sum(chosen.values()) <= budget
    assert all(wei > 0 and left[node] + wei <= keep for node, wei in chosen.items())
    lacking = sum(max(0, keep - has) for has in left.values())
    assert sum(chosen.values()) == min(budget, lacking), "all of the budget is used where accounts lack as much"


def test_the_cheapest_is_topped_up_first_and_who_asks_nothing_last() -> None:
    left = {"absurd": 0, "cheap": 2, "usual": 1, "free": 0, "unknown": 0}
    asks = {"absurd": 10**18, "cheap": 1, "usual": 2, "free": 0}
    assert top_ups(left, 10, 17, asks) == {"cheap": 8, "usual": 9}
    assert list(top_ups(left, 10, 100, asks)) == ["cheap", "usual", "absurd", "free", "unknown"]


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 10**6)), ACCOUNTS, st.integers(1, 1000))
def test_so_many_answers_are_paid_and_not_one_more(prices: dict[str, int], left: dict[str, int], tokens: int) -> None:
    count = answers(prices, left, tokens)
    paying = {node: price for node, price in prices.items() if price}
    if count is None:
        assert not paying
        return
    assert all(count * price * tokens <= left.get(node, 0) for node, price in paying.items())
    assert any((count + 1) * price * tokens > left.get(node, 0) for node, price in paying.items())
