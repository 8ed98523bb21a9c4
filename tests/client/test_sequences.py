"""What the end of a `generate` call tells: a lie about the last step reaches the caller, an older error stays."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hivemint.client.generation.loop import LoopThread
from hivemint.client.generation.sequences import Sequences
from hivemint.protocol.errors import ProofError, SwarmError


class Lying:
    """A pipeline that finds at its end that the last receipts do not hold, as `LivePipeline.close` does."""

    position = price = spent = signed = replayed = paid_again = 0
    plan = None

    def __init__(self, lies: bool) -> None:
        self.lies, self.closed = lies, False

    async def forward(self, hidden: torch.Tensor, *, rows: str = "last") -> torch.Tensor:
        self.position += len(hidden)
        return hidden[-1:]

    async def close(self) -> None:
        self.closed = True
        if self.lies:
            raise ProofError("A receipt does not hold")


class Swarm:
    """Opens one pipeline for each entry of `lies`."""

    replay_margin = 2.0

    def __init__(self, *lies: bool) -> None:
        self.pipelines = [Lying(one) for one in lies]
        self._next = iter(self.pipelines)

    async def open(self, tokens: int) -> Any:
        return next(self._next)

    def another_way(self, error: Exception) -> bool:
        return False


ENDS: Any = SimpleNamespace(context=64, hidden_size=4, embed=lambda ids, start: torch.zeros(len(ids), 4))


def generate(swarm: Any, failing: Exception | None = None) -> None:
    loop = LoopThread()
    try:
        with Sequences(swarm, ENDS, loop) as sequences:
            sequences.advance(torch.ones(len(swarm.pipelines), 3, dtype=torch.long))
            if failing:
                raise failing
    finally:
        loop.stop()
        assert all(one.closed for one in swarm.pipelines)


def test_an_honest_end_is_quiet() -> None:
    generate(Swarm(False, False))


@pytest.mark.parametrize("lies", [(True,), (False, True, False)])
def test_a_lie_about_the_last_step_reaches_the_caller(lies: tuple[bool, ...]) -> None:
    with pytest.raises(ProofError, match="does not hold"):
        generate(Swarm(*lies))


def test_an_error_that_is_on_its_way_is_not_replaced() -> None:
    with pytest.raises(SwarmError, match="went away"):
        generate(Swarm(True), SwarmError("the node went away"))
