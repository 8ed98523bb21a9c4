"""A fork: a session's first step that begins with the K/V of another one. Nothing is computed and nothing owed."""

import asyncio

from hivemint.node.kv.cache import OutOfRoom
from hivemint.node.sessions.session import TakenStep
from hivemint.node.sessions.steps.serve import StepService
from hivemint.node.unable import StepFailed
from hivemint.protocol.receipt import Leaf, following, fork
from hivemint.swarm.messages import Code, HopReceipt, StepReceipt

Copied = asyncio.Future[None]


def begin(at: StepService, step: TakenStep) -> tuple[Leaf, Copied]:
    """All that is asked of the parent is settled here, before anybody else's turn: its state is the one named."""
    session, services, count = at.session, at.services, step.request.count
    parent = session.parent(step.request)
    if parent is None:
        raise RuntimeError("a fork was taken without its parent")
    try:
        copied: Copied = services.engine.fork(services.seats[parent.session.session_id], at.seat, count)
    except OutOfRoom as error:
        copied = asyncio.get_running_loop().create_future()
        copied.set_exception(error)
    session.resends = parent.session.resends  # a fork costs nothing, so it allows nothing more
    services.kept.fork(parent.session.session_id, session.session_id, count)
    return fork(session.receipt.body, parent.receipt.body, count), copied


async def serve(at: StepService, step: TakenStep, leaf: Leaf, copied: Copied) -> None:
    """The receipt binds what the K/V came from. Raises Unable."""
    async with at.entering:  # the steps behind it begin on what was copied
        try:
            await asyncio.shield(copied)
        except (RuntimeError, MemoryError) as error:  # torch raises RuntimeError for all of its own
            raise StepFailed(Code.FAILED, "The device failed at this fork", str(error), "try another node") from None
    async with at.leaving:
        if not at.stands(step):
            return
        at.session.seal(step)
        at.used()
        await at.entries.store(0, step.pair)
        signed = await at.services.meter.sign(following(at.session.receipt.body, leaf))
        answer = StepReceipt(signed.signed, b"")
        at.session.answer(step, signed, answer)
        await at.outputs.prove(step.request, HopReceipt(signed.signed, leaf), answer)
