"""What a caller waits for: the last block's output at some positions of one `forward`."""

import asyncio

import torch

from hivemint.client.pipeline import Rows
from hivemint.client.sessions.pipelines.in_flight import StepsInFlight
from hivemint.swarm.messages import RowMode

Output = asyncio.Future[torch.Tensor]


class AwaitedOutputs:
    """Outputs of the positions `[start, end)`: all of them, or the last one. What has come once is not asked for again,
    whatever becomes of the node that sent it."""

    def __init__(self, start: int, end: int, rows: Rows) -> None:
        self.end = end
        self._first = start if rows == "all" else end - 1
        self._lacks = self._first
        self._mode: RowMode = rows
        self._outputs: dict[int, Output] = {}

    def lacks(self) -> int:
        """The first position whose output has not come; `end` if all have. Forgets those that never will."""
        at = self._first
        self._outputs = {start: one for start, one in self._outputs.items() if _came(one)}
        while at in self._outputs:
            at += len(self._outputs[at].result())
        self._outputs = {start: one for start, one in self._outputs.items() if start < at}
        self._lacks = at
        return at

    def cut(self, start: int, end: int) -> int:
        """Where a step from `start` on must end at the latest: a step has outputs that are wanted, or none."""
        bounds = [at for at in (self._first, self._lacks) if start < at < end] if self._mode == "all" else []
        return min([end, *bounds])

    def rows(self, start: int, end: int) -> RowMode:
        """What the last node is to send of the outputs of `[start, end)`."""
        return self._mode if end > max(self._lacks, self._first) else "none"

    def expect(self, start: int, output: Output) -> None:
        """The output of a step from position `start` on; of its last position alone, if that is all that is wanted."""
        self._outputs[start if self._mode == "all" else self._first] = output

    async def all(self, in_flight: StepsInFlight) -> torch.Tensor:
        """`[count, hidden]`, once they have come. Raises what broke the circuit."""
        tensors = [await in_flight.output(self._outputs[start]) for start in sorted(self._outputs)]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _came(output: Output) -> bool:
    return output.done() and not output.cancelled() and output.exception() is None
