"""The bindings against the real contracts: a credit's whole life, and what the contracts refuse."""

import itertools
from dataclasses import dataclass

import pytest

from hivemint.contracts.bindings import Bindings, ClaimSkip, Donation, Skip, Status
from hivemint.contracts.chain import Chain, Reverted, Transfer
from hivemint.protocol.credits import mintable
from hivemint.protocol.eip712 import Delegation, Domain, Pardon, Release, Strike
from hivemint.protocol.errors import BadInput, ChainError, ProofError
from hivemint.protocol.ids import ONE_CREDIT, Address, Credits, PeerId
from hivemint.protocol.keccak import keccak
from hivemint.protocol.orders import CancelThaw, Close, Fund, Revoke, Thaw, Withdraw
from hivemint.protocol.receipt import Countersigned
from hivemint.protocol.signing import Signer
from support.chain import EPOCH, TEST_MODEL, TEST_RATE, TestChain
from support.sessions import countersign, make_session

COIN = 10**18
_fresh = itertools.count(1)


@dataclass
class Pair:
    """A registered node with its owner, and a client with 100 credits; all keys are this test's own."""

    owner: Signer
    node: Signer
    client: Signer
    donation: Donation
    epoch: int


async def new_signer(chain: Chain, rich: Signer, coins: int = 0) -> Signer:
    signer = Signer(keccak(b"test", next(_fresh).to_bytes(8, "big")))
    if coins:
        await chain.send(rich, Transfer(chain, signer.address), doing="Paying", value=coins * COIN)
    return signer


@pytest.fixture
async def pair(contracts: Bindings, testchain: TestChain) -> Pair:
    """Credits come from donated work alone, so: register, serve for free, claim, mint, pass 100 credits on."""
    rich, domain = testchain.signers[1], testchain.network.domain
    owner = await new_signer(contracts.chain, rich, 60)
    node, client = await new_signer(contracts.chain, rich), await new_signer(contracts.chain, rich, 5)
    await contracts.registry.register(owner, node, PeerId(b"peer"), domain, stake=50 * COIN)
    epoch = testchain.next_epoch()
    session = make_session(client, node, model=TEST_MODEL, expiry=epoch * EPOCH + 60)
    donation = Donation(session, countersign(domain, session, node, client, tokens=10**9))
    testchain.next_epoch()
    claim = await contracts.emission.claim(owner, node.address, epoch, [donation])
    assert (claim.counted, claim.units, claim.skipped) == (1, 10**9 * 15 * TEST_RATE, {})
    testchain.next_epoch()
    await contracts.emission.mint(owner, node.address, epoch)
    await contracts.token.transfer(owner, client.address, 100 * ONE_CREDIT)
    return Pair(owner, node, client, donation, epoch)


async def owed(contracts: Bindings, pair: Pair, total: int, key: Signer | None = None, step: int = 1) -> Countersigned:
    domain = contracts_domain(contracts)
    session = make_session(pair.client, pair.node, model=TEST_MODEL, expiry=2**40, price=1, key=key)
    return countersign(domain, session, pair.node, key or pair.client, tokens=step, total=total, step=step)


def contracts_domain(contracts: Bindings) -> Domain:
    return Domain(contracts.chain.chain_id, contracts.settlement.address)


