"""A step with its rows: what waits at the device, is computed there, and resolves to what came out."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from hivemint.node.engine.scheduler import Job, Slice
from hivemint.node.engine.seats import Seat
from hivemint.node.span.packing import Work


def _output() -> "asyncio.Future[torch.Tensor]":
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False, slots=True, kw_only=True)
class StepJob(Job):
    """A step's rows `[count, hidden]` for positions `start ..`. `output` resolves to as many.

    A backward step's rows are twice as wide, states and gradients of a whole sequence, and its job counts each position
    twice; the output is the input's gradient. It takes its turns like any other step and begins at the last of them:
    their sum is what it has waited for. From then on `turns` gives it in one piece, or block by block where others are
    about: between two of its blocks goes a batch.
    """

    seat: Seat
    start: int
    hidden: torch.Tensor
    backward: bool = False
    output: "asyncio.Future[torch.Tensor]" = field(default_factory=_output)
    parts: list[torch.Tensor] = field(default_factory=list)
    turns: Iterator[torch.Tensor | None] | None = None
    seconds: float = 0.0

    def work(self, first: int, rows: int) -> Work:
        """Some of its rows, as the span takes them."""
        return Work(self.seat.cache, self.start + first, self.hidden[first : first + rows], self.seat.adapter)

    def came_out(self, rows: torch.Tensor, *, last: bool) -> None:
        """What the device made of the next of its rows, or of the `last` ones."""
        self.parts.append(rows)
        if last:
            self.output.set_result(self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts))


StepSlice = Slice[StepJob]
