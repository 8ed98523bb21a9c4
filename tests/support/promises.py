"""Sessions, receipts and vouchers as a node and a client make them, for tests of what stores or settles them."""

import secrets
from dataclasses import dataclass, field

from hivemint.protocol.eip712 import Domain, Receipt, Session
from hivemint.protocol.ids import Address, BlockIndex, Credits, Head, ModelId, SessionId, Signature, Step, Tokens
from hivemint.protocol.receipt import CheckedReceipt, Countersigned, opening, sign_receipt, sign_voucher
from hivemint.protocol.signing import Signer

DOMAIN = Domain(31337, Address("0x5FbDB2315678afecb367f032d93F642f64180aa3"))

GENESIS = b"\x9e" * 32
"""The first block of the chain that tests are on."""


def signer(number: int) -> Signer:
    """The same key for the same number."""
    return Signer(number.to_bytes(32, "big"))


@dataclass
class Work:
    """One session between `client` and `node`: it signs its next receipt at each `step`."""

    client: Signer
    node: Signer
    price: int = 10
    expiry: int = 2**40
    domain: Domain = DOMAIN
    blocks: tuple[int, int] = (0, 15)
    model_id: bytes = b"\x22" * 32
    peer_id_hash: bytes = b"\x11" * 32
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    key: Signer | None = None
    """What signs for the client; None: its wallet's own key."""

    def __post_init__(self) -> None:
        self.session = Session(
            client=self.client.address,
            session_key=(self.key or self.client).address,
            node=self.node.address,
            peer_id_hash=self.peer_id_hash,
            model_id=ModelId(self.model_id),
            numerics=b"\x33" * 32,
            first_block=BlockIndex(self.blocks[0]),
            end_block=BlockIndex(self.blocks[1]),
            price=Credits(self.price),
            max_amount=Credits(10**24 if self.price else 0),
            max_tokens=10**6,
            expiry=self.expiry,
            nonce=self.nonce,
        )
        self.id: SessionId = self.session.session_id(self.domain)
        self.signature: Signature = self.session.sign(self.domain, self.key or self.client)
        self.receipt: CheckedReceipt = sign_receipt(
            self.domain, opening(self.node.address, self.client.address, self.id), self.node
        )

    def step(self, tokens: int = 1) -> CheckedReceipt:
        """The node signs one more step of `tokens` positions."""
        last = self.receipt.body
        following = Receipt(
            last.node,
            last.client,
            last.session_id,
            Step(last.step + 1),
            Tokens(last.tokens + tokens),
            Head(secrets.token_bytes(32)),
        )
        self.receipt = sign_receipt(self.domain, following, self.node)
        return self.receipt

    def countersign(self, total: int) -> Countersigned:
        """The client binds the newest receipt and promises `total` in all."""
        return Countersigned(
            self.receipt, sign_voucher(self.domain, self.receipt, Credits(total), self.key or self.client)
        )
