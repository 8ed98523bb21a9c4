"""What may still be spent at a node."""

from hypothesis import given
from hypothesis import strategies as st

from hivemint.cli.wallet.listing import Listed

WEI = st.integers(0, 2**96)


@given(WEI, WEI, WEI, WEI)
def test_left_is_the_counted_deposit_less_vouchers(balance: int, collected: int, promised: int, confirmed: int) -> None:
    one = Listed(balance, collected, promised, confirmed, 0)
    deposit = balance + collected
    assert one.waiting == max(0, deposit - confirmed)
    assert one.left == max(0, min(deposit, confirmed) - max(collected, promised))
    assert one.state(0, 3).startswith("open")
    assert ("not counted yet (3 blocks)" in one.state(0, 3)) == (one.waiting > 0)


@given(WEI, WEI, WEI, st.integers(1, 2**35))
def test_nothing_is_left_while_an_account_thaws(balance: int, collected: int, promised: int, end: int) -> None:
    one = Listed(balance, collected, promised, 0, end)
    assert (one.left, one.waiting) == (0, 0)
    assert one.state(end, 1).startswith("thaws until ")
    assert "withdraw" in one.state(end + 1, 1)
    assert "fund" not in one.state(end, 1)