async def test_a_credits_life(contracts: Bindings, testchain: TestChain, pair: Pair) -> None:
    token, settlement = contracts.token, contracts.settlement
    client, node = pair.client, pair.node.address
    supply, first = await token.supply(), await contracts.chain.block_number()
    await settlement.fund(client, {node: 10 * ONE_CREDIT, testchain.signers[2].address: ONE_CREDIT})
    account = await settlement.account(client.address, node)
    assert (account.balance, account.collected, account.thaw_end) == (10 * ONE_CREDIT, 0, 0)
    assert await token.balance(client.address) == 89 * ONE_CREDIT

    before = await token.balance(pair.owner.address)
    newest = await owed(contracts, pair, 3 * ONE_CREDIT + 1)
    result = await settlement.settle(testchain.signers[3], node, [newest])
    burned, minted = 3 * ONE_CREDIT + 1, mintable(3 * ONE_CREDIT + 1)
    assert (result.burned, result.minted, result.skipped) == (burned, minted, ())
    assert (result.settled[0].total, result.settled[0].fee) == (burned, burned - minted)
    assert await token.balance(pair.owner.address) == before + minted
    assert await token.supply() == supply - burned + minted
    assert (await settlement.account(client.address, node)).funded == 10 * ONE_CREDIT
    assert await settlement.fees_burned(await settlement.current_epoch()) >= burned - minted

    replay = await settlement.settle(testchain.signers[3], node, [newest, await owed(contracts, pair, 99 * ONE_CREDIT)])
    assert [(one.index, one.reason) for one in replay.skipped] == [(0, Skip.NOTHING_OWED)]
    assert replay.burned == 7 * ONE_CREDIT - 1  # as far as the escrow reaches

    events = await contracts.events(first + 1, await contracts.chain.block_number())
    names = [event.name for event in events if event.contract == "Settlement"]
    assert names == ["Funded", "Funded", "Settled", "Skipped", "Settled"]
    assert [event.index for event in events if event.block == events[0].block] == sorted(
        event.index for event in events if event.block == events[0].block
    )


async def test_bad_items_are_skipped_with_a_reason(contracts: Bindings, testchain: TestChain, pair: Pair) -> None:
    node, rich = pair.node.address, testchain.signers[4]
    good = await owed(contracts, pair, ONE_CREDIT)
    empty = await contracts.settlement.settle(rich, node, [good])
    assert empty.skipped[0].reason is Skip.EMPTY_ACCOUNT
    await contracts.settlement.fund(pair.client, {node: 10 * ONE_CREDIT})
    stranger = Signer(b"\x09" * 32)
    forged = await owed(contracts, Pair(pair.owner, stranger, pair.client, pair.donation, 0), ONE_CREDIT)
    unknown = await owed(contracts, pair, ONE_CREDIT, key=stranger)
    result = await contracts.settlement.settle(rich, node, [forged, unknown, good])
    assert [one.reason for one in result.skipped] == [Skip.BAD_RECEIPT, Skip.UNKNOWN_KEY]
    assert result.burned == ONE_CREDIT
    with pytest.raises(Reverted, match="not registered") as caught:
        await contracts.settlement.settle(rich, stranger.address, [good])
    assert (caught.value.error, caught.value.values["node"].lower()) == ("NotRegistered", stranger.address.lower())


async def test_session_keys(contracts: Bindings, testchain: TestChain, pair: Pair) -> None:
    settlement, client, node = contracts.settlement, pair.client, pair.node.address
    key, second, never = Signer(b"\x0a" * 32), Signer(b"\x0b" * 32), Signer(b"\x0c" * 32)
    until = await contracts.chain.time() + 3600
    await settlement.authorize(client, key.address, until)
    delegation = Delegation(client.address, second.address, until, paid=True)
    await settlement.authorize_by_sig(
        testchain.signers[5], delegation, delegation.sign(testchain.network.domain, client)
    )
    views = await settlement.accounts(node, [(client.address, one.address) for one in (key, second, never, client)])
    assert [view.key_valid_until for view in views] == [until, until, 0, 2**64 - 1]
    assert await settlement.accounts(node, []) == []

    await settlement.fund(client, {node: ONE_CREDIT})
    paid = await settlement.settle(testchain.signers[5], node, [await owed(contracts, pair, 1000, key=key)])
    assert paid.burned == 1000
    await settlement.revoke(client, key.address)
    assert (await settlement.session_key(client.address, key.address)).valid_until <= await contracts.chain.time()
    with pytest.raises(Reverted) as again:
        await settlement.authorize(client, key.address, until)
    assert again.value.error == "KeyKnown"
    with pytest.raises(Reverted) as far:
        await settlement.authorize(client, never.address, until + 91 * 86_400)
    assert far.value.error == "BadValidity"
    foreign = Delegation(client.address, never.address, until, paid=True)
    with pytest.raises(Reverted) as forged:
        await settlement.authorize_by_sig(client, foreign, foreign.sign(testchain.network.domain, key))
    assert forged.value.error == "BadDelegation"


