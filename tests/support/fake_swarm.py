"""Nodes in this process for tests of the client: real messages, signatures and hashes over queues, no model.

A node adds the number of its blocks to every number of a row, so a whole route adds the model's number of blocks.
It refuses what a real node refuses: a foreign session, a voucher that does not cover, that binds too old a receipt,
that is above what the account holds or too far ahead of the debt (N2); what it refused counts for nothing.
Faults are asked for by name, from a step on: see `FakeNode.faults`; `FakeNode.refuse` answers a request with anything.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch

from hivemint.contracts.bindings import Account
from hivemint.protocol.eip712 import Domain, Session, numerics_hash, peer_id_hash
from hivemint.protocol.errors import LinkClosed, SwarmError
from hivemint.protocol.ids import Address, BlockIndex, Credits, ModelId, PeerId, Signature, Step, TensorHash
from hivemint.protocol.receipt import (
    CheckedReceipt,
    CheckedVoucher,
    Countersigned,
    Leaf,
    SignedReceipt,
    check_voucher,
    following,
    opening,
    sign_receipt,
)
from hivemint.protocol.signing import Signer, recover
from hivemint.swarm import messages as m
from hivemint.swarm.dht.clock import SwarmClock
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.records import CheckedRecord, NodeRecord, check_record, sign_record
from hivemint.swarm.rows import from_wire, row_bytes, row_hashes, tensor_hash, to_wire

DOMAIN = Domain(31337, Address("0x5FbDB2315678afecb367f032d93F642f64180aa3"))
MODEL = ModelId(b"\x07" * 32)
HIDDEN = 8
NUMERICS = "fp32/fp32/fp32"
MAX_TOKENS = 512


class FakeLink:
    """One end of a link; messages go through their wire form."""

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.closed, self.reason, self.trip = False, "", 0.0
        self.other: FakeLink
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()

    @classmethod
    def pair(cls, client: PeerId, node: PeerId) -> "tuple[FakeLink, FakeLink]":
        one, two = cls(node), cls(client)
        one.other, two.other = two, one
        return one, two

    async def send(self, *messages: m.AnyMessage) -> None:
        await asyncio.sleep(0)
        if self.closed:
            raise LinkClosed("The link has ended", why=self.reason)
        for message in messages:
            number, parts = m.encode(message)
            self.other._inbox.put_nowait((number, b"".join(parts)))

    async def receive(self) -> m.AnyMessage:
        item = None if self.closed and self._inbox.empty() else await self._inbox.get()
        if item is None:
            raise LinkClosed("The link has ended", why=self.reason)
        return m.decode(*item)

    async def close(self, reason: str = "") -> None:
        self.abort(reason)

    def abort(self, reason: str) -> None:
        for end in (self, self.other):
            if not end.closed:
                end.closed, end.reason = True, reason
                end._inbox.put_nowait(None)


@dataclass
class Books:
    """What a node keeps of one client over all sessions."""

    highest: int = 0
    owed: int = 0
    newest: CheckedVoucher | None = None


@dataclass(eq=False)
class FakeSession:
    session: Session
    session_id: bytes
    link: FakeLink
    receipt: CheckedReceipt
    route: m.Neighbours | None = None
    known: dict[bytes, CheckedReceipt] = field(default_factory=dict)
    bound: list[tuple[int, int]] = field(default_factory=list)  # (step of the request, step that its voucher binds)
    inputs: dict[int, "asyncio.Future[bytes]"] = field(default_factory=dict)
    outputs: bytearray = field(default_factory=bytearray)
    waiting: m.StepRequest | None = None
    requests: "asyncio.Queue[m.StepRequest]" = field(default_factory=asyncio.Queue)
    taken: int = 0
    spent: int = 0
    position: int = 0
    signed_off: bool = False
    countersigned: Countersigned | None = None

    @property
    def may_be_in_flight(self) -> int:
        """What a voucher may be ahead for this session's sake, if its node keeps to its terms."""
        return 0 if self.link.closed or self.signed_off else max(0, self.session.max_amount - self.spent)

    def keep(self, start: int, output: bytes) -> None:
        self.outputs[start * row_bytes(HIDDEN, "fp32") :] = output

    def kept(self, start: int, count: int) -> bytes:
        width = row_bytes(HIDDEN, "fp32")
        assert (start + count) * width <= len(self.outputs), "asked for outputs that are not there"
        return bytes(self.outputs[start * width : (start + count) * width])

    def input(self, step: int) -> "asyncio.Future[bytes]":
        return self.inputs.setdefault(step, asyncio.get_running_loop().create_future())


