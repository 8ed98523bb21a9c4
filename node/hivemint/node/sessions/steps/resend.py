"""Outputs once more, for a node that takes the place of a dead one behind this one. Nothing is computed or owed."""

from hivemint.node.sessions.services import Services
from hivemint.node.sessions.session import ServedSession
from hivemint.node.sessions.steps.outputs import Outputs
from hivemint.swarm.messages import Code, Refused, Resend, Tensor, TensorHead

RESENDS = 4
"""How often the positions of a session are sent once more, on average over all that it has computed."""


async def resend(services: Services, session: ServedSession, outputs: Outputs, wanted: Resend) -> Refused | None:
    """Rows to the next node, which must expect them; or why not.

    Each position once until `Neighbours` come again: a client goes on where it was, or names another node.
    """
    if session.closed:
        return _refused(session, wanted, session.closed, "The session is closed", session.why)
    if outputs.next is None:
        return _refused(session, wanted, Code.MISSING, "There is no link to a next node", "send Neighbours")
    if wanted.count > session.limits.rows:
        return _refused(session, wanted, Code.LIMIT, "Too many rows at once", f"at most {session.limits.rows}")
    if wanted.start < session.resent_to:
        why = f"they were, up to position {session.resent_to}"
        return _refused(session, wanted, Code.LIMIT, "The next node was sent these outputs once more already", why)
    if session.resends.sent + wanted.count > RESENDS * session.resends.computed:
        why = f"{session.resends.sent} positions, {session.resends.computed} were computed"
        return _refused(session, wanted, Code.LIMIT, "Too much was sent once more", why)
    end = wanted.start + wanted.count
    rows = services.kept.rows(session.session_id, wanted.start, wanted.count) if end <= session.length else None
    if rows is None:
        return _refused(session, wanted, Code.GAP, "These outputs are not kept", f"up to position {end}")
    session.resends.sent += wanted.count
    session.resent_to = end
    await outputs.push(Tensor(TensorHead(wanted.step, session.session_id), rows))
    if outputs.next is None:
        return _refused(session, wanted, Code.MISSING, "The next node is gone", "the link to it has ended")
    services.counts.sent("next")
    return None


def _refused(session: ServedSession, wanted: Resend, code: Code, what: str, why: str) -> Refused:
    return Refused(code, what, why, "compute them again", wanted.step, cached=session.length)
