"""One message of every type that peers send, and hosts for tests."""

import contextlib
from collections.abc import AsyncIterator

from hivemint.protocol.eip712 import Delegation, Leave, Receipt, Release, Session, Voucher
from hivemint.protocol.ids import (
    Address,
    BlockIndex,
    Credits,
    Digest,
    Head,
    ModelId,
    SessionId,
    Signature,
    Step,
    Tokens,
)
from hivemint.protocol.ids import TensorHash as Hash
from hivemint.protocol.receipt import Leaf, SignedReceipt, SignedVoucher
from hivemint.swarm import messages as m
from hivemint.swarm.host import Host, HostSettings
from hivemint.swarm.link import Link

NETWORK = "test"
NODE = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
CLIENT = Address("0x70997970C51812dc3A010C7d01b50e0d17dc79C8")
SIGNATURE = Signature(b"\x05" * 64)
SESSION = Session(
    CLIENT,
    CLIENT,
    NODE,
    b"\1" * 32,
    ModelId(b"\2" * 32),
    b"\3" * 32,
    BlockIndex(0),
    BlockIndex(15),
    Credits(2**90),
    Credits(2**95),
    2048,
    2**40,
    b"\4" * 32,
)
RECEIPT = SignedReceipt(Receipt(NODE, CLIENT, SessionId(b"\6" * 32), Step(3), Tokens(70), Head(b"\7" * 32)), SIGNATURE)
VOUCHER = SignedVoucher(Voucher(Digest(b"\x08" * 32), Credits(9)), SIGNATURE)
LEAF = Leaf(Head(b"\7" * 32), Step(4), 0, 70, 1, Hash(b"\x09" * 32), Hash(b"\x0a" * 32))

EVERY_TYPE: tuple[m.AnyMessage, ...] = (
    m.Terms(b"\1" * 32, NODE, b"\2" * 32, 0, 15, ("fp32/fp32/fp32",), Credits(2**70), m.Limits(2048, 512, 2)),
    m.Open(SESSION, SIGNATURE, m.SignedDelegation(Delegation(CLIENT, NODE, 2**40, False), SIGNATURE)),
    m.Opened(RECEIPT, VOUCHER, Credits(7)),
    m.Neighbours(m.Previous(b"\1" * 38, NODE, b"\2" * 32), m.Peer(b"\1" * 38, ("/ip4/127.0.0.1/tcp/1",))),
    m.Routed(),
    m.StepRequest(Step(4), 0, 70, 1, VOUCHER, source=Step(4), push=True, rows="last"),
    m.StepReceipt(RECEIPT, b"\1" * 32 * 512),
    m.HopReceipt(RECEIPT, LEAF),
    m.Cancel(Step(4)),
    m.Cancelled(Step(3), Credits(8)),
    m.Close(VOUCHER),
    m.Closed(m.Code.DRAINING, "the node stops"),
    m.Refused(m.Code.BUSY, "no room", retry_after=1.5),
    m.Load(b"\x0c" * 70_000),
    m.Loaded(b"\x0d" * 32),
    m.Leave(Leave(CLIENT, NODE, b"\x0e" * 32), SIGNATURE),
    m.Left(Release(NODE, CLIENT, Credits(2**90), 2**40), SIGNATURE, RECEIPT, VOUCHER),
    m.Tensor(m.TensorHead(Step(4), b"\6" * 32), bytes(range(256)) * 9),
    m.Tensor(m.TensorHead(Step(5)), b"\x0b" * 3_000_000),
)


def open_wide(link: Link) -> None:
    """Let the peer send every type up to the type's own limit."""
    link.allow(m.Tensor, m.Tensor.LIMIT)
    link.allow(m.Load, m.Load.LIMIT)
    link.allow(m.StepReceipt, m.StepReceipt.LIMIT)


@contextlib.asynccontextmanager
async def hosts(*settings: HostSettings) -> AsyncIterator[list[Host]]:
    """Started one after the other, all closed at the end."""
    started: list[Host] = []
    try:
        for one in settings:
            started.append(await Host.start(one))
        yield started
    finally:
        for host in reversed(started):
            await host.close()


def plain(message: m.AnyMessage) -> object:
    """As it can be compared: a tensor's data is a view of the buffer that it came in."""
    return (message.head, bytes(message.data)) if isinstance(message, m.Tensor) else message
