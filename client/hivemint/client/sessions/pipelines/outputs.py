"""What a caller waits for: the last block's output at some positions of one `forward`."""

import asyncio
from dataclasses import dataclass

import torch

from hivemint.client.pipeline import Misled, Rows
from hivemint.client.sessions.pipelines.in_flight import StepsInFlight
from hivemint.client.sessions.route import Leg
from hivemint.swarm.messages import RowMode

Output = asyncio.Future[torch.Tensor]
_ABOUT = 0.1
"""How far apart two honest nodes' states may be, of their length. Chosen, not measured, and wide: what tells a subtle
lie from rounding is an auditor's."""


@dataclass(frozen=True, slots=True)
class HandedOut:
    """The last output that the caller has had, `[hidden]`, and the node that it came from."""

    position: int
    row: torch.Tensor
    leg: Leg


class AwaitedOutputs:
    """Outputs of the positions `[start, end)`: all of them, or the last one. What has come once is not asked for again,
    whatever becomes of the node that sent it; but what was handed out before its node had signed for it is compared
    with what the next one computes."""

    def __init__(self, start: int, end: int, rows: Rows) -> None:
        self._start, self.end = start, end
        self._first = start if rows == "all" else end - 1
        self._lacks = self._first
        self._mode: RowMode = rows
        self._outputs: dict[int, Output] = {}
        self._doubted: HandedOut | None = None
        self._again: Output | None = None

    def lacks(self) -> int:
        """The first position whose output has not come; `end` if all have. Forgets those that never will."""
        at = self._first
        self._outputs = {start: one for start, one in self._outputs.items() if _came(one)}
        while at in self._outputs:
            at += len(self._outputs[at].result())
        self._outputs = {start: one for start, one in self._outputs.items() if start < at}
        self._lacks = at
        return at

    def doubt(self, handed: HandedOut | None, proved: int) -> None:
        """The last node is gone, and has signed for `proved` positions: what else it sent is wanted once more."""
        if handed is not None and proved <= handed.position < self._start:
            self._doubted = handed
        if self._again is not None and not _came(self._again):
            self._again = None

    @property
    def doubted(self) -> int:
        """The position whose output is wanted once more; -1: none."""
        return -1 if self._doubted is None or self._again is not None else self._doubted.position

    def cut(self, start: int, end: int) -> int:
        """Where a step from `start` on must end at the latest: a step has outputs that are wanted, or none."""
        edges = [self._first, self._lacks] if self._mode == "all" else []
        return min([end, *(at for at in (*edges, self.doubted + 1) if start < at < end)])

    def rows(self, start: int, end: int) -> RowMode:
        """What the last node is to send of the outputs of `[start, end)`."""
        if end == self.doubted + 1:
            return "last"
        return self._mode if end > max(self._lacks, self._first) else "none"

    def expect(self, start: int, end: int, output: Output) -> None:
        """The output of the step `[start, end)`; of its last position alone, if that is all that is wanted."""
        if end == self.doubted + 1:
            self._again = output
        else:
            self._outputs[start if self._mode == "all" else self._first] = output

    async def all(self, in_flight: StepsInFlight, leg: Leg) -> torch.Tensor:
        """`[count, hidden]`, once they have come from the node of `leg`. Raises what broke the circuit; Misled."""
        tensors = [await in_flight.output(self._outputs[start]) for start in sorted(self._outputs)]
        if self._doubted is not None and self._again is not None:
            _compare(self._doubted, (await in_flight.output(self._again))[-1], leg)
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _came(output: Output) -> bool:
    return output.done() and not output.cancelled() and output.exception() is None


def _compare(handed: HandedOut, again: torch.Tensor, leg: Leg) -> None:
    """Raises Misled. Nodes of different numerics may differ by more, so they say nothing of each other."""
    if handed.leg.numerics != leg.numerics:
        return
    apart = float(torch.linalg.vector_norm(handed.row - again))
    if apart > _ABOUT * float(torch.linalg.vector_norm(again)):
        why = f"at position {handed.position} the {handed.leg} and the {leg} differ by {apart:.3g}"
        raise Misled((handed.leg.peer, leg.peer), why)