async def test_thaw_and_withdraw(contracts: Bindings, testchain: TestChain, pair: Pair) -> None:
    settlement, client, node = contracts.settlement, pair.client, pair.node.address
    await settlement.fund(client, {node: 10 * ONE_CREDIT})
    await settlement.thaw(client, node)
    account = await settlement.account(client.address, node)
    assert account.funded == 0
    assert account.thaw_end == await contracts.chain.time() + await settlement.thaw_seconds()
    with pytest.raises(Reverted, match=r"still thawing \(thawEnd 20\d\d-") as early:
        await settlement.withdraw(client, node)
    assert early.value.error == "StillThawing"
    await settlement.cancel_thaw(client, node)
    assert (await settlement.account(client.address, node)).funded == 10 * ONE_CREDIT
    await settlement.thaw(client, node)
    testchain.devchain.travel(await settlement.thaw_seconds() + 1)
    await settlement.withdraw(client, node)
    assert await contracts.token.balance(client.address) == 100 * ONE_CREDIT


async def test_donated_lane_states_and_refusals(contracts: Bindings, testchain: TestChain, pair: Pair) -> None:
    emission, node, domain = contracts.emission, pair.node, testchain.network.domain
    done = await emission.pending(node.address, pair.epoch)
    assert done.status is Status.MINTED
    assert (await emission.claim_of(node.address, pair.epoch)).minted
    assert done.amount <= await emission.budget(pair.epoch) <= 1000 * ONE_CREDIT
    with pytest.raises(Reverted) as twice:
        await emission.mint(pair.owner, node.address, pair.epoch)
    assert twice.value.error == "AlreadyMinted"

    epoch = await emission.current_epoch()
    assert await emission.epoch_seconds() == EPOCH
    assert (await emission.pending(node.address, epoch)).status is Status.NOTHING
    inside = [make_session(pair.client, node, model=TEST_MODEL, expiry=epoch * EPOCH + 60) for _ in range(3)]
    foreign = make_session(pair.client, pair.owner, model=TEST_MODEL, expiry=epoch * EPOCH + 60)
    late = make_session(pair.client, node, model=TEST_MODEL, expiry=(epoch + 1) * EPOCH)
    donations = [
        Donation(session, countersign(domain, session, node, pair.client, tokens=100))
        for session in (*inside, foreign, late)
    ]
    testchain.next_epoch()
    claim = await emission.claim(pair.owner, node.address, epoch, donations)
    assert claim.counted == 3
    assert claim.skipped == {
        donations[3].session_id: ClaimSkip.FOREIGN_NODE,
        donations[4].session_id: ClaimSkip.WRONG_EPOCH,
    }
    again = await emission.claim(pair.owner, node.address, epoch, donations[:3])
    assert set(again.skipped.values()) == {ClaimSkip.NOT_RISING}
    assert again.units == claim.units == 3 * 100 * 15 * TEST_RATE
    waiting = await emission.pending(node.address, epoch)
    assert waiting.status is Status.WAITING
    with pytest.raises(Reverted) as early:
        await emission.mint(pair.owner, node.address, epoch)
    assert early.value.error == "TooEarly"
    testchain.next_epoch()
    assert (await emission.pending(node.address, epoch)).status is Status.MINTABLE
    assert await emission.mint(testchain.signers[6], node.address, epoch) == waiting.amount > 0
    with pytest.raises(Reverted) as stranger:
        await emission.claim(testchain.signers[6], node.address, epoch + 1, [])
    assert stranger.value.error == "NotOperatorOrOwner"
    paid = countersign(domain, inside[0], node, pair.client, tokens=1, total=5)
    with pytest.raises(ProofError, match="not free"):
        await emission.claim(pair.owner, node.address, epoch + 1, [Donation(inside[0], paid)])


