"""A client leaves: the node says up to which sum it is settled, so that the rest goes back at once (`Release`).

A release is good until its deadline, as often as there is something to pay out. So it is signed for a wallet alone that
has no paid session here, it is in the journal before it leaves, and until the chain's time has passed its deadline this
client gets no paid session, in this run of the node or a later one (`docs/protocol.md`, rule N12).
"""

from hivemint.ledger.books.journal import Journal
from hivemint.node.engine.threads import Worker
from hivemint.node.sessions.admission import FundsReader
from hivemint.node.sessions.nonces import Nonces
from hivemint.node.sessions.registry import SessionRegistry
from hivemint.protocol.eip712 import Domain, Release
from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import Address, Credits, PeerId
from hivemint.protocol.signing import Signer, recover
from hivemint.swarm.messages import Code, Leave, Left, Refused

GOOD_FOR = 1800
"""Seconds, by the chain's time; the contract takes an hour at most."""


class Leaving:
    """Decides on Leave messages; cheap checks first."""

    def __init__(
        self,
        domain: Domain,
        signer: Signer,
        nonces: Nonces,
        chain: FundsReader,
        worker: Worker,
        journal: Journal,
        registry: SessionRegistry,
    ) -> None:
        self._domain, self._signer, self._nonces = domain, signer, nonces
        self._chain, self._worker, self._journal, self._registry = chain, worker, journal, registry

    async def answer(self, peer: PeerId, message: Leave) -> Left | Refused:
        """Raises ChainError, WriteFailed. Nothing is written for a client that is refused, nor shown to a stranger."""
        leave = message.leave
        if leave.node != self._signer.address:
            return Refused(
                Code.NODE, "The client leaves another node", f"expected {self._signer.address}, got {leave.node}"
            )
        if refused := self._nonces.check(peer, leave.nonce):
            return refused
        if refused := await self._worker.do(_check_wallet, self._domain, message):
            return refused
        if refused := self._nonces.check(peer, leave.nonce):  # another Leave of this peer was faster
            return refused
        self._nonces.spend(leave.nonce)
        view = await self._chain.account(leave.client)
        if not view.thawing and view.funded <= view.collected:
            return Refused(
                Code.FUNDS,
                "The account at this node holds nothing that could go back",
                "a deposit counts once it is confirmed",
                "try again when it is",
            )
        now = await self._chain.earliest()
        return await self._release(leave.client, view.collected, now)

    async def _release(self, client: Address, collected: Credits, now: int) -> Left | Refused:
        """No await parts the look at the open sessions from the mark that keeps new ones out."""
        if self._registry.draining:
            return Refused(Code.DRAINING, "The node is going down", next_step="try again when it is back")
        if count := self._registry.paid_sessions(client):
            return Refused(
                Code.CONFLICT,
                "This client has paid sessions at this node",
                f"{count} are open",
                "close them first",
                retry_after=2.0,
            )
        self._journal.observe(client, collected)  # who is seen again is counted once
        until = self._journal.book(client).released_until
        if until < now + GOOD_FOR // 2:
            until = now + GOOD_FOR
        await self._journal.release(client, until)  # also one that is marked already: its write may be under way
        book = self._journal.book(client)
        release = Release(self._signer.address, client, book.earned, until)
        signature = release.sign(self._domain, self._signer)
        if book.best is None:
            return Left(release, signature)
        return Left(release, signature, book.best.receipt.signed, book.best.voucher.signed)


def _check_wallet(domain: Domain, message: Leave) -> Refused | None:
    """The wallet itself must want it: with a session key alone nobody can keep a wallet's work away from a node."""
    leave = message.leave
    try:
        signer = recover(leave.digest(domain), message.signature)
    except ProofError as error:
        return Refused(Code.KEY, error.what, error.why)
    if signer == leave.client:
        return None
    return Refused(
        Code.KEY,
        "The client does not ask for this itself",
        f"expected the signature of {leave.client}, got {signer}",
        "sign with the wallet's own key, for this network",
    )