class FakeNode:
    """`faults`: name -> first step with it. Names: `output` (a changed byte towards the client), `push` (towards the
    next node), `rows`, `head`, `forged`, `missing-output`, `silent`, `die`, `busy`, `funds` (refuses paid sessions),
    `claim` (a debt that was never promised), `old-opening`, `two-faced` (signs another answer for the next node),
    `no-push` (its output goes nowhere), `nan` (an output that is no number, signed for)."""

    def __init__(
        self,
        first: int,
        end: int,
        *,
        ask: int = 0,
        ahead: int = 2,
        seed: int = 1,
        numerics: tuple[str, ...] = (NUMERICS,),
    ) -> None:
        self.operator = Signer(secrets.token_bytes(32))
        self.key = PeerKey.generate()
        self.first, self.end, self.ask, self.ahead, self.numerics = first, end, Credits(ask), ahead, numerics
        self.faults: dict[str, int] = {}
        self.delay, self.retry_after, self.input_limit = 0.0, 0.01, 30.0
        self.max_rows, self.max_tokens = 64, MAX_TOKENS
        self.books: dict[Address, Books] = {}
        self.sessions: list[FakeSession] = []
        self.refused: list[m.Refused] = []
        self.refuse: Callable[[FakeSession, m.StepRequest, Books], m.Refused | m.Closed | None] = lambda *_: None
        """A hostile node's answer to a request, in the place of the honest one."""
        self.signed: list[int] = []
        """The totals of all vouchers that came with requests, whatever became of them."""
        self.chain: FakeAccounts | None = None
        self.hops: list[tuple[bytes, int]] = []
        self.dials = 0
        self.began = asyncio.Event()
        self.swarm: FakeSwarm
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def peer(self) -> PeerId:
        return self.key.peer_id

    def record(self, **changes: Any) -> CheckedRecord:
        record = NodeRecord(
            network="test",
            model_id=MODEL,
            first_block=BlockIndex(self.first),
            end_block=BlockIndex(self.end),
            peer=self.peer,
            operator=self.operator.address,
            numerics=self.numerics,
            ask=self.ask,
            ahead=self.ahead,
            max_rows=self.max_rows,
            addresses=("/ip4/127.0.0.1/tcp/1",),
            tokens_per_s=20.0,
            free_tokens=10_000,
            expires=time.time() + 60,
        )
        record = msgspec.structs.replace(record, **changes)
        return check_record(sign_record(record, self.operator, self.key).to_bytes())

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def has(self, fault: str, step: int) -> bool:
        return fault in self.faults and step >= self.faults[fault]

    async def serve(self, link: FakeLink) -> None:
        with contextlib.suppress(LinkClosed):
            await self._serve(link)

    async def _serve(self, link: FakeLink) -> None:
        nonce = secrets.token_bytes(32)
        await link.send(
            m.Terms(
                nonce=nonce,
                operator=self.operator.address,
                model_id=MODEL,
                first_block=self.first,
                end_block=self.end,
                numerics=self.numerics,
                ask=self.ask,
                limits=m.Limits(self.max_tokens, self.max_rows, self.ahead, self.max_rows),
            )
        )
        opened = await link.receive()
        assert isinstance(opened, m.Open)
        if self.has("busy", 0):
            self.faults["busy"] -= 1
            if self.faults["busy"] <= -3:
                del self.faults["busy"]
            await link.send(m.Refused(code=m.Code.BUSY, what="no room", retry_after=self.retry_after))
            link.abort("busy")
            return
        if self.has("drain", 0):
            await link.send(m.Refused(code=m.Code.DRAINING, what="The node is going down"))
            return
        session = opened.session
        if self.has("funds", 0) and session.price:
            await link.send(m.Refused(code=m.Code.FUNDS, what="the account does not cover it"))
            return
        digest = session.session_id(DOMAIN)
        assert recover(digest, opened.signature) == session.session_key  # type: ignore[arg-type]
        assert (session.node, session.peer_id_hash, session.nonce) == (
            self.operator.address,
            peer_id_hash(self.peer),
            nonce,
        )
        assert session.numerics in {numerics_hash(one) for one in self.numerics}
        assert session.price in (0, *range(self.ask * session.blocks, 17 * self.ask * session.blocks + 1))
        books = self.books.setdefault(session.client, Books())
        first = sign_receipt(DOMAIN, opening(self.operator.address, session.client, digest), self.operator)
        state = FakeSession(session, digest, link, first, known={first.digest: first})
        self.sessions.append(state)
        shown = first.signed
        if self.has("old-opening", 0):
            shown = SignedReceipt(shown.body, Signature(bytes(32) + shown.signature[32:]))
        owed = Credits(books.owed + (1 if self.has("claim", 0) else 0))
        await link.send(m.Opened(receipt=shown, highest=books.newest.signed if books.newest else None, owed=owed))
        route = await link.receive()
        assert isinstance(route, m.Neighbours)
        state.route = route
        await link.send(m.Routed())
        self.spawn(self._work(state))
        while True:
            message = await link.receive()
            match message:
                case m.StepRequest():
                    await self._request(state, books, message)
                case m.Tensor():
                    if state.input(message.head.step).done():  # of a request that was refused before it came
                        del state.inputs[message.head.step]
                    state.input(message.head.step).set_result(bytes(message.data))
                case m.Neighbours():
                    state.route = message
                    state.inputs.clear()
                    await link.send(m.Routed())
                case m.Resend():
                    assert state.route is not None
                    assert state.route.next is not None
                    data = state.kept(message.start, message.count)
                    await self.swarm.push(self, state, message.step, data, state.route.next.peer, None)
                case m.Cancel():
                    pending = [r for r in state.requests._queue if r.step >= message.from_step]  # type: ignore[attr-defined]
                    if (late := state.waiting) is not None and late.step >= message.from_step:
                        state.inputs.pop(_source(late)).cancel()
                        pending.append(late)
                    for request in pending:
                        if request is not late:
                            state.requests._queue.remove(request)  # type: ignore[attr-defined]
                        books.owed -= request.count * session.price
                        state.spent -= request.count * session.price
                        state.taken -= 1
                    await link.send(m.Cancelled(last=Step(state.taken), owed=Credits(books.owed)))
                case m.Close():
                    state.signed_off = True
                    if message.voucher is not None:
                        self._keep(state, books, self._voucher(state, message.voucher, Step(state.taken + 1)))
                    await link.send(m.Closed())
                case _:
                    raise AssertionError(message)

    def _voucher(self, state: FakeSession, signed: Any, step: Step) -> Countersigned:
        receipt = state.known[signed.body.receipt]
        checked = check_voucher(DOMAIN, signed, receipt.digest, state.session.session_key)
        state.bound.append((step, receipt.step))
        assert receipt.step >= step - self.ahead, "binds too old a receipt"
        return Countersigned(receipt, checked)

    def _keep(self, state: FakeSession, books: Books, countersigned: Countersigned) -> None:
        state.countersigned, checked = countersigned, countersigned.voucher
        if checked.total >= books.highest:
            books.highest, books.newest = checked.total, checked

    def _wrong(self, state: FakeSession, books: Books, total: int, cost: int) -> str:
        """Why a voucher does not pay for a step; "" if it does."""
        if not cost:
            return "money in the donated lane" if total else ""
        if max(books.highest, total) < books.owed + cost:
            return "the voucher does not cover this step"
        ahead = sum(
            min(self.ahead * self.max_rows * one.session.price, one.may_be_in_flight)
            for one in self.sessions
            if one.session.client == state.session.client
        )
        if total > books.owed + cost + ahead:
            return "the voucher is too far ahead"
        if self.chain is not None and total > self.chain.account(self.operator.address).funded:
            return "the voucher is above what the account holds"
        return ""

    async def _request(self, state: FakeSession, books: Books, request: m.StepRequest) -> None:
        cost = request.count * state.session.price
        assert request.step == state.taken + 1
        assert request.step - state.receipt.step <= self.ahead, "too many steps in flight"
        assert request.start <= state.position, "a gap"
        self.signed.append(request.voucher.body.total)
        countersigned = self._voucher(state, request.voucher, request.step)
        wrong = self._wrong(state, books, countersigned.voucher.total, cost)
        answer = self.refuse(state, request, books)
        if wrong and answer is None:
            proof = books.newest.signed if books.newest else None
            answer = m.Refused(m.Code.VOUCHER, wrong, step=request.step, owed=Credits(books.owed), proof=proof)
            self.refused.append(answer)
        if answer is not None:
            state.inputs.pop(request.step, None)
            await state.link.send(answer)
            return
        self._keep(state, books, countersigned)
        books.owed += cost
        state.spent += cost
        state.taken += 1
        state.position = request.start + request.count
        state.requests.put_nowait(request)

    async def _work(self, state: FakeSession) -> None:
        with contextlib.suppress(LinkClosed):
            while True:
                request = await state.requests.get()
                self.began.set()
                await self._step(state, request)

    async def _undo(self, state: FakeSession, request: m.StepRequest, code: m.Code, what: str) -> None:
        """A step that failed: nothing is owed for it."""
        cost, books = request.count * state.session.price, self.books[state.session.client]
        books.owed, state.spent, state.taken = books.owed - cost, state.spent - cost, state.taken - 1
        await state.link.send(m.Refused(code, what, step=request.step, owed=Credits(books.owed)))

    async def _step(self, state: FakeSession, request: m.StepRequest) -> None:
        state.waiting = request
        given = state.input(_source(request))
        try:
            async with asyncio.timeout(self.input_limit):
                data = await given
        except asyncio.CancelledError:
            if given.cancelled():  # by its client
                return
            raise
        except TimeoutError:
            await self._undo(state, request, m.Code.MISSING, "The step's input did not come")
            return
        finally:
            state.waiting = None
        if not torch.frombuffer(bytearray(data), dtype=torch.float32).isfinite().all():
            await self._undo(state, request, m.Code.INPUT, "The input is not finite")
            return
        if self.has("silent", request.step):
            await asyncio.sleep(3600)
        if self.has("die", request.step):
            state.link.abort("the stream ended")
            return
        if self.delay:
            await asyncio.sleep(self.delay)
        width = row_bytes(HIDDEN, "fp32")
        tensor = from_wire(data, request.count, HIDDEN, "fp32", torch.float32)
        output = to_wire(tensor + (torch.nan if self.has("nan", request.step) else state.session.blocks), "fp32")
        state.keep(request.start, output)
        rows = row_hashes(output, width)
        previous = state.receipt.body
        leaf = Leaf(
            previous.head,
            request.step,
            0,
            request.start,
            request.count,
            tensor_hash(row_hashes(data, width)),
            tensor_hash(rows),
        )
        if self.has("head", request.step):
            leaf = msgspec.structs.replace(leaf, input_hash=TensorHash(b"\1" * 32))
        state.receipt = sign_receipt(DOMAIN, following(previous, leaf), self.operator)
        state.known[state.receipt.digest] = state.receipt
        if request.push and not self.has("no-push", request.step):
            assert state.route is not None
            assert state.route.next is not None
            pushed = _changed(output) if self.has("push", request.step) else output
            other = None
            if self.has("two-faced", request.step):
                lie = msgspec.structs.replace(state.receipt.body, head=b"\1" * 32)
                other = sign_receipt(DOMAIN, lie, self.operator).signed
            await self.swarm.push(self, state, request.step, pushed, state.route.next.peer, other)
        if request.rows != "none" and not self.has("missing-output", request.step):
            sent = output if request.rows == "all" else output[-width:]
            sent = _changed(sent) if self.has("output", request.step) else sent
            await state.link.send(m.Tensor(m.TensorHead(step=request.step), sent))
        signed = state.receipt.signed
        if self.has("forged", request.step):
            signed = sign_receipt(DOMAIN, signed.body, Signer(secrets.token_bytes(32))).signed
        shown = _changed(rows) if self.has("rows", request.step) else rows
        await state.link.send(m.StepReceipt(receipt=signed, rows=shown))


