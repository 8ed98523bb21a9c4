"""The life of a token, through real processes: chat for nothing, mint for the work, pay with what was minted.

Read this first: it is the whole of Hivemint, in the order in which it happens. Two nodes serve 15 blocks each of
SmolLM2; Alice owns the first, Carol the second; Bob asks. Amounts are wei, and every sum is exact.
"""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hivemint.client.generation.bill import Bill
from hivemint.model.local_models import LocalModel
from hivemint.protocol.credits import mintable
from hivemint.protocol.ids import Credits
from hivemint.protocol.signing import Signer
from support.localnet import RealNet, exactly, height

pytest_plugins = ["support.localnet"]

QUESTION = [{"role": "user", "content": "Why is the sky blue? Answer in one sentence."}]
ANSWER = 16
"""Tokens. The last one is never sent back through the blocks, so nobody computes it: a chat costs one fewer."""


@pytest.fixture(scope="module")
def question(smollm2: LocalModel) -> torch.Tensor:
    """`[1, length]`: the chat template around the question."""
    encoded: Any = AutoTokenizer.from_pretrained(smollm2.folder).apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids: torch.Tensor = encoded["input_ids"]
    return ids


@pytest.fixture(scope="module")
def expected(smollm2: LocalModel, question: torch.Tensor) -> torch.Tensor:
    """What plain transformers answers: the whole model, here, with its own cache."""
    plain: Any = AutoModelForCausalLM.from_pretrained(smollm2.folder, dtype=torch.float32)
    answer: torch.Tensor = plain.generate(question, **exactly(ANSWER))
    return answer


def test_the_life_of_a_token(localnet: RealNet, question: torch.Tensor, expected: torch.Tensor) -> None:
    bob, alice = localnet.net.signer("bob"), localnet.net.signer("alice")
    computed = question.shape[1] + ANSWER - 1  # token positions of one chat
    epoch = localnet.next_epoch()  # stake counts from the epoch after it was bonded

    # Bob has no credits: the donated lane serves him, and he countersigns every step.
    before = {plan.operator: localnet.metrics(plan) for plan in localnet.nodes}
    earlier = {one["session"] for plan in localnet.nodes for one in localnet.sessions(plan, bob)}
    chat(localnet, bob, question, expected, bid="free")
    for plan in localnet.nodes:
        (session,) = countersigned(localnet, bob, plan, earlier)
        assert session["signed_tokens"] == computed
        assert session["price"] == "0"
    assert_hops(localnet, before, steps=session["signed_step"])

    # The day after, the nodes claim what they donated; one more day, and they mint their shares of the emission.
    owners = [localnet.net.signer(plan.owner) for plan in localnet.nodes]
    had = [credits(localnet, owner) for owner in owners]
    assert localnet.next_epoch() == epoch + 1
    for plan in localnet.nodes:
        assert claimed(localnet, plan, epoch) == computed * (plan.end - plan.first) * rate(localnet, epoch)
    assert localnet.next_epoch() == epoch + 2
    localnet.until(lambda: len(localnet.events("Minted", epoch=epoch)) == len(owners), "mints")
    for owner, plan, balance in zip(owners, localnet.nodes, had, strict=True):
        (minted,) = localnet.events("Minted", epoch=epoch, node=localnet.operator(plan).address)
        # at least: debts of other tests may settle meanwhile; the supply below is exact
        assert credits(localnet, owner) >= balance + minted.values["amount"] > balance

    # Alice spends: an account at each node, then a chat whose every step is paid by a voucher.
    deposit = Credits(credits(localnet, alice) // 4)
    assert deposit > 2 * computed * localnet.price(localnet.first)
    accounts = {localnet.operator(plan).address: deposit for plan in localnet.nodes}
    mined = localnet.chain(lambda bindings: bindings.settlement.fund(alice, accounts))
    localnet.until(lambda: localnet.chain(height) > mined.block + localnet.net.network.confirmations, "confirmation")
    cost = {plan.operator: computed * localnet.price(plan) for plan in localnet.nodes}
    collected = {plan.operator: localnet.account(alice, plan).collected for plan in localnet.nodes}
    assert chat(localnet, alice, question, expected, bid="ask") == sum(cost.values())

    # Her vouchers settle: what the nodes collect is burned in her accounts and minted to the owners, less the fee.
    for plan in localnet.nodes:
        due = collected[plan.operator] + cost[plan.operator]
        assert localnet.collected(alice, plan, due) == due
        settlements = localnet.settlements(alice, plan)
        assert sum(one["burned"] for one in settlements) == due
        assert sum(one["minted"] for one in settlements) == mintable(Credits(due)) < due
    assert_supply(localnet)


# --- the acts


def chat(net: RealNet, wallet: Signer, question: torch.Tensor, expected: torch.Tensor, bid: str) -> int:
    """Ask; the answer is plain transformers', token for token. Returns what was spent."""
    with net.client(wallet, bid=bid) as model:
        bill = Bill()
        assert torch.equal(model.generate(question, bill=bill, **exactly(ANSWER)), expected)
        return bill.spent


def countersigned(net: RealNet, wallet: Signer, plan: Any, earlier: set[str]) -> list[dict[str, Any]]:
    """The client's sessions at a node, those of other tests left out, when its last voucher binds the last receipt."""

    def sessions() -> list[dict[str, Any]]:
        return [one for one in net.sessions(plan, wallet) if one["session"] not in earlier]

    def all_bound() -> bool:
        found = sessions()
        return bool(found) and all(one["countersigned_step"] == one["signed_step"] for one in found)

    net.until(all_bound, "last voucher")
    return sessions()


def assert_hops(net: RealNet, before: dict[str, Any], steps: int) -> None:
    """S + 1 hops a token for S nodes: client to first node, node to node, last node to client; no relay by the client.

    By the nodes' own counts of what they sent. (Push that falls back to relaying still gives right answers.)
    """
    sent = "hivemint_node_outputs_sent_total"
    for plan in net.nodes:
        now = net.metrics(plan) - before[plan.operator]
        last = plan is net.last
        assert now[f"{sent}{{next}}"] == (0 if last else steps)
        assert now[f"{sent}{{client}}"] == (ANSWER if last else 0)  # of a prompt's chunks only the last comes back


def assert_supply(net: RealNet) -> None:
    """P1: the supply is what was minted less what was burned, since the beginning, and somebody holds all of it."""
    donated = sum(one.values["amount"] for one in net.events("Minted"))
    settled = [(one.values["burned"], one.values["minted"]) for one in net.events("Settled")]
    burned, minted = (sum(column) for column in zip(*settled, strict=True))
    assert net.chain(lambda bindings: bindings.token.supply()) == donated + minted - burned
    held = {one.values[end] for one in net.events("Transfer") for end in ("from", "to")}
    assert sum(credits(net, holder) for holder in held) == donated + minted - burned


# --- questions to the chain


def credits(net: RealNet, who: Any) -> int:
    address = who.address if isinstance(who, Signer) else who
    return int(net.chain(lambda bindings: bindings.token.balance(address)))


def claimed(net: RealNet, plan: Any, epoch: int) -> int:
    """Work that a node claims for an epoch: tokens x blocks x rate."""

    def units() -> int:
        return int(net.chain(lambda bindings: bindings.emission.claim_of(net.operator(plan).address, epoch)).units)

    net.until(units, "claim")
    return units()


def rate(net: RealNet, epoch: int) -> int:
    """Mega-FLOP a token and block that donated work pays for."""
    return net.chain(lambda bindings: bindings.parameters.rate(net.net.model.model_id, epoch))
