"""A client of one or more nodes, by hand: what a test needs to say something right, or something wrong on purpose."""

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from hivemint.protocol.eip712 import Domain, Session, numerics_hash, peer_id_hash
from hivemint.protocol.ids import BACKWARD, FORK, Address, Credits, Head, PeerId, SessionId, Step, TensorHash
from hivemint.protocol.receipt import (
    CheckedReceipt,
    Leaf,
    check_receipt,
    following,
    fork,
    opening,
    sign_voucher,
)
from hivemint.protocol.signing import Signer
from hivemint.swarm.link import Link
from hivemint.swarm.messages import (
    Neighbours,
    Open,
    Opened,
    Peer,
    Previous,
    Refused,
    Routed,
    StepReceipt,
    StepRequest,
    Tensor,
    TensorHead,
    Terms,
)
from hivemint.swarm.rows import row_hashes, tensor_hash, to_wire


@dataclass(frozen=True)
class View:
    funded: Credits = Credits(10**24)  # noqa: RUF009
    thawing: bool = False
    collected: Credits = Credits(0)  # noqa: RUF009


@dataclass
class FakeFunds:
    """The chain as admission sees it: funds, keys and time that a test may change. `behind`: seconds by which one
    endpoint's time is earlier.
    """

    accounts: dict[Address, View] = field(default_factory=dict)
    keys: dict[tuple[Address, Address], int] = field(default_factory=dict)
    now: int = 0
    behind: int = 0

    async def account(self, client: Address) -> View:
        return self.accounts.get(client, View())

    async def key(self, client: Address, key: Address) -> int:
        return 2**64 - 1 if key == client else self.keys.get((client, key), 0)

    async def time(self) -> int:
        return self.now

    async def earliest(self) -> int:
        return self.now - self.behind