class FakeSwarm:
    """Stands for a Host: `find` and `dial`, and the push links between nodes."""

    def __init__(self, *nodes: FakeNode) -> None:
        self.nodes = list(nodes)
        self.peer_id = PeerKey.generate().peer_id
        self.dead: set[PeerId] = set()
        self.looked = asyncio.Event()
        self.clock = SwarmClock()
        for node in nodes:
            node.swarm = self

    async def find(self, model_id: ModelId, blocks: range) -> list[CheckedRecord]:
        assert model_id == MODEL
        self.looked.set()
        return [node.record() for node in self.nodes]

    async def dial(self, peer: PeerId, addresses: Sequence[str], protocol: str, *, timeout: float = 5.0) -> FakeLink:
        node = next(node for node in self.nodes if node.peer == peer)
        node.dials += 1
        if peer in self.dead:
            raise SwarmError("The peer does not answer", why="connection refused")
        mine, its = FakeLink.pair(self.peer_id, peer)
        node.spawn(node.serve(its))
        return mine

    async def push(
        self, sender: FakeNode, state: FakeSession, step: int, data: bytes, to: bytes, other: SignedReceipt | None
    ) -> None:
        """Only to a session that named this one as its source. `other`: a receipt that its receiver complains of."""
        node = next(node for node in self.nodes if node.peer == to)
        node.hops.append((sender.peer, step))
        for session in node.sessions:
            previous = session.route.previous if session.route else None
            if previous is not None and previous.session == state.session_id:
                assert (previous.peer, previous.operator) == (sender.peer, sender.operator.address)
                if other is not None:
                    complaint = m.Refused(m.Code.INPUT, "the receipt does not fit", step=Step(step), evidence=other)
                    await session.link.send(complaint)
                elif not session.input(step).done():
                    session.input(step).set_result(data)

    async def close(self) -> None:
        for node in self.nodes:
            for task in list(node._tasks):
                task.cancel()


