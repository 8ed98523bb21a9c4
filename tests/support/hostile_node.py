"""A node that keeps to no rule, over real links: it takes, refuses or forgets steps as it is told, and claims any debt.

What it delivered and what it refused is counted, so that a test knows what its clients really owe. It adds the number
of its blocks to every number of a row.
"""

import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch

from hivemint.protocol.eip712 import MAX_UINT96, Domain, Session
from hivemint.protocol.errors import LinkClosed
from hivemint.protocol.ids import BlockIndex, Credits, ModelId, Signature, Step
from hivemint.protocol.receipt import (
    CheckedReceipt,
    Leaf,
    SignedReceipt,
    SignedVoucher,
    following,
    opening,
    sign_receipt,
)
from hivemint.protocol.signing import Signer
from hivemint.swarm import messages as m
from hivemint.swarm.host import CONTROL
from hivemint.swarm.records import CheckedRecord, NodeRecord, check_record, sign_record
from hivemint.swarm.rows import from_wire, row_bytes, row_hashes, tensor_hash, to_wire

MODEL, BLOCKS, HIDDEN = ModelId(b"\x07" * 32), 30, 8
NUMERICS = "fp32/fp32/fp32"


@dataclass(frozen=True)
class Move:
    """What becomes of one request.

    kind: take; refuse (`code`); silent, end (`code`), die, forge, odd: its fate stays unknown; again: done, and then
    refused. owed: what is claimed: the truth, all that was signed, nothing, anything; `off` more. proof: what is shown
    for it: nothing, the highest voucher, an older one, a stranger's.
    """

    kind: str = "take"
    code: m.Code = m.Code.VOUCHER
    owed: str = "truth"
    off: int = 0
    proof: str = "none"


HONEST = Move()


@dataclass(eq=False)
class Served:
    link: Any
    session: Session
    receipt: CheckedReceipt
    funded: int
    """What the account held when it was opened."""
    before: int
    """The highest total that had been signed then."""
    open: bool = True
    inputs: dict[int, bytes] = field(default_factory=dict)


