"""Sessions, receipts and vouchers signed as a node and a client would, for tests of what comes after them."""

import secrets

from hivemint.protocol.eip712 import Domain, Receipt, Session, numerics_hash, peer_id_hash
from hivemint.protocol.ids import BlockIndex, Credits, Head, ModelId, Step, Tokens
from hivemint.protocol.receipt import Countersigned, sign_receipt, sign_voucher
from hivemint.protocol.signing import Signer


def make_session(
    client: Signer, node: Signer, *, model: ModelId, expiry: int, price: int = 0, key: Signer | None = None
) -> Session:
    """A session of 15 blocks; `expiry` in seconds since 1970 by the chain's clock, `price` in wei per token."""
    return Session(
        client=client.address,
        session_key=(key or client).address,
        node=node.address,
        peer_id_hash=peer_id_hash(node.address.encode()),
        model_id=model,
        numerics=numerics_hash("fp32/fp32/fp32"),
        first_block=BlockIndex(0),
        end_block=BlockIndex(15),
        price=Credits(price),
        max_amount=Credits(price * 10**9),
        max_tokens=10**9,
        expiry=expiry,
        nonce=secrets.token_bytes(32),
    )


def countersign(
    domain: Domain, session: Session, node: Signer, key: Signer, *, tokens: int, total: int = 0, step: int = 1
) -> Countersigned:
    """A receipt of `node` over `tokens` in all, bound by a voucher of `key` with `total` wei."""
    receipt = Receipt(
        node=node.address,
        client=session.client,
        session_id=session.session_id(domain),
        step=Step(step),
        tokens=Tokens(tokens),
        head=Head(secrets.token_bytes(32)),
    )
    signed = sign_receipt(domain, receipt, node)
    return Countersigned(signed, sign_voucher(domain, signed, Credits(total), key))
