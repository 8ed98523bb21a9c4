"""What the nodes of a circuit send: one reader a link, every message handed to whom it concerns."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from hivemint.client.sessions.errors import NodeGone, NodeLied
from hivemint.client.sessions.pipelines.faults import Complaints
from hivemint.client.sessions.pipelines.in_flight import StepsInFlight
from hivemint.client.sessions.pipelines.proofs import StepProofs, StepState
from hivemint.client.sessions.pipelines.vouchers import VoucherSource
from hivemint.client.sessions.session import RemoteSession
from hivemint.protocol.errors import HivemintError, LinkClosed, ProofError, ProtocolError
from hivemint.swarm.messages import FIRST_RESEND, AnyMessage, Cancelled, Closed, Refused, StepReceipt, Tensor


class Receiver:
    """Reads the links of one circuit from its making to `stop`. What goes wrong ends the steps in flight."""

    def __init__(
        self,
        sessions: Sequence[RemoteSession],
        steps: StepProofs,
        in_flight: StepsInFlight,
        source: VoucherSource,
        send_again: Callable[[int, StepState], Awaitable[None]],
    ) -> None:
        """`send_again` is awaited for a hop and a step that are to be signed anew."""
        self._sessions, self._steps, self._in_flight = sessions, steps, in_flight
        self._source, self._send_again = source, send_again
        self._complaints = Complaints(sessions, steps, in_flight.fail)
        loop = asyncio.get_running_loop()
        self._readers = [loop.create_task(self._read(hop)) for hop in range(len(sessions))]

    async def stop(self) -> None:
        """Read no further; what nodes have said of each other no longer matters."""
        self._complaints.close()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def _read(self, hop: int) -> None:
        """Hand every message of one link on, until it ends."""
        session = self._sessions[hop]
        try:
            while True:
                await self._hear(hop, await session.link.receive())
        except LinkClosed as error:
            session.closed.set()
            self._in_flight.notify()
            if not self._in_flight.closing or session.pending:
                self._in_flight.fail(NodeGone(session.leg, "went away", error.why or error.what))
        except ProtocolError as error:
            self._in_flight.fail(NodeGone(session.leg, "broke the protocol", f"{error.what}: {error.why}"))
        except NodeLied as error:
            self._in_flight.fail(error)
        except ProofError as error:
            self._in_flight.fail(session.lied(error))
        except HivemintError as error:  # our own book can't be written
            self._in_flight.fail(error)

    async def _hear(self, hop: int, message: AnyMessage) -> None:
        session = self._sessions[hop]
        if isinstance(message, StepReceipt):
            session.heard = max(session.heard, message.receipt.step)
        match message:
            case StepReceipt():
                self._steps.receipt(hop, message)
                self._in_flight.notify()
            case Tensor():
                self._steps.output(hop, message)
            case Refused():
                await self._take_refusal(hop, message)
            case Cancelled():
                session.cancelling = False
                for step in [step for step in session.pending if step > message.last]:
                    session.drop(step)
                self._in_flight.notify()
            case Closed():
                session.closed.set()
                if not self._in_flight.closing:
                    self._complaints.hear(hop, session.ended(message))
                    self._in_flight.notify()
            case _:
                raise ProtocolError(f"A node sent a {type(message).__name__} in a session")

    async def _take_refusal(self, hop: int, message: Refused) -> None:
        session, state = self._sessions[hop], self._steps.find(hop, message.step)
        if message.step >= FIRST_RESEND:
            return self._in_flight.fail(session.lost_room("Its outputs have to be computed again", message.what))
        await self._source.put_back()  # what has not left is no debt that a node could speak of
        error = await session.refused(message)
        if error is None and state is not None and self._in_flight.error is None:
            await self._send_again(hop, state)
        elif error is not None:
            self._complaints.hear(hop, error, message.evidence)
            self._in_flight.notify()
        return None
