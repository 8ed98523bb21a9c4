"""What goes wrong with a node, by name: gone, refusing, lying."""

import contextlib
from collections.abc import Iterator

from hivemint.client.pipeline import SessionLimit
from hivemint.client.sessions.payer import NodeUnproven
from hivemint.client.sessions.route import Leg
from hivemint.protocol.errors import LinkClosed, ProofError, ProtocolError, Refusal, SwarmError
from hivemint.protocol.evidence import Equivocation
from hivemint.swarm.messages import Refused


class NodeGone(SwarmError):
    """A node cannot be reached, has died, or broke the protocol. `peers` should be left out of the next route."""

    def __init__(self, leg: Leg, what: str, why: str) -> None:
        super().__init__(f"The {leg} {what}", why=why, next_step="ask again: a new route is planned without it")
        self.peers = (leg.peer,)


class NeighbourGone(NodeGone):
    """A node that was to stay on a route has gone, which a new neighbour of it was first to notice."""


class OtherInput(ProofError):
    """A receipt is what it should be but for its head: it may be for an input that its node got, and this client has
    not heard of."""


class NodeLied(ProofError):
    """What a node signed does not fit what it did: it is not used again within its time, no voucher follows. Where it
    may as well be the one that its input came from, both have failed, as far as can be told from here."""

    def __init__(self, legs: tuple[Leg, ...], error: Exception) -> None:
        names = " or ".join(f"the {leg}" for leg in legs)
        why = f"{error.what}: {error.why}" if isinstance(error, ProofError | ProtocolError) else str(error)
        super().__init__(
            f"A proof does not hold: {names} cannot be trusted",
            why=why,
            next_step="it gets no more vouchers; ask again: a new route is planned without it",
        )
        self.peers = tuple(leg.peer for leg in legs)


class NodeEquivocated(NodeLied):
    """A node has signed two answers to one step; `evidence` proves it to anybody."""

    def __init__(self, leg: Leg, evidence: Equivocation) -> None:
        step = evidence.one.step
        super().__init__((leg,), ProofError("It signed two answers to one step", why=f"step {step} of a session"))
        self.evidence = evidence


class NodeRefusal(Refusal):
    """A node declined, in its own words. `beside`: a neighbour that may be to blame as well as it."""

    def __init__(self, leg: Leg, refused: Refused, beside: Leg | None = None) -> None:
        doubt = f"it can't be told from here whether it or the {beside} is to blame" if beside is not None else ""
        super().__init__(
            refused.code,
            f"The {leg} declined ({refused.code}): {refused.what}",
            why="; ".join(part for part in (refused.why, doubt) if part),
            next_step=refused.next_step,
            retry_after=refused.retry_after,
        )
        self.leg, self.refused = leg, refused
        self.peers = (leg.peer,) if beside is None else (leg.peer, beside.peer)


@contextlib.contextmanager
def blaming(leg: Leg, doing: str) -> Iterator[None]:
    """Name the node in whatever its link raises."""
    try:
        yield
    except TimeoutError:
        raise NodeGone(leg, f"did not answer while {doing}", "no answer in time") from None
    except LinkClosed as error:
        raise NodeGone(leg, f"went away while {doing}", error.why or error.what) from None
    except ProtocolError as error:
        raise NodeGone(leg, f"broke the protocol while {doing}", f"{error.what}: {error.why}") from None
    except (NodeGone, NodeUnproven, SessionLimit, Refusal, ProofError):
        raise
    except SwarmError as error:
        raise NodeGone(leg, f"failed while {doing}", f"{error.what}: {error.why}") from None
