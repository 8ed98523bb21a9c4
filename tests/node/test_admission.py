"""Who may open a session: each check alone, on the real signatures."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemint.ledger.books.journal import Journal
from hivemint.ledger.store.database import database_url
from hivemint.node.engine.threads import Worker
from hivemint.node.sessions.account import ClientAccount
from hivemint.node.sessions.admission import CLOCK_SKEW, MAX_SESSION, Admission, Admitted
from hivemint.node.sessions.nonces import NONCE_LIFE, Nonces
from hivemint.node.sessions.offer import Offer
from hivemint.protocol.eip712 import Delegation, Domain, Session, numerics_hash, peer_id_hash
from hivemint.protocol.ids import Address, BlockIndex, Credits, ModelId, PeerId
from hivemint.protocol.signing import Signer
from hivemint.swarm.messages import Code, Limits, Open, Refused, SignedDelegation
from support.node_client import FakeFunds, View
from support.promises import DOMAIN, signer

NODE, CLIENT, KEY = signer(91), signer(92), signer(93)
PEER, MINE = PeerId(b"a client's peer id"), PeerId(b"this node's peer id")
LIMITS = Limits(1024, 128, 2, 64)
OFFER = Offer(NODE.address, MINE, ModelId(b"\x02" * 32), 4, 8, ("fp32/fp32/fp32",), Credits(5), LIMITS)


class Desk:
    """An admission with its own chain, clock and books."""

    def __init__(self, path: Path) -> None:
        self.now = time.time()
        self.chain = FakeFunds(now=int(self.now))
        self.journal = Journal.open(database_url(path / "journal.db"), DOMAIN, NODE.address)
        self.nonces = Nonces(clock=lambda: self.now)
        self.worker = Worker("admission test")
        self.accounts: dict[Address, ClientAccount] = {}
        self.admission = Admission(
            OFFER, DOMAIN, self.chain, self.worker, self.account, clock=lambda: self.now, nonces=self.nonces
        )

    def account(self, client: Address) -> ClientAccount:
        return self.accounts.setdefault(client, ClientAccount(client, self.journal))

    def session(self, **changes: Any) -> Session:
        fields: dict[str, Any] = {
            "client": CLIENT.address,
            "session_key": CLIENT.address,
            "node": NODE.address,
            "peer_id_hash": peer_id_hash(MINE),
            "model_id": OFFER.model_id,
            "numerics": numerics_hash("fp32/fp32/fp32"),
            "first_block": BlockIndex(4),
            "end_block": BlockIndex(8),
            "price": Credits(20),
            "max_amount": Credits(2000),
            "max_tokens": 100,
            "expiry": int(self.now) + 3600,
            "nonce": self.nonces.issue(PEER),
        }
        return Session(**fields | changes)

    async def admit(
        self,
        *,
        by: Signer = CLIENT,
        domain: Domain = DOMAIN,
        delegation: SignedDelegation | None = None,
        **changes: Any,
    ) -> Admitted | Code:
        session = self.session(**changes)
        answer = await self.admission.admit(PEER, Open(session, session.sign(domain, by), delegation))
        return answer.code if isinstance(answer, Refused) else answer


@pytest.fixture
async def desk(tmp_path: Path) -> Any:
    made = Desk(tmp_path)
    yield made
    made.worker.stop()
    await made.journal.close()


@given(st.binary(min_size=32, max_size=32))
def test_no_nonce_but_our_own_is_known(invented: bytes) -> None:
    assert Nonces().check(PEER, invented) is not None


def test_a_nonce_is_good_for_its_peer_for_a_minute_and_once() -> None:
    now = [1000.0]
    nonces = Nonces(clock=lambda: now[0])
    nonce = nonces.issue(PEER)
    assert nonces.issue(PEER) != nonce
    assert nonces.check(PEER, nonce) is None
    assert nonces.check(PeerId(b"another"), nonce) is not None
    assert Nonces(clock=lambda: now[0]).check(PEER, nonce) is not None, "another run of the node"
    nonces.spend(nonce)
    assert nonces.check(PEER, nonce) is not None
    late = nonces.issue(PEER)
    now[0] += NONCE_LIFE + 1
    assert nonces.check(PEER, late) is not None
    for _ in range(100):
        nonces.spend(nonces.issue(PEER))
        now[0] += 1
    assert len(nonces._spent) <= NONCE_LIFE + 1


@pytest.mark.parametrize(("first", "end", "part"), [(4, 8, None), (5, 7, (1, 3)), (4, 5, (0, 1)), (7, 8, (3, 4))])
async def test_any_part_of_the_span_for_its_share_of_the_price(
    desk: Desk, first: int, end: int, part: tuple[int, int] | None
) -> None:
    for price, code in ((5 * (end - first), None), (5 * (end - first) - 1, Code.PRICE)):
        session = desk.session(first_block=BlockIndex(first), end_block=BlockIndex(end), price=Credits(price))
        answer = await desk.admission.admit(PEER, Open(session, session.sign(DOMAIN, CLIENT)))
        assert isinstance(answer, Refused if code else Admitted)
        assert getattr(answer, "code", None) is code
        assert OFFER.part(session) == part


async def test_the_same_signed_session_opens_once(desk: Desk) -> None:
    session = desk.session()
    message = Open(session, session.sign(DOMAIN, CLIENT))
    assert isinstance(await desk.admission.admit(PEER, message), Admitted)
    again = await desk.admission.admit(PEER, message)
    assert isinstance(again, Refused)
    assert again.code is Code.NONCE


async def test_the_same_session_asked_twice_at_once_opens_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk.worker, "do", desk.worker.far)  # both wait for their signatures at the same time
    session = desk.session()
    message = Open(session, session.sign(DOMAIN, CLIENT))
    answers = await asyncio.gather(*(desk.admission.admit(PEER, message) for _ in range(3)))
    assert [isinstance(answer, Admitted) for answer in answers] == [True, False, False]
    assert {answer.code for answer in answers if isinstance(answer, Refused)} == {Code.NONCE}


async def test_a_forged_signature_spends_no_nonce(desk: Desk) -> None:
    session = desk.session()
    forged = Open(session, session.sign(DOMAIN, KEY))
    assert isinstance(await desk.admission.admit(PEER, forged), Refused)
    assert isinstance(await desk.admission.admit(PEER, Open(session, session.sign(DOMAIN, CLIENT))), Admitted)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"domain": msgspec.structs.replace(DOMAIN, chain_id=1)}, Code.KEY),
        ({"domain": msgspec.structs.replace(DOMAIN, settlement=NODE.address)}, Code.KEY),
        ({"price": Credits(19)}, Code.PRICE),
        ({"first_block": BlockIndex(3)}, Code.SPAN),
        ({"first_block": BlockIndex(8), "end_block": BlockIndex(9)}, Code.SPAN),
        ({"max_tokens": 0}, Code.LIMIT),
        ({"max_tokens": 1025}, Code.LIMIT),
        ({"max_amount": Credits(0)}, Code.LIMIT),
        ({"max_amount": Credits(20 * 100 - 1)}, Code.LIMIT),
        ({"max_tokens": 1024, "max_amount": Credits(20 * 128 - 1)}, Code.LIMIT),
        ({"expiry": 2**62}, Code.EXPIRY),
        ({"session_key": KEY.address, "by": KEY}, Code.KEY),
    ],
)
async def test_refusals(desk: Desk, changes: dict[str, Any], code: Code) -> None:
    assert await desk.admit(**changes) is code


async def test_expiry_counts_from_the_later_of_both_clocks(desk: Desk) -> None:
    desk.chain.now = int(desk.now) + 86_400
    assert await desk.admit(expiry=int(desk.now) + 3600) is Code.EXPIRY
    assert await desk.admit(expiry=desk.chain.now + CLOCK_SKEW) is Code.EXPIRY
    assert isinstance(await desk.admit(expiry=desk.chain.now + CLOCK_SKEW + 1), Admitted)
    assert isinstance(await desk.admit(expiry=desk.chain.now + MAX_SESSION + CLOCK_SKEW), Admitted)
    assert await desk.admit(expiry=desk.chain.now + MAX_SESSION + CLOCK_SKEW + 1) is Code.EXPIRY


async def test_session_keys_on_the_chain(desk: Desk) -> None:
    pair, expiry = (CLIENT.address, KEY.address), int(desk.now) + 3600
    desk.chain.keys[pair] = expiry
    got = await desk.admit(session_key=KEY.address, by=KEY, expiry=expiry)
    assert isinstance(got, Admitted)
    assert got.key_until == expiry
    assert await desk.admit(session_key=KEY.address, by=KEY, expiry=expiry + 1) is Code.EXPIRY
    desk.chain.keys[pair] = int(desk.now) - 1
    assert await desk.admit(session_key=KEY.address, by=KEY) is Code.REVOKED


async def test_a_delegation_is_enough_in_the_donated_lane_alone(desk: Desk) -> None:
    until = int(desk.now) + 7200
    granted = Delegation(CLIENT.address, KEY.address, until, paid=False)
    shown = SignedDelegation(granted, granted.sign(DOMAIN, CLIENT))
    key: dict[str, Any] = {"session_key": KEY.address, "by": KEY, "delegation": shown}
    assert isinstance(await desk.admit(price=Credits(0), **key), Admitted)
    assert await desk.admit(**key) is Code.KEY, "paid: only a key that the chain knows"
    assert await desk.admit(price=Credits(0), expiry=until + 1, **key) is Code.KEY
    forged = SignedDelegation(granted, granted.sign(DOMAIN, KEY))
    assert await desk.admit(price=Credits(0), **{**key, "delegation": forged}) is Code.KEY
    desk.chain.keys[CLIENT.address, KEY.address] = 1  # what the view answers for it
    assert await desk.admit(price=Credits(0), **key) is Code.REVOKED, "revoked without ever having been set"
    desk.chain.keys[CLIENT.address, KEY.address] = int(desk.now) - 1
    assert await desk.admit(price=Credits(0), **key) is Code.REVOKED, "a revoked key's old delegation is void"


async def test_the_account_must_cover_what_all_open_sessions_may_spend(desk: Desk) -> None:
    desk.chain.accounts[CLIENT.address] = View(funded=Credits(4500), collected=Credits(7))

    class Other:
        key, unspent, one_step, in_flight = CLIENT.address, 2400, 0, 0

    async def asked(**changes: Any) -> tuple[ClientAccount, Code | None]:
        admitted = await desk.admit(**changes)
        assert isinstance(admitted, Admitted)
        account, refused = await desk.admission.check_account(admitted)
        return account, refused.code if refused else None

    account, code = await asked()
    assert code is None
    assert (account.funded, account.owed) == (4500, 7), "what the chain has paid is spent"
    account.sessions.append(Other())
    assert (await asked(max_amount=Credits(2093)))[1] is None
    assert (await asked(max_amount=Credits(2094)))[1] is Code.FUNDS
    desk.chain.accounts[CLIENT.address] = replace(View(), thawing=True)
    assert (await asked())[1] is Code.THAWING
    assert (await asked(price=Credits(0)))[1] is None
    assert desk.journal.books() == {}, "asking writes nothing"