async def test_leaving_by_signature(contracts: Bindings, testchain: TestChain, pair: Pair) -> None:
    """A wallet without a coin: others send what it signs, each order once."""
    settlement, domain, node = contracts.settlement, testchain.network.domain, pair.node.address
    wallet, sender = await new_signer(contracts.chain, testchain.signers[1]), testchain.signers[3]
    await contracts.token.transfer(pair.client, wallet.address, 10 * ONE_CREDIT)
    deadline = await contracts.chain.time() + 10 * 86_400
    assert await settlement.nonce(wallet.address) == 0
    order = Fund(wallet.address, (node, pair.owner.address), (Credits(3), Credits(4)), 0, deadline)
    permit = await contracts.token.permit(wallet, settlement.address, 7)
    await settlement.send_fund(sender, order, order.sign(domain, wallet), permit)
    assert (await settlement.account(wallet.address, node)).balance == 3
    steps: list[Thaw | CancelThaw | Revoke] = [
        Thaw(wallet.address, node, 1, deadline),
        CancelThaw(wallet.address, node, 2, deadline),
        Thaw(wallet.address, node, 3, deadline),
        Revoke(wallet.address, pair.owner.address, 4, deadline),
    ]
    for one in steps:
        await settlement.send_order(sender, one, one.sign(domain, wallet))
    (view,) = await settlement.accounts(node, [(wallet.address, pair.owner.address)])
    assert (view.key_valid_until, view.key_revoked) == (0, True)
    with pytest.raises(Reverted) as twice:
        await settlement.send_order(sender, steps[2], steps[2].sign(domain, wallet))
    assert (twice.value.error, twice.value.values["nonce"]) == ("BadOrder", 5)
    assert await settlement.thaw_end_block(wallet.address, node) <= await contracts.chain.block_number() + 1
    leave = Withdraw(wallet.address, node, 5, deadline)
    testchain.devchain.travel(await settlement.thaw_seconds() + 1)
    await settlement.send_order(sender, leave, leave.sign(domain, wallet))
    assert await contracts.token.balance(wallet.address) == 10 * ONE_CREDIT - 4


async def test_both_sides_close(contracts: Bindings, testchain: TestChain, pair: Pair) -> None:
    settlement, client, domain, node = contracts.settlement, pair.client, testchain.network.domain, pair.node.address
    await settlement.fund(client, {node: 10 * ONE_CREDIT})
    soon = await contracts.chain.time() + 600
    release = Release(node, client.address, Credits(3 * ONE_CREDIT), soon)
    signed = release.sign(domain, pair.node)
    with pytest.raises(Reverted) as unpaid:
        await settlement.close(client, release, signed)
    assert unpaid.value.error == "NotSettled"
    await settlement.close(client, release, signed, [await owed(contracts, pair, 3 * ONE_CREDIT)])
    account = await settlement.account(client.address, node)
    assert (account.balance, account.collected) == (0, 3 * ONE_CREDIT)
    assert await contracts.token.balance(client.address) == 97 * ONE_CREDIT

    await settlement.fund(client, {node: ONE_CREDIT})
    consent = Close(client.address, node, await settlement.nonce(client.address), soon)
    sender = testchain.signers[3]
    with pytest.raises(Reverted) as forged:
        await settlement.close_by_sig(sender, consent, consent.sign(domain, pair.node), release, signed)
    assert forged.value.error == "BadOrder"
    await settlement.close_by_sig(sender, consent, consent.sign(domain, client), release, signed)
    assert await contracts.token.balance(client.address) == 97 * ONE_CREDIT


async def test_a_node_changes_hands(contracts: Bindings, testchain: TestChain, pair: Pair) -> None:
    registry, node, heir = contracts.registry, pair.node.address, testchain.signers[9]
    await registry.offer_ownership(pair.owner, node, heir.address)
    await registry.offer_ownership(pair.owner, node, None)
    with pytest.raises(Reverted) as taken_back:
        await registry.accept_ownership(heir, node)
    assert taken_back.value.error == "NotOffered"
    await registry.offer_ownership(pair.owner, node, heir.address)
    await registry.accept_ownership(heir, node)
    info = await registry.node(node)
    assert info is not None
    assert (info.owner, info.payout, info.bonded) == (heir.address, pair.owner.address, 50 * COIN)


