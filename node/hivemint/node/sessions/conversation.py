"""One control link: the handshake, then the requests of its one session, one after the other."""

import asyncio
import time
from contextlib import suppress
from functools import partial

import structlog

from hivemint.ledger.books.writer import WriteFailed
from hivemint.node.engine.scheduler import Lane
from hivemint.node.engine.seats import Seat
from hivemint.node.kv.cache import OutOfRoom
from hivemint.node.sessions.admission import Admitted
from hivemint.node.sessions.handshake import allow, first_word
from hivemint.node.sessions.services import Services
from hivemint.node.sessions.session import ServedSession
from hivemint.node.sessions.steps.book import END_LIMIT, Steps
from hivemint.node.sessions.steps.routing import set_neighbours
from hivemint.node.sessions.steps.vain import Vain
from hivemint.node.unable import Unable
from hivemint.protocol.errors import ChainError, LinkClosed, ProofError, ProtocolError, SwarmError
from hivemint.protocol.ids import PeerId, Step
from hivemint.protocol.receipt import SignedVoucher, opening
from hivemint.swarm.link import Link
from hivemint.swarm.messages import (
    Cancel,
    Cancelled,
    Close,
    Closed,
    Code,
    Leave,
    Left,
    Load,
    Loaded,
    Neighbours,
    Open,
    Opened,
    Refused,
    Resend,
    Routed,
    StepRequest,
    Tensor,
)

log = structlog.get_logger(__name__)
GOODBYE = 1.0
"""Seconds for the last word to a client."""
LEAVE = 10.0
"""Seconds for what the journal is still to hear of a session after its link has ended."""


