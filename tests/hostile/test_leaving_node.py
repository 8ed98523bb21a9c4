"""A node that releases a real client's account, over real links, and lies about it."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hivemint.client.leaving import Parting, part
from hivemint.client.sessions.errors import NodeGone, NodeLied, NodeRefusal
from hivemint.client.sessions.payer import NodeUnproven, Payer
from hivemint.client.sessions.wallet import Identity
from hivemint.contracts.bindings import Account
from hivemint.ledger.books.voucher_book import Owing, VoucherBook
from hivemint.protocol.eip712 import Release
from hivemint.protocol.errors import HivemintError, SwarmError
from hivemint.protocol.ids import Address, BlockIndex, Credits, PeerId, Signature
from hivemint.protocol.receipt import CheckedReceipt, sign_voucher
from hivemint.protocol.signing import Signer, recover
from hivemint.swarm.host import CONTROL, Host, HostSettings
from hivemint.swarm.link import Link
from hivemint.swarm.messages import Code, Left, Limits, Refused, Terms
from hivemint.swarm.messages import Leave as LeaveMessage
from hivemint.swarm.records import NodeRecord
from support.promises import DOMAIN, Work, signer

NODE, WALLET, KEY, STRANGER = signer(170), signer(171), signer(172), signer(173)
OWED, HELD = 700, 5_000
MODEL = b"\2" * 32


@dataclass
class Chain:
    """What the client reads of the account."""

    balance: int = HELD
    collected: int = 0
    keys: set[Address] = field(default_factory=set)

    async def time(self) -> int:
        return int(time.time())

    async def accounts(self, client: Address, nodes: Sequence[Address]) -> Mapping[Address, Account]:
        return {node: Account(Credits(self.balance), Credits(self.collected), 0) for node in nodes}

    async def peer_hashes(self, nodes: Sequence[Address]) -> Mapping[Address, bytes]:
        return {}

    async def on_record(self, client: Address, key: Address) -> bool:
        return key in self.keys

    async def close(self) -> None: ...


@dataclass
class Node:
    """It answers a Leave with `answers`, one after the other; the last one for ever."""

    host: Host
    answers: list[Any]
    asked: list[LeaveMessage] = field(default_factory=list)

    async def serve(self, link: Link) -> None:
        nonce = bytes([len(self.asked)]) * 32
        await link.send(Terms(nonce, NODE.address, MODEL, 0, 2, ("fp32/fp32/fp32",), Credits(1), Limits(64, 16, 2)))
        message = await link.receive()
        assert isinstance(message, LeaveMessage)
        assert message.leave.nonce == nonce
        self.asked.append(message)
        await link.send(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        await link.receive()


@dataclass
class Scene:
    node: Node
    client: Host
    book: VoucherBook
    chain: Chain
    receipt: CheckedReceipt

    async def leave(self, *answers: Any) -> Parting:
        self.node.answers = list(answers)
        record = NodeRecord(
            network="test",
            model_id=MODEL,
            first_block=BlockIndex(0),
            end_block=BlockIndex(2),
            peer=self.node.host.peer_id,
            operator=NODE.address,
            numerics=("fp32/fp32/fp32",),
            ask=Credits(1),
            addresses=self.node.host.addresses,
            expires=time.time() + 600,
        )
        payer = Payer(Identity.own(WALLET), DOMAIN, self.book, self.chain)
        async with asyncio.timeout(60):
            return await part(self.client, record, payer, WALLET)

    def honest(self, promised: int = OWED, *, key: Signer = WALLET, by: Signer = NODE, **changes: Any) -> Left:
        """`changes`: of the release. The voucher is `key`'s for `promised`."""
        release = msgspec.structs.replace(
            Release(NODE.address, WALLET.address, Credits(promised), int(time.time()) + 1800), **changes
        )
        voucher = sign_voucher(DOMAIN, self.receipt, Credits(promised), key)
        return Left(release, release.sign(DOMAIN, by), self.receipt.signed, voucher.signed)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """The client owes OWED by its own book: of 1,000 promised, a step of 300 was refused."""
    async with AsyncExitStack() as stack:
        host = await Host.start(HostSettings("test"))
        stack.push_async_callback(host.close)
        client = await Host.start(HostSettings("test", listen=(), bootstrap=host.addresses))
        stack.push_async_callback(client.close)
        book = VoucherBook.open(tmp_path / "vouchers.db", DOMAIN, WALLET.address, b"\1" * 32)
        stack.callback(book.close)
        receipt = Work(WALLET, NODE).step(70)
        book.promise_all([Owing(NODE.address, Credits(OWED), receipt.digest)])
        book.promise_all([Owing(NODE.address, Credits(300), receipt.digest)])
        book.delivered(NODE.address, Credits(OWED))
        book.released(NODE.address, Credits(300))
        node = Node(host, [])
        await host.serve(CONTROL, node.serve)
        yield Scene(node, client, book, Chain(), receipt)