async def test_strikes_by_their_bindings(contracts: Bindings, testchain: TestChain, pair: Pair) -> None:
    """Four strikes that live cost a fifth of the stake; the deployer is the only auditor."""
    disputes, domain, node = contracts.disputes, testchain.network.domain, pair.node.address
    auditor, anyone = testchain.signers[0], testchain.signers[3]
    epochs = []
    for number in range(5):
        epoch = testchain.next_epoch()
        verdict = Strike(node, epoch, bytes([7, number]) * 16, anyone.address)
        await disputes.strike(anyone, verdict, [verdict.sign(domain, auditor)])
        if number == 1:
            pardon = Pardon(node, epoch, verdict.evidence)
            await disputes.pardon(anyone, pardon, [pardon.sign(domain, auditor)])
        else:
            epochs.append(epoch)
    testchain.next_epoch()
    with pytest.raises(Reverted) as early:
        await disputes.slash_struck(anyone, node)
    assert early.value.error == "NotEnoughStrikes"
    testchain.next_epoch()
    assert await disputes.slash_struck(anyone, node) == epochs
    info = await contracts.registry.node(node)
    assert info is not None
    assert info.bonded == 40 * COIN


async def test_a_nodes_record(contracts: Bindings, testchain: TestChain, pair: Pair) -> None:
    registry, node = contracts.registry, pair.node.address
    unknown = Address(testchain.signers[7].address)
    info, nobody = await registry.nodes([node, unknown])
    assert nobody is None
    assert info is not None
    assert info == await registry.node(node)
    assert (info.owner, info.payout, info.bonded) == (pair.owner.address, pair.owner.address, 50 * COIN)
    await registry.bond(pair.owner, node, COIN)
    await registry.set_payout(pair.owner, node, unknown)
    await registry.set_peer(pair.owner, pair.node, PeerId(b"another"), testchain.network.domain)
    assert await registry.stake_for(node, await contracts.settlement.current_epoch()) == 50 * COIN
    changed = await registry.node(node)
    assert changed is not None
    assert (changed.bonded, changed.payout) == (51 * COIN, unknown)
    assert changed.peer_id_hash == keccak(b"another")
    await registry.unbond(pair.owner, node)
    with pytest.raises(Reverted):
        await registry.withdraw_stake(pair.owner, node)
    testchain.devchain.travel((await contracts.parameters.fixed()).unbond + 1)
    await registry.withdraw_stake(pair.owner, node)
    assert await contracts.chain.balance(pair.owner.address) > 50 * COIN
    with pytest.raises(Reverted) as foreign:
        await registry.bond(testchain.signers[7], node, COIN)
    assert foreign.value.error == "NotOwner"


async def test_equivocation_is_proved(contracts: Bindings, testchain: TestChain, pair: Pair) -> None:
    session = make_session(pair.client, pair.node, model=TEST_MODEL, expiry=2**40)
    domain = testchain.network.domain
    one, other = (countersign(domain, session, pair.node, pair.client, tokens=n).receipt for n in (1, 2))
    with pytest.raises(ProofError, match="contradict nothing"):
        await contracts.disputes.prove_equivocation(testchain.signers[8], one, one)
    await contracts.disputes.prove_equivocation(testchain.signers[8], one, other)
    info = await contracts.registry.node(pair.node.address)
    assert info is not None
    assert (info.retired, info.bonded) == (True, 25 * COIN)


async def test_a_deposit_that_cannot_be_is_told_before_anything_is_sent(contracts: Bindings, pair: Pair) -> None:
    with pytest.raises(BadInput, match="too few credits"):
        await contracts.settlement.fund(pair.client, {pair.node.address: 101 * ONE_CREDIT})
    with pytest.raises(BadInput, match="nothing to deposit"):
        await contracts.settlement.fund(pair.client, {})


@pytest.mark.parametrize("said", [0, -1, 2**255])
async def test_an_epoch_of_no_length_is_no_answer(
    contracts: Bindings, said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that counts epochs divides by it."""

    async def liar(*_: object) -> int:
        return said

    monkeypatch.setattr(contracts.emission, "read", liar)
    with pytest.raises(ChainError, match="length of an epoch"):
        await contracts.emission.epoch_seconds()