@dataclass
class NodeSession:
    """One session over one link, with the client's own chain of receipts."""

    link: Link
    domain: Domain
    session: Session
    key: Signer
    receipt: CheckedReceipt
    total: int = 0
    terms: Any = None
    kept: list[CheckedReceipt] = field(default_factory=list)
    more: bytes = b""
    """What stands behind the row hashes of every step's input: the digest of an adapter."""

    @classmethod
    async def open(
        cls,
        link: Link,
        domain: Domain,
        client: Signer,
        *,
        key: Signer | None = None,
        price: int = 0,
        max_tokens: int = 64,
        **changes: Any,
    ) -> "NodeSession":
        """Raises RefusedError with the node's Refused."""
        terms = await link.receive()
        assert isinstance(terms, Terms), terms
        fields: dict[str, Any] = {
            "client": client.address,
            "session_key": (key or client).address,
            "node": terms.operator,
            "peer_id_hash": peer_id_hash(link.peer),
            "model_id": terms.model_id,
            "numerics": numerics_hash(terms.numerics[0]),
            "first_block": terms.first_block,
            "end_block": terms.end_block,
            "price": Credits(price),
            "max_amount": Credits(price * 1000),
            "max_tokens": max_tokens,
            "expiry": int(time.time()) + 3600,
            "nonce": terms.nonce,
        }
        delegation = changes.pop("delegation", None)
        signer = changes.pop("signer", key or client)
        session = Session(**fields | changes)
        await link.send(Open(session, session.sign(domain, signer), delegation))
        answer = await link.receive()
        if isinstance(answer, Refused):
            raise RefusedError(answer)
        assert isinstance(answer, Opened), answer
        first = opening(session.node, session.client, session.session_id(domain))
        receipt = check_receipt(domain, answer.receipt, first)
        made = cls(link, domain, session, key or client, receipt, int(answer.owed), terms)
        made.kept.append(receipt)
        return made

    @property
    def session_id(self) -> SessionId:
        return self.receipt.session_id

    async def route(
        self, previous: "NodeSession | None" = None, to: tuple[PeerId, tuple[str, ...]] | None = None
    ) -> Any:
        before = (
            Previous(previous.link.peer, previous.session.node, previous.session_id) if previous is not None else None
        )
        await self.link.send(Neighbours(before, Peer(to[0], to[1]) if to else None))
        return await self.link.receive()

    def request(self, count: int = 1, *, start: int, step: int | None = None, **changes: Any) -> StepRequest:
        """The next step, paid. Changes: any field of StepRequest, or `bound` (a receipt) and `total`."""
        bound = changes.pop("bound", self.receipt)
        number = self.receipt.step + 1 if step is None else step
        self.total += self.session.price * count * (2 if changes.get("kind") == BACKWARD else 1)
        total = changes.pop("total", self.total)
        voucher = sign_voucher(self.domain, bound, Credits(total), changes.pop("signer", self.key)).signed
        fields: dict[str, Any] = {"step": Step(number), "kind": 0, "start": start, "count": count, "voucher": voucher}
        return StepRequest(**fields | changes)

    async def send(self, request: StepRequest, hidden: torch.Tensor | None = None) -> None:
        tensor = [] if hidden is None else [Tensor(TensorHead(request.step), to_wire(hidden, "fp32"))]
        await self.link.send(request, *tensor)

    async def answer(self) -> Any:
        """The next message that is no Tensor, and the Tensor before it."""
        tensor = None
        while isinstance(message := await self.link.receive(), Tensor):
            tensor = message
        return message, tensor

    def check(self, request: StepRequest, input_hash: TensorHash, answer: StepReceipt) -> CheckedReceipt:
        """The head as the client derives it, then the signature."""
        leaf = Leaf(
            self.receipt.head,
            request.step,
            request.kind,
            request.start,
            request.count,
            input_hash,
            tensor_hash(answer.rows),
        )
        self.receipt = check_receipt(self.domain, answer.receipt, following(self.receipt.body, leaf))
        self.kept.append(self.receipt)
        return self.receipt

    async def fork(self, parent: "NodeSession", count: int, **changes: Any) -> None:
        """Begin with the first `count` tokens of `parent`, and check the receipt for it."""
        await self.send(self.fork_request(parent, count, **changes))
        answer, tensor = await self.answer()
        if isinstance(answer, Refused):
            raise RefusedError(answer)
        assert isinstance(answer, StepReceipt), answer
        assert tensor is None
        assert answer.rows == b""
        before = self.receipt.body
        leaf = fork(before, parent.receipt.body, count)
        self.receipt = check_receipt(self.domain, answer.receipt, following(before, leaf))
        self.kept.append(self.receipt)

    def fork_request(self, parent: "NodeSession", count: int, **changes: Any) -> StepRequest:
        head = changes.pop("head", parent.receipt.head)
        fields = {"kind": FORK, "parent": head, "total": self.total, **changes}
        made = self.request(count, start=fields.pop("start", 0), **fields)
        self.total -= self.session.price * count
        return made

    async def step(self, hidden: torch.Tensor, start: int) -> torch.Tensor:
        """One whole step of a single node, checked; `[count, hidden]` in and out."""
        return await self.take(self.request(hidden.shape[0], start=start, rows="all"), hidden)

    async def backward(self, hidden: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of a whole sequence's input, `[count, hidden]`, checked like any other step."""
        request = self.request(hidden.shape[0], start=0, kind=BACKWARD, rows="all")
        return await self.take(request, torch.cat([hidden, gradient], dim=1))

    async def take(self, request: StepRequest, hidden: torch.Tensor) -> torch.Tensor:
        """Send a step whose output comes back whole, and check what does. Raises RefusedError."""
        await self.send(request, hidden)
        answer, tensor = await self.answer()
        if isinstance(answer, Refused):
            raise RefusedError(answer)
        assert isinstance(answer, StepReceipt), answer
        assert tensor is not None
        self.check(request, hash_of(hidden, self.more), answer)
        assert tensor_hash(row_hashes(tensor.data, len(tensor.data) // hidden.shape[0])) == tensor_hash(answer.rows)
        return torch.frombuffer(bytearray(tensor.data), dtype=torch.float32).view(hidden.shape[0], -1)


class RefusedError(Exception):
    """The node declined."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(f"{refused.code}: {refused.what} {refused.why}")
        self.refused = refused


def hash_of(hidden: torch.Tensor, more: bytes = b"") -> TensorHash:
    data = to_wire(hidden, "fp32")
    return tensor_hash(row_hashes(data, len(data) // hidden.shape[0]) + more)


def random_head() -> Head:
    return Head(secrets.token_bytes(32))


def routed(message: object) -> bool:
    return isinstance(message, Routed)
