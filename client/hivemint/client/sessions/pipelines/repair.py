"""Nodes that are replaced while a text goes on: new sessions for the lost hops, the others named to them anew.

What the survivors have stays. A new session begins empty; the circuit that is made of all of them then sends it what it
lacks, from the outputs that the hop before has kept, or from the client's own inputs.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from hivemint.client.pipeline import Plan, RoomLost, SessionLimit
from hivemint.client.sessions.errors import NeighbourGone, NodeRefusal, blaming
from hivemint.client.sessions.pipelines.absence import Absence
from hivemint.client.sessions.pipelines.circuit import Circuit
from hivemint.client.sessions.pipelines.faults import NodeSlow
from hivemint.client.sessions.pipelines.vouchers import VoucherSource
from hivemint.client.sessions.route import Leg
from hivemint.client.sessions.session import RemoteSession
from hivemint.client.settings import ClientSettings
from hivemint.protocol.errors import HivemintError, OverLimit, ProofError, Refusal, SwarmError
from hivemint.swarm.link import SILENCE_LIMIT
from hivemint.swarm.messages import Closed, Code, Neighbours, Refused, Routed

_LAST_SIGN = SILENCE_LIMIT + 0.5
"""Seconds after which a node that has died is known to be gone, however it died."""


@dataclass(frozen=True, slots=True)
class Hole:
    """A part of a route that is to be served by others, between two sessions that stay (None: the client). `kept`: the
    price of a position at all that stay, in wei."""

    blocks: range
    tokens: int
    wire: str
    kept: int
    before: RemoteSession | None
    after: RemoteSession | None


class Replacements(Protocol):
    """What a pipeline asks of the network when a node fails."""

    def vouchers(self, sessions: Sequence[RemoteSession]) -> VoucherSource:
        """The source of all vouchers for these sessions."""
        ...

    def plan_of(self, sessions: Sequence[RemoteSession], before: Plan) -> Plan:
        """The plan of a route that is now along these."""
        ...

    def another_way(self, error: HivemintError) -> bool:
        """Whether another node can take the place of one that `error` names; then these are left out for a while."""
        ...

    def look_around(self) -> None:
        """A text goes on, and may need another node at any moment."""
        ...

    async def replace(self, hole: Hole) -> list[RemoteSession]:
        """New sessions for the blocks of a hole. Raises what `Swarm.open` raises."""
        ...

    async def reopen(self, leg: Leg, tokens: int) -> RemoteSession:
        """A new session at this very node, without neighbours. Raises what `Swarm.open` raises."""
        ...


class Repair:
    """Of one pipeline. `left`: sessions that it has given up, whose costs still count.

    `replayed` counts positions that are computed again, once for each lost hop; `paid_again` those that are paid again.
    """

    def __init__(
        self,
        swarm: Replacements,
        tokens: int,
        settings: ClientSettings,
        circuit_of: Callable[[Sequence[RemoteSession]], Circuit],
    ) -> None:
        """`tokens`: what a new session is to hold. `circuit_of`: a circuit over these."""
        self._swarm, self._tokens, self._timeout, self._most = swarm, tokens, settings.open_timeout, settings.repairs
        self._circuit_of = circuit_of
        self._failures, self._absence = 0, Absence(settings.wait_for_return)
        self._tried: set[int] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self.left: list[RemoteSession] = []
        self.replayed = self.paid_again = 0

    def held(self) -> None:
        """An output has come: what failed until now has been mended."""
        self._failures = 0
        self._absence.over()
        self._swarm.look_around()

    async def mended(self, circuit: Circuit, error: HivemintError, admit: Callable[[int], None]) -> list[RemoteSession]:
        """See `replace`; again with others, as long as there are any, or some may come back. Raises `error`, or what
        failed after it, where nothing is left to try."""
        failure, again = error, await self._may(circuit, error)
        while again:
            try:
                return await self.replace(circuit, failure, admit)
            except OverLimit:
                raise
            except (SwarmError, ProofError, Refusal) as second:
                if circuit.lost(second) - self._tried:  # a hop that had been counted on
                    failure, again = second, await self._may(circuit, second)
                elif not (again := await self._absence.may_end(second)):
                    raise failure from second  # what went wrong, not that no other way was left
        raise failure

    async def _may(self, circuit: Circuit, error: HivemintError) -> bool:
        """Whether it is to be tried: `error` is about nodes of the circuit, and there are others, or some may come, or
        room was lost. Where nobody is there yet it takes a moment."""
        if self._failures >= self._most or circuit.recalled or not circuit.lost(error):
            return False
        if isinstance(error, SessionLimit) and not isinstance(error, RoomLost):
            return False
        self._failures += 1
        return isinstance(error, RoomLost) or self._swarm.another_way(error) or await self._absence.may_end(error)

    async def replace(
        self, circuit: Circuit, error: HivemintError, admit: Callable[[int], None]
    ) -> list[RemoteSession]:
        """The sessions of the new circuit, in order. Raises what went wrong with it, by name; the old one is stopped
        then, or goes on if nobody could be found. `admit` is asked for the wei of what is to be computed again, by the
        prices of those who computed it."""
        lost = circuit.lost(error)
        unknown = await circuit.quiet(lost)
        self._tried = lost | unknown
        sessions: list[RemoteSession] = list(circuit.sessions)
        if not isinstance(error, NodeSlow):  # a node that is asked again must have let go of the old session
            await asyncio.gather(*(sessions[hop].close() for hop in lost if not sessions[hop].over))
        begun = await self._begin_again(sessions, unknown)
        lost = self._tried - begun.keys()
        again = {hop: circuit.have[hop] - (begun[hop].length if hop in begun else 0) for hop in self._tried}
        staying = [begun.get(hop, session) for hop, session in enumerate(sessions)]
        fresh: list[list[RemoteSession]] = []
        try:
            admit(sum(sessions[hop].price * count for hop, count in again.items()))
            for first, end in _runs(lost):
                fresh.append(await self._swarm.replace(self._hole(staying, lost, first, end)))
            await circuit.stop()
            made = _merged(staying, lost, fresh)
            await asyncio.gather(*(_rewire(made, at, self._timeout) for at in _beside(made, sessions, begun.values())))
        except BaseException:
            for session in (*begun.values(), *(one for group in fresh for one in group)):
                self._give_up(session)
            raise
        for hop, count in again.items():
            self._give_up(sessions[hop])
            self.replayed += count
            self.paid_again += count
        return made

    async def _begin_again(self, sessions: Sequence[RemoteSession], hops: Collection[int]) -> dict[int, RemoteSession]:
        """Of nodes that have signed for inputs that nobody here knows: new sessions at the same ones, which begin with
        what is known, as far as they let us. The old ones are closed."""
        hops = [hop for hop in hops if sessions[hop].length and not sessions[hop].over]
        tries = (self._begun(sessions[hop]) for hop in hops)
        found = await asyncio.gather(*tries, return_exceptions=True)
        begun: dict[int, RemoteSession] = {}
        for hop, one in zip(hops, found, strict=True):
            if isinstance(one, RemoteSession):
                begun[hop] = one
            elif not isinstance(one, HivemintError):
                raise one
        await asyncio.gather(*(sessions[hop].close() for hop in begun))
        return begun

    async def _begun(self, parent: RemoteSession) -> RemoteSession:
        session = await self._swarm.reopen(parent.leg, self._tokens)
        circuit = self._circuit_of([session])
        try:
            await circuit.fork([parent], parent.length)
            await circuit.prove_rest()
        except BaseException:
            self._give_up(session)
            raise
        finally:
            await circuit.stop()
        return session

    async def close(self) -> None:
        """Until all sessions that were given up are closed."""
        await asyncio.gather(*self._closing)

    def _hole(self, sessions: Sequence[RemoteSession], lost: set[int], first: int, end: int) -> Hole:
        kept = sum(one.price for hop, one in enumerate(sessions) if hop not in lost)
        blocks = range(sessions[first].leg.first, sessions[end - 1].leg.end)
        before = sessions[first - 1] if first else None
        after = sessions[end] if end < len(sessions) else None
        return Hole(blocks, self._tokens, sessions[first].leg.wire, kept, before, after)

    def _give_up(self, session: RemoteSession) -> None:
        """Signing off takes as long as it takes, beside what goes on."""
        self.left.append(session)
        task = asyncio.create_task(session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _runs(lost: set[int]) -> list[tuple[int, int]]:
    """`[first, end)` of each group of hops that follow each other."""
    groups = groupby(enumerate(sorted(lost)), key=lambda one: one[1] - one[0])
    runs = [[hop for _, hop in group] for _, group in groups]
    return [(run[0], run[-1] + 1) for run in runs]


def _merged(
    sessions: Sequence[RemoteSession], lost: set[int], fresh: Sequence[Sequence[RemoteSession]]
) -> list[RemoteSession]:
    made: list[RemoteSession] = []
    groups = iter(fresh)
    for hop, session in enumerate(sessions):
        if hop not in lost:
            made.append(session)
        elif hop - 1 not in lost:
            made += next(groups)
    return made


def _beside(
    made: Sequence[RemoteSession], before: Sequence[RemoteSession], begun: Iterable[RemoteSession]
) -> list[int]:
    """Places in the new route of those that stay and have a new neighbour, and of those that know none yet."""
    stay, alone = set(before), set(begun)

    def new(at: int) -> bool:
        return 0 <= at < len(made) and made[at] not in stay

    return [at for at, one in enumerate(made) if one in alone or (one in stay and (new(at - 1) or new(at + 1)))]


async def _rewire(made: Sequence[RemoteSession], at: int, timeout: float) -> None:
    """Name a node's neighbours anew. Raises NodeGone, NodeRefusal."""
    session = made[at]
    before = made[at - 1] if at else None
    after = made[at + 1] if at + 1 < len(made) else None
    with blaming(session.leg, "being given another neighbour"):
        async with asyncio.timeout(timeout):
            previous, following = before.as_previous if before else None, after.as_next if after else None
            await session.link.send(Neighbours(previous, following))
            while not isinstance(answer := await session.link.receive(), Routed):
                if isinstance(answer, Refused) and not answer.step:
                    await check_next(refusal := NodeRefusal(session.leg, answer), after)
                    raise refusal
                if isinstance(answer, Closed):
                    session.closed.set()
                    raise session.ended(answer)


async def check_next(refusal: NodeRefusal, following: RemoteSession | None) -> None:
    """Of a node that says that it cannot reach the next one. Raises NeighbourGone where that one has gone indeed; else
    NodeRefusal with both: one of them does not take the other, and it can't be told from here which."""
    if refusal.code != Code.MISSING or following is None:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_SIGN):
            await following.link.wait_closed()
    if following.over:
        raise NeighbourGone(following.leg, "went away", following.link.reason) from refusal
    raise NodeRefusal(refusal.leg, refusal.refused, following.leg) from refusal