@dataclass
class FakeAccounts:
    """The chain as a client sees it."""

    ahead: int = 0
    funded: dict[Address, int] = field(default_factory=dict)
    collected: dict[Address, int] = field(default_factory=dict)
    thawing: set[Address] = field(default_factory=set)
    keys: set[Address] = field(default_factory=set)
    asked: list[Address] = field(default_factory=list)
    peers: dict[Address, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, *nodes: FakeNode, funds: int = 0) -> "FakeAccounts":
        chain = cls()
        for node in nodes:
            chain.add(node, funds)
        return chain

    def add(self, node: FakeNode, funds: int) -> None:
        """Register a node and fund the client's account there."""
        node.chain = self
        self.funded[node.operator.address] = funds
        self.peers[node.operator.address] = peer_id_hash(node.peer)

    async def time(self) -> int:
        return int(time.time()) + self.ahead

    async def accounts(self, client: Address, nodes: Sequence[Address]) -> Mapping[Address, Account]:
        self.asked += nodes
        return {node: self.account(node) for node in nodes}

    def account(self, node: Address) -> Account:
        collected, thaw_end = self.collected.get(node, 0), 2**40 if node in self.thawing else 0
        return Account(Credits(self.funded.get(node, 0) - collected), Credits(collected), thaw_end)

    async def on_record(self, client: Address, key: Address) -> bool:
        return key in self.keys

    async def peer_hashes(self, nodes: Sequence[Address]) -> Mapping[Address, bytes]:
        return {node: self.peers[node] for node in nodes if node in self.peers}

    async def close(self) -> None:
        return None


def _source(request: m.StepRequest) -> int:
    """The number that its input comes under."""
    return request.step if request.source is None else request.source


def _changed(data: bytes) -> bytes:
    """The same with its last byte changed by one bit."""
    return data[:-1] + bytes([data[-1] ^ 1])
