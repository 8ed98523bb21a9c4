"""Why nobody is paid: the sums of an account, and one reason for each node that falls short."""

from hypothesis import given
from hypothesis import strategies as st

from hivemint.client.sessions.route import session_amount
from hivemint.client.sessions.routing.planning import plan_route
from hivemint.client.sessions.routing.wish import Wish
from hivemint.client.sessions.shortfall import NodeFunds, lacking, shortfall
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import Bid
from hivemint.protocol.ids import ONE_CREDIT, Credits
from hivemint.protocol.node_name import node_name
from support.fake_swarm import FakeNode

AMOUNT = st.integers(0, 2**96 - 1)


@given(AMOUNT, AMOUNT, AMOUNT, AMOUNT)
def test_an_account_lacks_exactly_what_is_not_left(funded: int, owed: int, reserved: int, needed: int) -> None:
    account = NodeFunds(funded, owed, reserved)
    assert 0 <= account.left <= funded
    assert account.left == max(0, funded - owed - reserved)
    assert (account.lacks("A", needed) == "") == (needed <= account.left)


@given(AMOUNT, st.integers(1, 2**256 - 1), st.integers(1, 2**96 - 1))
def test_a_thawing_account_is_never_told_to_be_funded(owed: int, end: int, needed: int) -> None:
    told = NodeFunds(funded=0, owed=owed, thaw_end=end).lacks("A", needed)
    assert told.startswith("the escrow at A thaws until ")
    assert "fund" not in told


def test_each_node_has_its_own_reason() -> None:
    first, second, third = (FakeNode(at, at + 10, ask=ONE_CREDIT // 10**6) for at in (0, 10, 20))
    records = [one.record(free_tokens=10_000) for one in (first, second, third)]
    wish = Wish(30, 100, Bid("times"))
    needed = int(session_amount(10 * ONE_CREDIT // 10**6, 100, wish.margin))
    funds = {
        first.operator.address: NodeFunds(funded=needed),
        second.operator.address: NodeFunds(funded=needed, owed=1, reserved=2),
        third.operator.address: NodeFunds(thaw_end=10**9),
    }
    route = plan_route(records, wish, Speeds())
    assert lacking(route, wish, funds) == [
        f"the escrow at {node_name(second.operator.address)} covers 0.001249999 of 0.00125 HMC "
        "(0.000000000000000002 HMC reserved by open sessions)",
        f"the escrow at {node_name(third.operator.address)} thaws until 2001-09-09 01:46:40 UTC",
    ]
    assert shortfall(records, wish, Speeds(), funds) == ", ".join(lacking(route, wish, funds))
    assert shortfall(records, wish, Speeds(), None) == "this network names no chain"
    low = Wish(30, 100, Bid("times"), ceiling=Credits(1))
    assert "the cheapest one costs" in shortfall(records, low, Speeds(), funds)
