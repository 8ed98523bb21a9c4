"""A session's neighbours, named anew: where its inputs come from and its outputs go."""

from hivemint.node.sessions.services import Services
from hivemint.node.sessions.steps.book import Steps
from hivemint.protocol.errors import LinkClosed, SwarmError
from hivemint.swarm.link import Link, while_open
from hivemint.swarm.messages import Code, Neighbours, Refused, tensor_body


async def set_neighbours(services: Services, link: Link, steps: Steps, wanted: Neighbours) -> Refused | None:
    """Forget the neighbours of before, expect the outputs of `wanted.previous`, connect to `wanted.next`.

    A refusal leaves no next node; a previous one that was named before it stays.
    Raises LinkClosed when the client's own link ends meanwhile.
    """
    session = steps.session
    steps.inputs.follow(wanted.previous, tensor_body(services.offer.limits.rows * steps.row_bytes))
    steps.outputs.lead_to(None)
    session.resent_to = 0
    if not wanted.next:
        services.outlets.leave(session.session_id)
        return None
    try:
        await while_open(link, services.outlets.open(session.session_id, wanted.next, session.terms.end_block))
    except LinkClosed:
        raise
    except SwarmError as error:
        return Refused(Code.MISSING, error.what, "", error.next_step)
    steps.outputs.lead_to(wanted.next)
    return None
