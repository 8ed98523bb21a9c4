"""No step is computed with numbers that are NaN or infinite: signed honestly, they would pass every other check."""

import torch

from hivemint.client.sessions.errors import NodeGone
from hivemint.client.sessions.session import RemoteSession
from hivemint.protocol.errors import BadInput
from hivemint.swarm.rows import from_wire


def check_own(rows: torch.Tensor, data: bytes, wire: str) -> None:
    """Whether `rows`, and `data`, their wire form, are finite. Raises BadInput: nodes refuse what is not."""
    count, width = rows.shape
    if not bool(torch.isfinite(rows).all()):
        why = f"{_count(rows)} are NaN or infinite"
    elif wire == "fp16" and not bool(torch.isfinite(from_wire(data, count, width, wire, torch.float32)).all()):
        why = f"numbers up to {float(rows.abs().max()):.3g} do not fit into {wire}"
    else:
        return
    raise BadInput(
        "These hidden states or gradients can't be computed with",
        why=why,
        next_step="look at the embeddings before the blocks, and at the loss and its scale behind them",
    )


def check_theirs(rows: torch.Tensor, session: RemoteSession, what: str) -> None:
    """Whether what a node has sent is finite. Raises NodeGone: it must send nothing else, whatever it was given.

    It gets no more vouchers.
    """
    if not bool(torch.isfinite(rows).all()):
        session.distrusted = True
        raise NodeGone(session.leg, "sent numbers that are not finite", f"{_count(rows)} of {what} are NaN or infinite")


def _count(rows: torch.Tensor) -> str:
    return f"{int((~torch.isfinite(rows)).sum())} of {rows.numel()} numbers"