async def test_what_an_honest_node_says_is_taken_to_the_chain(scene: Scene) -> None:
    said = scene.honest()
    parting = await scene.leave(said)
    assert (parting.release, parting.signature) == (said.release, said.signature)
    (item,) = parting.items
    assert (item.voucher.total, item.voucher.key) == (OWED, WALLET.address)
    (asked,) = scene.node.asked
    assert recover(asked.leave.digest(DOMAIN), asked.signature) == WALLET.address


async def test_what_the_chain_has_paid_needs_no_voucher(scene: Scene) -> None:
    scene.chain.collected = OWED
    said = scene.honest()
    assert (await scene.leave(Left(said.release, said.signature))).items == ()


async def test_another_machines_voucher_proves_what_this_one_does_not_know(scene: Scene) -> None:
    scene.chain.keys.add(KEY.address)
    parting = await scene.leave(scene.honest(1_200, key=KEY))
    assert parting.items[0].voucher.total == 1_200
    assert scene.book.standing(NODE.address).owed == 1_200


def soon(seconds: int) -> dict[str, Any]:
    return {"deadline": int(time.time()) + seconds}


LIES: dict[str, Any] = {
    "another client's": lambda at: at.honest(client=STRANGER.address),
    "another node's": lambda at: at.honest(node=STRANGER.address),
    "over already": lambda at: at.honest(**soon(-10)),
    "over before it is mined": lambda at: at.honest(**soon(20)),
    "good for a day": lambda at: at.honest(**soon(86_400)),
    "forged": lambda at: at.honest(by=STRANGER),
    "signed by nobody": lambda at: msgspec.structs.replace(at.honest(), signature=Signature(b"\xff" * 64)),
    "a total that its voucher does not reach": lambda at: at.honest(total=Credits(OWED + 1)),
    "a voucher that would collect more": lambda at: at.honest(1_000, total=Credits(OWED)),
    "no voucher": lambda at: msgspec.structs.replace(at.honest(), voucher=None),
    "no receipt": lambda at: msgspec.structs.replace(at.honest(), receipt=None),
    "a stranger's voucher": lambda at: at.honest(key=STRANGER),
    "a key's that the chain does not know": lambda at: at.honest(key=KEY),
    "another client's receipt": lambda at: msgspec.structs.replace(
        at.honest(), receipt=Work(STRANGER, NODE).step(70).signed
    ),
    "another node's receipt": lambda at: msgspec.structs.replace(
        at.honest(), receipt=Work(WALLET, STRANGER).step(70).signed
    ),
    "another receipt than its voucher's": lambda at: msgspec.structs.replace(
        at.honest(), receipt=Work(WALLET, NODE).step(70).signed
    ),
    "a forged receipt": lambda at: msgspec.structs.replace(
        at.honest(), receipt=msgspec.structs.replace(at.receipt.signed, signature=Signature(b"\1" * 64))
    ),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_release_that_does_not_hold_is_not_used(scene: Scene, lie: str) -> None:
    before = scene.book.standing(NODE.address)
    with pytest.raises(NodeLied) as caught:
        await scene.leave(LIES[lie](scene))
    assert caught.value.peers == (PeerId(scene.node.host.peer_id),)
    assert scene.book.standing(NODE.address) == before


async def test_a_debt_that_is_not_owed_is_not_paid(scene: Scene) -> None:
    """The voucher of the step that it refused: signed once, and never owed (C2, C3)."""
    before = scene.book.standing(NODE.address)
    with pytest.raises(NodeUnproven) as caught:
        await scene.leave(scene.honest(1_000))
    assert "1000 wei are owed" in caught.value.why
    assert scene.book.standing(NODE.address) == before


async def test_an_account_that_does_not_hold_the_debt_is_not_closed(scene: Scene) -> None:
    scene.chain.balance = OWED - 1
    with pytest.raises(SwarmError, match="does not hold"):
        await scene.leave(scene.honest())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Refused(Code.CONFLICT, "sessions are open", retry_after=3600.0), NodeRefusal),
        (Refused(Code.DRAINING, "going down", retry_after=1.0), NodeRefusal),
        (Terms(b"\1" * 32, NODE.address, MODEL, 0, 2, ("x",), Credits(1), Limits(64, 16, 2)), NodeGone),
    ],
)
async def test_a_node_that_refuses_ends_it(scene: Scene, answer: Any, error: type[HivemintError]) -> None:
    with pytest.raises(error):
        await scene.leave(answer)
    assert len(scene.node.asked) == 1


async def test_a_node_that_ends_a_session_is_asked_again(scene: Scene) -> None:
    busy = Refused(Code.CONFLICT, "sessions are open", retry_after=0.1)
    assert (await scene.leave(busy, busy, scene.honest())).release.total == OWED
    assert len({message.leave.nonce for message in scene.node.asked}) == 3
