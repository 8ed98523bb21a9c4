"""One control link: the handshake, then the requests of its one session, one after the other."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

import structlog

from hivemint.contracts.errors import ChainError, LinkClosed, ProofError, ProtocolError, SwarmError
from hivemint.contracts.ids import PeerId, SessionId, Step
from hivemint.contracts.receipt import SignedVoucher, opening
from hivemint.ledger.writer import JournalError
from hivemint.node.admission import Admission, Admitted
from hivemint.node.kv_cache import OutOfRoom
from hivemint.node.lobby import Lobby
from hivemint.node.lora import Adapters, BadAdapter
from hivemint.node.room import Seat
from hivemint.node.scheduler import Lane
from hivemint.node.session import Again, ServedSession
from hivemint.node.steps import Shop, Steps
from hivemint.swarm.link import Link
from hivemint.swarm.messages import (
    Cancel,
    Cancelled,
    Close,
    Closed,
    Code,
    Load,
    Loaded,
    Open,
    Opened,
    Refused,
    Route,
    Routed,
    StepRequest,
    Tensor,
    Terms,
)

log = structlog.get_logger(__name__)
HANDSHAKE = 20.0
"""Seconds that a client has from Terms to Open."""
GOODBYE = 1.0
"""Seconds for the last word to a client."""


@dataclass(frozen=True)
class Parts:
    """What all conversations of a node share."""

    admission: Admission
    lobby: Lobby
    shop: Shop
    adapters: Adapters


class Talk:
    """The conversation with one client over one link."""

    def __init__(self, parts: Parts, link: Link) -> None:
        self.peer: PeerId = link.peer
        self.session: ServedSession | None = None
        self.key_on_chain = False
        self.active_at = time.monotonic()
        self._parts, self._shop, self._link = parts, parts.shop, link
        self._seat: Seat | None = None
        self._steps: Steps | None = None

    async def run(self) -> None:
        """Until the link ends; the host closes it then."""
        try:
            steps = await self._handshake()
            if steps is not None:
                await self._listen(steps)
        except LinkClosed:
            pass
        except ProtocolError as error:
            with suppress(SwarmError):
                await self._refuse(Refused(Code.PROTOCOL, error.what[:400], error.why[:400]))
        finally:
            await asyncio.shield(self._leave())

    async def end(self, code: Code, why: str, within: float | None = None) -> None:
        """The node ends the session: expiry, thaw, revocation, draining. Steps that were taken are finished first.

        What is not done `within` so many seconds is dropped, its input never came; nothing is owed for it.
        """
        if self.session is None or self.session.closed or self._steps is None:
            return
        self.session.close(code, why)
        try:
            async with asyncio.timeout(within):
                await self._steps.finish()
        except TimeoutError:
            log.warning("steps did not end in time", session=self.session.session_id.hex()[:12], waited_s=within)
        with suppress(SwarmError, TimeoutError):  # a client that does not read is not waited for
            async with asyncio.timeout(GOODBYE):
                await self._link.send(Closed(code, why[:400]))
        await self._link.close(why)

    # ---- handshake

    async def _handshake(self) -> Steps | None:
        """None: refused, with the reason sent."""
        offer = self._shop.offer
        nonce = self._parts.admission.nonces.issue(self.peer)
        await self._link.send(
            Terms(
                nonce, offer.operator, offer.model_id, offer.first, offer.end, offer.numerics, offer.ask,
                offer.max_tokens, offer.max_rows, offer.ahead, offer.max_backward,
                offer.max_adapter, offer.max_rank,
            )
        )  # fmt: skip
        try:
            async with asyncio.timeout(HANDSHAKE):
                message = await self._link.receive()
        except TimeoutError:
            raise LinkClosed("The client opened no session", why=f"within {HANDSHAKE:.0f} s") from None
        if not isinstance(message, Open):
            raise ProtocolError("A client did not open a session", why=f"got {type(message).__name__}")
        try:
            answer = await self._admit(message)
        except ChainError as error:
            answer = Refused(
                Code.BUSY, "The node cannot reach the chain", error.what[:400], "try again later", retry_after=5.0
            )
        if isinstance(answer, Refused):
            await self._refuse(answer)
            return None
        return answer

    async def _admit(self, message: Open) -> Steps | Refused:
        """Checks, booking, journal, opening receipt; no await parts the account's check from the booking."""
        admission, lobby, terms = self._parts.admission, self._parts.lobby, message.session
        if refused := lobby.check(self.peer, terms.price):
            return refused
        admitted = await admission.admit(self.peer, message)
        if not isinstance(admitted, Admitted):
            return admitted
        receipt = await self._shop.meter.sign(opening(terms.node, terms.client, admitted.session_id))
        account, refused = await admission.check_account(terms)
        if refused := refused or lobby.check(self.peer, terms.price):
            return refused
        try:
            lane = Lane.PAID if terms.price else Lane.FREE
            seat = self._shop.engine.room.open(lane, terms.max_tokens, self._shop.offer.part(terms))
        except OutOfRoom as error:
            return lobby.busy(error.what, error.why)
        offer = self._shop.offer
        session = ServedSession(
            terms, admitted.session_id, account, offer.ahead, offer.max_rows, offer.max_backward, receipt
        )
        self.session, self._seat, self.key_on_chain = session, seat, admitted.key_on_chain
        seat.on_evicted = session.evicted
        self._shop.seats[session.session_id] = seat
        lobby.enter(self)
        steps = self._steps = Steps(self._shop, self._link, session, seat, admitted.wire, self._broken)
        shown = message.delegation
        delegation = (shown.delegation, shown.signature) if shown and not admitted.key_on_chain else None
        await self._shop.journal.open_session(terms, message.signature, delegation)
        await self._link.send(Opened(receipt.signed, account.highest_voucher, account.owed))
        return steps

    # ---- requests

    async def _listen(self, steps: Steps) -> None:
        while True:
            message = await self._link.receive()
            self.active_at = time.monotonic()
            match message:
                case StepRequest():
                    await self._on_step(steps, message)
                case Tensor():
                    steps.give(message)
                case Route():
                    await self._on_route(steps, message)
                case Load():
                    await self._on_load(steps, message)
                case Cancel():
                    steps.drop(message.from_step)
                    await self._link.send(Cancelled(steps.session.last, steps.session.account.owed))
                case Close():
                    return await self._on_close(steps, message.voucher)
                case _:
                    raise ProtocolError("Unexpected on a control link", why=f"got {type(message).__name__}")

    async def _on_step(self, steps: Steps, request: StepRequest) -> None:
        session = steps.session
        verdict = steps.check_route(request) or session.judge(request)
        if verdict is None:
            signed = request.voucher
            try:
                voucher = await self._shop.meter.check_voucher(
                    signed, signed.voucher.receipt, session.terms.session_key
                )
                # Once more: other steps and sessions of this client went on meanwhile. No await from here to `take`.
                verdict = session.judge(request)
            except ProofError as error:
                verdict = session.refused(request, Code.VOUCHER, error.what, error.why)
        if verdict is None:
            steps.begin(session.take(request, voucher))
        elif isinstance(verdict, Again):
            steps.repeat(verdict.taken, request)
        else:
            await self._refuse(verdict)

    async def _on_route(self, steps: Steps, route: Route) -> None:
        inbox, previous = self._shop.inbox, route.previous
        if steps.previous:
            inbox.forget(SessionId(steps.previous.session))
        steps.previous = steps.next = None
        if previous:
            if not inbox.name(SessionId(previous.session), PeerId(previous.peer)):
                return await self._refuse(Refused(Code.CONFLICT, "Another session takes the outputs of that session"))
            steps.previous = previous
        if route.next:
            try:
                await self._shop.outlets.open(route.next)
            except SwarmError as error:
                return await self._refuse(Refused(Code.MISSING, "The next node cannot be reached", str(error)[:400]))
            steps.next = route.next
        await self._link.send(Routed())
        return None

    async def _on_load(self, steps: Steps, message: Load) -> None:
        """An adapter for this session alone: read in a thread, as its size is a stranger's choice."""
        seat, session = self._seat, steps.session
        if refused := session.check_load():
            return await self._refuse(refused)
        try:
            adapter = await asyncio.to_thread(self._parts.adapters.read, message.data)
            if seat is not None:  # it may be idle no more, but nobody has asked for a step meanwhile
                self._shop.engine.room.load(seat, adapter)
        except (BadAdapter, ProtocolError) as error:
            code = Code.LIMIT if isinstance(error, BadAdapter) else Code.PROTOCOL
            return await self._refuse(Refused(code, error.what[:400], error.why[:400], error.next_step[:400]))
        except OutOfRoom as error:
            return await self._refuse(Refused(Code.BUSY, error.what, error.why, error.next_step, retry_after=1.0))
        session.adapter = adapter.digest
        await self._link.send(Loaded(adapter.digest))
        return None

    async def _on_close(self, steps: Steps, last: SignedVoucher | None) -> None:
        """What has not begun is dropped, the rest finished; the last voucher counts like any other."""
        session = steps.session
        steps.drop(Step(1))
        await steps.finish()
        if last is not None and (session.terms.price or not last.voucher.total):
            with suppress(ProofError):
                if session.bound_step(last.voucher.receipt) is not None:
                    voucher = await self._shop.meter.check_voucher(
                        last, last.voucher.receipt, session.terms.session_key
                    )
                    await steps.store(0, session.countersign(voucher))
        await self._link.send(Closed())

    async def _refuse(self, refused: Refused) -> None:
        self._shop.stats.refused(refused.code)
        await self._link.send(refused)

    def _broken(self, error: BaseException) -> None:
        """An error that is nobody's message: the session cannot go on; if the journal failed, the node can't."""
        if isinstance(error, JournalError):
            self._parts.lobby.broken(error)
        else:
            log.error("a step failed unexpectedly", exc_info=error)
        self._link.abort("the node failed at this session")

    async def _leave(self) -> None:
        """The link has ended: steps on the device run out, the others are dropped, the room is free again."""
        session, steps = self.session, self._steps
        if session is None:
            return
        session.close(Code.MISSING, "the link has ended")
        if steps is not None:
            steps.drop(Step(1))
            await steps.settle()
            if steps.previous:
                self._shop.inbox.forget(SessionId(steps.previous.session))
        self._shop.seats.pop(session.session_id, None)
        if self._seat:
            self._shop.engine.release(self._seat)
        self._shop.journal.close_session(session.session_id)
        self._parts.lobby.leave(self)
