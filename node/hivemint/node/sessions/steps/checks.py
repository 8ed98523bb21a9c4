"""What is looked at before a step is taken, in this order: each check refuses, or says nothing."""

from dataclasses import dataclass

import msgspec

from hivemint.node.sessions.session import ServedSession, TakenStep
from hivemint.protocol.credits import format_credits
from hivemint.protocol.ids import BACKWARD, FORK, FORWARD
from hivemint.swarm.messages import Code, Refused, StepRequest


@dataclass(frozen=True, slots=True)
class Again:
    """The same request for a step that was taken before."""

    taken: TakenStep


def judge(session: ServedSession, request: StepRequest) -> Refused | Again | None:
    """All that can be said of a request without its voucher's signature. Asked again right before `take`."""
    if request.step <= session.last:
        return _repeated(session, request)
    for check in CHECKS:
        if refused := check(session, request):
            return refused
    return None


def _repeated(session: ServedSession, request: StepRequest) -> Refused | Again:
    step = session.steps.get(request.step)
    if step is None:
        return session.refused(
            request,
            Code.STEP,
            "The step was answered before and its answer is not kept any more",
            f"expected step {session.last + 1}, got {request.step}",
            "go on from the newest receipt",
        )
    if msgspec.structs.replace(request, voucher=step.request.voucher) != step.request:
        return session.refused(request, Code.CONFLICT, "The step was taken with another request")
    return Again(step)


def check_order(session: ServedSession, request: StepRequest) -> Refused | None:
    if session.closed:
        return session.refused(request, session.closed, "The session is closed", session.why, "open a new session")
    if request.step != session.last + 1:
        return session.refused(
            request, Code.STEP, "The step is out of order", f"expected {session.last + 1}, got {request.step}"
        )
    if len(session.pending) >= session.limits.ahead:
        return session.refused(
            request,
            Code.STEP,
            "Too many steps in flight",
            f"expected at most {session.limits.ahead}",
            "wait for a receipt",
        )
    return None


def check_gap(session: ServedSession, request: StepRequest) -> Refused | None:
    if request.start <= session.length:
        return None
    return session.refused(
        request,
        Code.GAP,
        "The step starts beyond the cache",
        f"expected a start of at most {session.length}, got {request.start}",
        "send the tokens in between again",
    )


def check_shape(session: ServedSession, request: StepRequest) -> Refused | None:
    if request.kind == FORK and (refused := check_fork(session, request)):
        return refused
    if request.kind == BACKWARD and (refused := check_backward(session, request)):
        return refused
    if request.kind != FORK and request.parent is not None:
        return session.refused(request, Code.PROTOCOL, "Only a fork names another session")
    if request.kind == FORWARD and request.count > session.limits.rows:
        return session.refused(
            request,
            Code.LIMIT,
            "The step has too many rows",
            f"expected at most {session.limits.rows}, got {request.count}",
            "send it in smaller chunks",
        )
    if request.start + request.count > session.terms.max_tokens:
        return session.refused(
            request,
            Code.LIMIT,
            "The step passes the session's maxTokens",
            f"expected at most {session.terms.max_tokens}, got {request.start + request.count}",
            "open a new session",
        )
    return None


def check_fork(session: ServedSession, request: StepRequest) -> Refused | None:
    if request.step != 1 or request.start or request.source is not None or request.push or request.rows != "none":
        return session.refused(
            request,
            Code.PROTOCOL,
            "A fork is a session's first step, from position 0, without input and output",
            f"got step {request.step}, start {request.start}",
        )
    parent = session.parent(request)
    if parent is not None and parent.session.pending:
        return session.refused(
            request, Code.STEP, "The session to begin with has steps in flight", "", "wait for its receipts"
        )
    cached = 0 if parent is None else parent.length
    if request.count <= cached:
        return None
    refused = session.refused(
        request,
        Code.GAP,
        "There is nothing to begin with",
        f"no open session like this one, with that head, has {request.count} tokens, the one here has {cached}",
        "send the tokens themselves",
    )
    return msgspec.structs.replace(refused, cached=cached)


def check_backward(session: ServedSession, request: StepRequest) -> Refused | None:
    """A whole sequence at once, and not from or to a neighbour: its rows are states and gradients side by side."""
    if not session.limits.backward_rows:
        return session.refused(request, Code.PROTOCOL, "This node serves no backward passes", "", "use another node")
    if request.count > session.limits.backward_rows:
        return session.refused(
            request,
            Code.LIMIT,
            "The backward step has too many rows",
            f"expected at most {session.limits.backward_rows}, got {request.count}",
            "train on shorter sequences",
        )
    if request.start or request.source is not None or request.push:
        return session.refused(
            request,
            Code.PROTOCOL,
            "A backward step is a whole sequence that the client brings and takes itself",
            f"expected start 0, no source and no push, got start {request.start}",
            "relay it",
        )
    return None


def check_amount(session: ServedSession, request: StepRequest) -> Refused | None:
    price = session.price_of(request)
    if session.spent + price <= session.terms.max_amount or not price:
        return None
    return session.refused(
        request,
        Code.LIMIT,
        "The step passes the session's maxAmount",
        f"{session.spent} of {session.terms.max_amount} wei are spent, the step costs {price}",
        "open a new session",
    )


def check_binding(session: ServedSession, request: StepRequest) -> Refused | None:
    bound = session.bound_step(request.voucher.body.receipt)
    oldest = max(0, request.step - session.limits.ahead)
    if bound is None or bound < oldest:
        return session.refused(
            request,
            Code.VOUCHER,
            "The voucher binds no recent receipt of this session",
            f"expected one of step {oldest} or later, got {'an unknown one' if bound is None else f'step {bound}'}",
            "countersign the newest receipt",
        )
    return None


def check_cover(session: ServedSession, request: StepRequest) -> Refused | None:
    """The chain would pay everything owed, this step included, as far as it was last read. Called again right
    before `take`.
    """
    total, price = request.voucher.body.total, session.price_of(request)
    if not session.terms.price:
        return None if total == 0 else session.refused(request, Code.VOUCHER, "expected a total of 0", f"got {total}")
    account, due = session.account, session.account.owed + price
    if not account.lives(session.key):
        return session.refused(
            request, Code.REVOKED, "The session key is revoked or its time is up", "", "open a session with another"
        )
    if due > account.funded:
        return session.refused(
            request,
            Code.THAWING if account.thawing else Code.FUNDS,
            "The account does not cover this step",
            f"expected {format_credits(due)} or more, got {format_credits(account.funded)}",
            "fund the account",
        )
    if total > min(account.funded, account.reach(due)):
        what = "The voucher is for more than is owed and under way"
    elif max(total, account.cover) < due:
        what = "The voucher does not cover this step"
    elif account.uncarried(due, total) > price + _steps_of_others(session):
        what = "Too much is owed that vouchers cover but none is for"
    else:
        return None
    return session.refused(
        request,
        Code.VOUCHER,
        what,
        f"expected a total of {due} wei, got {total}",
        "sign the sum owed and this step's price",
    )


def _steps_of_others(session: ServedSession) -> int:
    """A voucher may run ahead by what the client's other sessions have on their way. Each of them leaves at most
    one step that no voucher is for, were the client to stop here.
    """
    return sum(other.one_step for other in session.account.sessions if other is not session)


CHECKS = (check_order, check_gap, check_shape, check_amount, check_binding, check_cover)
