"""Which nodes answer now: each is dialled, and asked for one small donated session that is closed at once."""

import asyncio
import secrets
from collections.abc import Sequence

from hivemint.client.sessions.opening import greet, shake_hands, sign_session
from hivemint.client.sessions.payer import Payer
from hivemint.client.sessions.route import Leg
from hivemint.client.sessions.wallet import ChainPort, Identity
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.protocol.eip712 import Domain
from hivemint.protocol.errors import HivemintError, Refusal
from hivemint.protocol.ids import BlockIndex, Credits
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import Host
from hivemint.swarm.messages import Code
from hivemint.swarm.records import NodeRecord

SESSION_TIME = 120.0


async def silent_nodes(
    host: Host,
    records: Sequence[NodeRecord],
    domain: Domain,
    book: VoucherBook,
    chain: ChainPort | None,
    *,
    timeout: float = 10.0,
) -> dict[bytes, str]:
    """Peer id -> why it should get no credits now: nobody answers there, or it is going down. Others are left out.

    A throw-away key asks, and nothing is promised to anybody. A node that is merely busy is none of these.
    """
    payer = Payer(Identity.own(Signer(secrets.token_bytes(32))), domain, book, chain)
    expiry = await payer.expiry(SESSION_TIME)
    reasons = await asyncio.gather(*(_ask(host, one, payer, expiry, timeout) for one in records))
    return {bytes(one.peer): reason for one, reason in zip(records, reasons, strict=True) if reason}


async def _ask(host: Host, record: NodeRecord, payer: Payer, expiry: int, timeout: float) -> str:
    first, end = BlockIndex(record.first_block), BlockIndex(record.end_block)
    leg = Leg(record, first, end, Credits(0), record.numerics[0], 0.0, 0.0)
    try:
        greeting = await greet(host, leg, timeout)
    except Refusal as error:
        return _word(error)
    except HivemintError as error:
        return _first(error)
    try:
        signed = sign_session(greeting, payer, tokens=1, margin=1.0, expiry=expiry)
        await shake_hands(greeting, signed, payer, previous=None, next_hop=None, timeout=timeout)
    except Refusal as error:
        return _word(error) if error.code == Code.DRAINING else ""
    except HivemintError as error:
        return _first(error)
    finally:
        await greeting.link.close("asked whether it answers")
    return ""


def _word(error: Refusal) -> str:
    return error.what.partition(": ")[2] or error.what


def _first(error: HivemintError) -> str:
    """Of a long chain of reasons the first: the rest names sockets."""
    return (error.why or error.what).partition(": ")[0]