class Conversation:
    """The conversation with one client over one link."""

    def __init__(self, services: Services, link: Link) -> None:
        self.peer: PeerId = link.peer
        self.prefix = services.prefix_of(link.peer)
        self.session: ServedSession | None = None
        self.key_on_chain = False
        self.active_at = time.monotonic()
        self._services, self._link = services, link
        self._seat: Seat | None = None
        self._steps: Steps | None = None
        self._over = self._lost = False
        self._left = asyncio.Event()

    async def run(self) -> None:
        """Until the link ends; the host closes it then."""
        try:
            steps = await self._handshake()
            if steps is not None:
                await self._listen(steps)
        except LinkClosed:
            self._lost = True
        except ProtocolError as error:
            with suppress(SwarmError):
                await self._refuse(Refused.of(error, Code.PROTOCOL))
        except Exception as error:  # noqa: BLE001 - what nobody foresaw ends this session alone, and is told
            self._broken(error)
        finally:
            leaving = asyncio.create_task(self._leave())
            leaving.add_done_callback(lambda _: self._left.set())
            await asyncio.shield(leaving)

    def vacate(self, code: Code, why: str) -> None:
        """Its seat is somebody else's from now on: a session without steps under way, whose client is told by `end`.

        Steps that wait for their input are taken back.
        """
        if self.session is not None:
            self.session.close(code, why)
        if self._steps is not None:
            self._steps.drop(Step(1))
        self._give_back()

    async def end(self, code: Code, why: str, within: float = END_LIMIT) -> None:
        """The node ends the session: expiry, thaw, revocation, idleness, draining. Steps that were taken are finished
        first, and the journal has heard of everything when this returns, or else the log says so.

        What is not done `within` so many seconds is dropped, its input never came; nothing is owed for it.
        """
        if self.session is None or self._over or self._steps is None:
            return
        self._over = True
        self.session.close(code, why)
        if not await self._steps.finish(within):
            log.warning("steps did not end in time", session=self.session.session_id.hex()[:12], waited_s=within)
        with suppress(SwarmError, TimeoutError):  # a client that does not read is not waited for
            async with asyncio.timeout(GOODBYE):
                await self._link.send(Closed(code, why[:400]))
        await self._link.close(why)
        try:
            async with asyncio.timeout(LEAVE):
                await self._left.wait()
        except TimeoutError:
            log.warning("a session has not left in time", session=self.session.session_id.hex()[:12], waited_s=LEAVE)

    # ---- handshake

    async def _handshake(self) -> Steps | None:
        """None: refused, with the reason sent, or the client has left."""
        message = await first_word(self._services, self._link)
        try:
            answer = await self._answer(message)
        except ChainError:  # why is the operator's to know: it is in the log
            answer = Refused(Code.BUSY, "The node cannot reach the chain", "", "try again later", retry_after=5.0)
        if isinstance(answer, Refused):
            await self._refuse(answer)
            return None
        if isinstance(answer, Left):
            await self._link.send(answer)
            return None
        return answer

    async def _answer(self, message: object) -> Steps | Left | Refused:
        """To the first word of a client."""
        if isinstance(message, Leave):
            return await self._services.leaving.answer(self.peer, message)
        if isinstance(message, Open):
            return await self._admit(message)
        raise ProtocolError("A client did not open a session", why=f"got {type(message).__name__}")

    async def _admit(self, message: Open) -> Steps | Refused:
        """Checks, booking, journal, opening receipt; no await parts the account's check from the booking."""
        admission, registry, terms = self._services.admission, self._services.registry, message.session
        if refused := registry.check(self.prefix, terms):
            return refused
        admitted = await admission.admit(self.peer, message)
        if not isinstance(admitted, Admitted):
            return admitted
        receipt = await self._services.meter.sign(opening(terms.node, terms.client, admitted.session_id))
        account, refused = await admission.check_account(admitted)
        if refused := refused or registry.make_room(self.prefix, terms):
            return refused
        try:
            lane = Lane.PAID if terms.price else Lane.DONATED
            seat = self._services.engine.open(lane, terms.max_tokens, self._services.offer.part(terms))
        except OutOfRoom as error:
            return registry.busy(error.what, error.why)
        session = ServedSession(terms, admitted.session_id, account, self._services.offer.limits, receipt)
        self.session, self._seat, self.key_on_chain = session, seat, bool(admitted.key_until)
        self.active_at = time.monotonic()
        self._services.seats[session.session_id] = seat
        registry.enter(self)
        if terms.price:
            self._services.journal.observe(terms.client, account.collected)
        vain = registry.vain(self.prefix) if lane is Lane.DONATED else Vain()
        steps = self._steps = Steps(
            self._services, self._link, session, seat, admitted.wire, self.prefix, vain, self._broken, self._used
        )
        seat.on_evicted = steps.evicted
        shown = message.delegation
        delegation = (shown.delegation, shown.signature) if shown and not admitted.key_until else None
        await self._services.journal.open_session(terms, message.signature, delegation)
        allow(self._link, self._services.offer.limits, steps.row_bytes)
        self._link.expects = steps.expects
        await self._link.send(Opened(receipt.signed, account.proof, account.owed))
        return steps

    # ---- requests

    async def _listen(self, steps: Steps) -> None:
        while True:
            message = await self._link.receive()
            match message:
                case StepRequest():
                    await steps.ask(message)
                case Tensor():
                    steps.give(message)
                case Neighbours():
                    await self._on_route(steps, message)
                case Resend():
                    await steps.resend(message)
                case Load():
                    await self._on_load(steps, message)
                case Cancel():
                    steps.drop(message.from_step)
                    await self._link.send(Cancelled(steps.session.last, steps.session.account.owed))
                case Close():
                    return await self._on_close(steps, message.voucher)
                case _:
                    raise ProtocolError("Unexpected on a control link", why=f"got {type(message).__name__}")

    async def _on_route(self, steps: Steps, wanted: Neighbours) -> None:
        refused = await set_neighbours(self._services, self._link, steps, wanted)
        if refused:
            return await self._refuse(refused)
        return await self._link.send(Routed())

    async def _on_load(self, steps: Steps, message: Load) -> None:
        """An adapter for this session alone: read in a thread, as its size is a stranger's choice."""
        seat, session = self._seat, steps.session
        if refused := session.check_load():
            return await self._refuse(refused)
        try:
            adapter = await asyncio.to_thread(self._services.adapters.read, message.data)
            if refused := session.check_load():  # its seat may have been given to another meanwhile
                return await self._refuse(refused)
            if seat is not None:
                self._services.engine.load_adapter(seat, adapter)
        except ProtocolError as error:
            return await self._refuse(Refused.of(error, Code.PROTOCOL))
        except Unable as error:
            return await self._refuse(error.refused())
        session.adapter = adapter.digest
        await self._link.send(Loaded(adapter.digest))
        return None

    async def _on_close(self, steps: Steps, last: SignedVoucher | None) -> None:
        """What has not begun is dropped, the rest finished; the last voucher counts like any other."""
        session = steps.session
        steps.drop(Step(1))
        await steps.finish()
        if last is not None and session.may_promise(last.body.total):
            with suppress(ProofError):
                if session.bound_step(last.body.receipt) is not None:
                    voucher = await self._services.meter.check_voucher(
                        last, last.body.receipt, session.terms.session_key
                    )
                    await steps.entries.store(0, session.countersign(voucher))
        await self._link.send(Closed())

    async def _refuse(self, refused: Refused) -> None:
        self._services.counts.refused(refused.code)
        await self._link.send(refused)

    def _broken(self, error: BaseException) -> None:
        """An error that is nobody's message: the session cannot go on; if the journal can't write, the node can't."""
        if isinstance(error, WriteFailed):
            self._services.registry.broken(error)
        else:
            log.error("a session failed unexpectedly", exc_info=error)
        self._link.hang_up("the node failed at this session")

    async def _leave(self) -> None:
        """The link has ended: steps on the device run out, the others are dropped, the seat is free again."""
        session, steps = self.session, self._steps
        if session is None:
            return
        may_return = self._lost and session.closed is None
        session.close(Code.MISSING, "the link has ended")
        if may_return:
            session.park()  # a client that is back already is told to wait until its last step has run out
        if steps is not None:
            steps.drop(Step(1))
            await steps.settle()
            steps.inputs.follow(None)
        self._services.outlets.leave(session.session_id)
        self._services.kept.forget(session.session_id)
        if may_return and self._seat and session.length and not self._services.registry.draining:
            self._park()
        else:
            session.forget()
            self._give_back()
        self._services.journal.close_session(session.session_id)

    def _park(self) -> None:
        """The client may come back: what was computed for it waits a while, and nobody waits for that."""
        session, seat, registry = self.session, self._seat, self._services.registry
        if session is not None and seat is not None:
            self._seat = None
            registry.parking.park(session, seat, self.prefix, partial(self._free, session, seat))
            registry.leave(self)

    def _used(self) -> None:
        """Nothing else keeps a seat: a step that was signed for."""
        self.active_at = time.monotonic()

    def _give_back(self) -> None:
        """The seat and its room; once."""
        if self.session is not None and self._seat is not None:
            self._free(self.session, self._seat)
            self._seat = None
            self._services.registry.leave(self)

    def _free(self, session: ServedSession, seat: Seat) -> None:
        self._services.seats.pop(session.session_id, None)
        self._services.engine.release(seat)
