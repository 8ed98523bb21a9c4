"""Served sessions over a real journal, without a network and a device: what a node decides about steps and money."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hivemint.ledger.books.entries import Entry
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.store.database import database_url
from hivemint.node.sessions.account import ClientAccount
from hivemint.node.sessions.session import ServedSession, TakenStep
from hivemint.node.sessions.steps.checks import Again, judge
from hivemint.protocol.eip712 import Session
from hivemint.protocol.ids import FORWARD, Address, BlockIndex, Credits, ModelId, Step, TensorHash
from hivemint.protocol.receipt import CheckedReceipt, CheckedVoucher, Leaf, following, opening, sign_receipt
from hivemint.protocol.receipt import sign_voucher as sign
from hivemint.protocol.signing import Signer
from hivemint.swarm.messages import Limits, Refused, StepReceipt, StepRequest
from support.node_client import View
from support.promises import DOMAIN, signer

NODE, CLIENT = signer(71), signer(72)
PRICE = 10
OWN = 2**64 - 1


@dataclass
class Desk:
    """One node's sessions and books. `signers`: what signs a session's vouchers."""

    path: Path
    journal: Journal = field(init=False)
    accounts: dict[Address, ClientAccount] = field(default_factory=dict)
    signers: dict[bytes, Signer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        self.journal = Journal.open(database_url(self.path / "journal.db"), DOMAIN, NODE.address)

    async def restart(self) -> None:
        """The process ends and begins again: no session lives on."""
        await self.journal.close()
        self.accounts.clear()
        self.open()

    def account(self, client: Signer = CLIENT) -> ClientAccount:
        known = self.accounts.get(client.address)
        if known is None:
            known = self.accounts[client.address] = ClientAccount(client.address, self.journal)
            known.see(View(), now=1)
        return known

    async def session(
        self,
        client: Signer = CLIENT,
        *,
        key: Signer | None = None,
        until: int = OWN,
        price: int = PRICE,
        ahead: int = 2,
        max_rows: int = 16,
        max_backward: int = 8,
        **changes: Any,
    ) -> ServedSession:
        """Open; `until`: the end of its key by the chain."""
        fields: dict[str, Any] = {
            "client": client.address,
            "session_key": (key or client).address,
            "node": NODE.address,
            "peer_id_hash": b"\x01" * 32,
            "model_id": ModelId(b"\x02" * 32),
            "numerics": b"\x03" * 32,
            "first_block": BlockIndex(0),
            "end_block": BlockIndex(2),
            "price": Credits(price),
            "max_amount": Credits(10**6),
            "max_tokens": 64,
            "expiry": 2**40,
            "nonce": secrets.token_bytes(32),
        }
        terms = Session(**fields | changes)
        session_id = await self.journal.open_session(terms, terms.sign(DOMAIN, key or client))
        self.signers[session_id] = key or client
        receipt = sign_receipt(DOMAIN, opening(NODE.address, client.address, session_id), NODE)
        account = self.account(client)
        account.see_key(terms.session_key, until)
        return ServedSession(terms, session_id, account, Limits(64, max_rows, ahead, max_backward), receipt)

    def voucher(self, session: ServedSession, bound: CheckedReceipt, total: int) -> CheckedVoucher:
        return sign(DOMAIN, bound, Credits(total), self.signers[session.session_id])

    def request(
        self,
        session: ServedSession,
        count: int,
        total: int,
        *,
        start: int | None = None,
        step: int | None = None,
        bound: CheckedReceipt | None = None,
        kind: int = FORWARD,
        **changes: Any,
    ) -> StepRequest:
        """The next step, at the cache's end; `total`: of its voucher."""
        signed = self.voucher(session, bound or session.receipt, total).signed
        number = Step(session.last + 1 if step is None else step)
        begin = session.length if start is None else start
        return StepRequest(number, kind, begin, count, signed, **changes)

    def take(self, session: ServedSession, made: StepRequest) -> TakenStep | Refused | Again:
        """As the conversation does it once the signature is checked."""
        verdict = judge(session, made)
        if verdict is not None:
            return verdict
        bound = session.bound_step(made.voucher.body.receipt)
        assert bound is not None
        return session.take(made, self.voucher(session, session.receipts[bound], made.voucher.body.total))

    def asked(self, session: ServedSession, count: int, total: int, **changes: Any) -> TakenStep | Refused | Again:
        return self.take(session, self.request(session, count, total, **changes))

    async def answer(self, session: ServedSession, step: TakenStep) -> CheckedReceipt:
        """As `Steps` does it once the device is done."""
        session.seal(step)
        await self._store(session, step.price, step)
        hashes = TensorHash(secrets.token_bytes(32)), TensorHash(secrets.token_bytes(32))
        made = step.request
        leaf = Leaf(session.receipt.head, made.step, made.kind, made.start, made.count, *hashes)
        receipt = sign_receipt(DOMAIN, following(session.receipt.body, leaf), NODE)
        session.answer(step, receipt, StepReceipt(receipt.signed, b""))
        return receipt

    async def drop(self, session: ServedSession, first: Step, *, begun: bool = False) -> list[TakenStep]:
        gone = session.drop(first, begun=begun)
        for step in gone:
            await self._store(session, 0, step)
        return gone

    def leave(self, session: ServedSession, reason: Any) -> None:
        """The session ends, and with the client's last one its account."""
        session.close(reason, "it is over")
        self.journal.close_session(session.session_id)
        if not session.account.sessions:
            self.accounts.pop(session.terms.client, None)

    async def _store(self, session: ServedSession, price: int, step: TakenStep) -> None:
        owed, signed = session.account.entered(price), session.receipt.body
        await self.journal.record(
            Entry(session.terms.client, session.session_id, owed, step.pair, signed.step, signed.tokens)
        )