class HostileNode:
    """`moves` are taken in turn, then it is honest. `first`: what it claims when a session opens.

    `signed`: all totals that clients have signed for it. `lies`: claims above the truth with something to show.
    """

    def __init__(self, host: Any, operator: Signer, domain: Domain, ask: int, funded: Callable[[], int]) -> None:
        self._host, self._operator, self._domain, self._ask, self._funded = host, operator, domain, ask, funded
        self.ahead, self.max_rows, self.max_tokens = 2, 4, 512
        self.moves: deque[Move] = deque()
        self.first = HONEST
        self.signed: list[int] = []
        self.shown: list[SignedVoucher] = []
        self.sessions: list[Served] = []
        self.delivered = self.unknown = self.lies = 0
        self.wrong: list[str] = []

    @property
    def owed(self) -> int:
        """What it may honestly say: what it has delivered, and what nobody else knows the fate of."""
        return self.delivered + self.unknown

    @property
    def highest(self) -> int:
        return max(self.signed, default=0)

    async def start(self) -> None:
        await self._host.serve(CONTROL, self._serve)

    def record(self) -> CheckedRecord:
        record = NodeRecord(
            network="test",
            model_id=MODEL,
            first_block=BlockIndex(0),
            end_block=BlockIndex(BLOCKS),
            peer=self._host.peer_id,
            operator=self._operator.address,
            numerics=(NUMERICS,),
            ask=Credits(self._ask),
            ahead=64,
            max_rows=512,
            addresses=self._host.addresses,
            tokens_per_s=20.0,
            free_tokens=10_000,
            expires=time.time() + 60,
        )
        return check_record(sign_record(record, self._operator, self._host.key).to_bytes())

    async def _serve(self, link: Any) -> None:
        with contextlib.suppress(LinkClosed):
            served = await self._greet(link)
            while served is not None:
                await self._hear(served, await link.receive())

    async def _greet(self, link: Any) -> Served | None:
        nonce, blocks = secrets.token_bytes(32), BLOCKS
        await link.send(
            m.Terms(
                nonce,
                self._operator.address,
                MODEL,
                0,
                blocks,
                (NUMERICS,),
                Credits(self._ask),
                m.Limits(self.max_tokens, self.max_rows, self.ahead),
            )
        )
        message = await link.receive()
        if not isinstance(message, m.Open):
            return None
        if self.first.kind == "refuse":
            await link.send(m.Refused(self.first.code, "no", retry_after=0.01))
            return None
        session = message.session
        receipt = opening(session.node, session.client, session.session_id(self._domain))
        made = sign_receipt(self._domain, receipt, self._operator)
        served = Served(link, session, made, self._funded(), self.highest)
        link.allow(m.Tensor, 1 << 16)
        self.sessions.append(served)
        owed, proof = self._claim(self.first)
        await link.send(m.Opened(made.signed, proof, owed))
        await link.receive()  # its Route
        await link.send(m.Routed())
        return served

    async def _hear(self, served: Served, message: Any) -> None:
        match message:
            case m.StepRequest():
                self._note(served, message.voucher)
                served.open = served.open and await self._ask_for(served, message)
            case m.Tensor():
                pass  # taken with its request
            case m.Cancel():
                await served.link.send(m.Cancelled(served.receipt.step, Credits(self.owed)))
            case m.Close():
                if message.voucher is not None:
                    self._note(served, message.voucher)
                await served.link.send(m.Closed())

    async def _ask_for(self, served: Served, request: m.StepRequest) -> bool:
        """Whether the session goes on."""
        cost, link = served.session.price * request.count, served.link
        data = (await link.receive()).data
        move = self.moves.popleft() if self.moves else HONEST
        if not served.open or request.step != served.receipt.step + 1:
            move = Move("silent") if not served.open else Move("refuse", m.Code.STEP)
        if move.kind == "refuse":
            await self._refuse(served, request, move)
            return True
        if move.kind in ("take", "again"):
            await self._do(served, request, bytes(data))
            self.delivered += cost
            if move.kind == "again":
                await self._refuse(served, request, move)
            return True
        self.unknown += cost
        if move.kind == "forge":
            await self._do(served, request, bytes(data), forged=True)
        elif move.kind == "odd":
            await link.send(m.Routed())
        elif move.kind == "end":
            await link.send(m.Closed(move.code, "no"))
        elif move.kind == "die":
            link.abort("the stream ended")
        return False

    async def _refuse(self, served: Served, request: m.StepRequest, move: Move) -> None:
        owed, proof = self._claim(move)
        await served.link.send(m.Refused(move.code, "no", step=request.step, owed=owed, proof=proof, retry_after=0.01))

    def _claim(self, move: Move) -> tuple[Credits, SignedVoucher | None]:
        wanted = {"truth": self.owed, "signed": self.highest, "nothing": 0, "anything": 10**9}[move.owed] + move.off
        owed = Credits(min(max(0, wanted), MAX_UINT96))
        ranked = sorted(self.shown, key=lambda one: one.body.total)
        proof = None
        if ranked and move.proof == "highest":
            proof = ranked[-1]
        elif ranked and move.proof == "older":
            proof = ranked[len(ranked) // 2]
        elif ranked and move.proof == "foreign":
            signature = Signer(b"\x66" * 32).sign(ranked[-1].body.digest(self._domain))
            proof = SignedVoucher(ranked[-1].body, Signature(signature))
        self.lies += proof is not None and owed > self.owed
        return owed, proof

    def _note(self, served: Served, voucher: SignedVoucher) -> None:
        total = int(voucher.body.total)
        self.signed.append(total)
        self.shown.append(voucher)
        if total > served.funded:
            self.wrong.append(f"{total} wei are signed, the account held {served.funded}")

    async def _do(self, served: Served, request: m.StepRequest, data: bytes, *, forged: bool = False) -> None:
        width = row_bytes(HIDDEN, "fp32")
        output = to_wire(from_wire(data, request.count, HIDDEN, "fp32", torch.float32) + BLOCKS, "fp32")
        rows, before = row_hashes(output, width), served.receipt.body
        leaf = Leaf(
            before.head,
            request.step,
            request.kind,
            request.start,
            request.count,
            tensor_hash(row_hashes(data, width)),
            tensor_hash(rows),
        )
        made = sign_receipt(self._domain, following(before, leaf), self._operator)
        signed = made.signed
        if forged:
            signed = SignedReceipt(msgspec.structs.replace(signed.body, tokens=signed.tokens + 1), signed.signature)
        else:
            served.receipt = made
        answer: list[Any] = [m.StepReceipt(signed, rows)]
        if request.rows != "none":
            sent = output if request.rows == "all" else output[-width:]
            answer.insert(0, m.Tensor(m.TensorHead(Step(request.step)), sent))
        await served.link.send(*answer)
