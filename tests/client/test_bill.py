"""What an answer has cost, of whom it came and on which lane: for people and as JSON."""

from typing import Any

from hivemint.client.generation.bill import Bill
from hivemint.client.pipeline import Hop, Plan
from hivemint.protocol.ids import ONE_CREDIT, Address, BlockIndex, Credits, PeerId
from hivemint.protocol.node_name import node_name

FIRST, SECOND = Address("0x" + "11" * 20), Address("0x" + "22" * 20)


def hop(operator: Address, first: int, end: int, price: int = 0) -> Hop:
    peer = PeerId(b"\x00\x24" + bytes.fromhex(operator[2:]))
    return Hop(peer, node_name(operator), BlockIndex(first), BlockIndex(end), Credits(price), 1.24, operator)


def plan(**changes: Any) -> Plan:
    price = changes.pop("price", 0)
    hops = (hop(FIRST, 0, 15, price), hop(SECOND, 15, 30, 2 * price))
    return Plan(hops=hops, tokens=40, cost=Credits(0), reserved=Credits(0), **{"lane": "donated", **changes})


def test_a_paid_answer_names_nodes_tokens_and_what_was_spent() -> None:
    bill = Bill(ONE_CREDIT // 1000, [plan(lane="paid", price=10, notes=("about 9 tokens/s",))], 12, 40, 8.12345)
    assert str(bill) == f"40 tokens, by {node_name(FIRST)} 0:15 -> {node_name(SECOND)} 15:30, 0.001 HMC"
    told = bill.document()
    assert {key: told[key] for key in told if key != "nodes"} == {
        "lane": "paid",
        "unpaid": "",
        "notes": ["about 9 tokens/s"],
        "price_wei": 30,
        "prompt_tokens": 12,
        "tokens": 40,
        "spent_wei": 10**15,
        "seconds": 8.123,
        "replayed": 0,
        "paid_again": 0,
    }
    assert [(one["name"], one["operator"], one["first"], one["end"], one["price_wei"]) for one in told["nodes"]] == [
        (node_name(FIRST), FIRST, 0, 15, 10),
        (node_name(SECOND), SECOND, 15, 30, 20),
    ]
    assert len({one["peer"] for one in told["nodes"]}) == 2


def test_donated_work_says_why() -> None:
    bill = Bill(0, [plan(unpaid="the escrow at candid-quail-52d6 covers 1 HMC of 2 HMC\x1b[2J")], 3, 4)
    assert str(bill).endswith("donated lane: the escrow at candid-quail-52d6 covers 1 HMC of 2 HMC\ufffd[2J")
    assert bill.document()["unpaid"] == bill.why
    assert str(Bill(0, [plan()])).endswith(", donated lane"), "asked for: no reason is due"


def test_what_was_paid_before_the_lane_changed_is_shown_too() -> None:
    bill = Bill(5, [plan(unpaid="the account thaws")], 3, 4)
    assert "0.000000000000000005 HMC, donated lane: the account thaws" in str(bill)


def test_nothing_but_tokens_where_no_way_was_found() -> None:
    assert str(Bill()) == "0 tokens"
    assert (Bill().lane, Bill().nodes, Bill().price, Bill().why) == (None, [], 0, "")


def test_what_was_computed_again_is_said() -> None:
    bill = Bill(0, [plan()], 3, 4, replayed=148, paid_again=296)
    assert str(bill).endswith(", 148 positions computed again")
    bill.add(Bill(replayed=2, paid_again=3))
    assert (bill.document()["replayed"], bill.document()["paid_again"]) == (150, 299)


def test_bills_add_up_and_name_each_node_once() -> None:
    bill = Bill(3, [plan(lane="paid", price=1)], 4, 5, 0.5)
    bill.add(Bill(7, [plan(lane="paid", price=1)], 10, 1, 1.0))
    assert (bill.spent, bill.prompt_tokens, bill.tokens, bill.seconds) == (10, 14, 6, 1.5)
    assert [one.operator for one in bill.nodes] == [FIRST, SECOND]
