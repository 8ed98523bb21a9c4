"""Training through frozen blocks at the swarm's nodes: prompts, heads, whatever stands before and after them.

    with model.blocks(tokens=64, sequences=4) as blocks:
        prompt = torch.nn.Parameter(0.02 * torch.randn(8, blocks.hidden_size))
        hidden = blocks(torch.cat([prompt.expand(4, -1, -1), model.embed(ids)], dim=1))
        loss = cross_entropy(model.logits(hidden[:, -1]), labels)
        loss.backward()                    # the gradient has come through every node

The nodes keep nothing of it: a forward is asked for by whole sequences, a backward brings its states along.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from hivemint.client.generation.loop import LoopThread
from hivemint.client.pipeline import SessionLimit, Swarm, Trail, Training
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import BadInput, HivemintError, OverLimit, ProofError, Refusal, SwarmError
from hivemint.protocol.ids import Credits

T = TypeVar("T")
ROUNDS = 16
"""Forward and backward passes of one sequence that a session is signed for; then the next session opens."""
ATTEMPTS = 4
"""Routes tried for one pass of one sequence."""
PASSES = 3
"""Counts of a position in a forward and a backward pass."""


class Ceiling:
    """What all lanes of one training may sign together, in wei; None: each lane's own limit is all."""

    def __init__(self, most: Credits | None) -> None:
        self.most = most
        self.lanes: list[TrainingRoute] = []

    @property
    def signed(self) -> Credits:
        """By all lanes so far, in wei."""
        return Credits(sum(lane.signed for lane in self.lanes))

    def admit(self, lane: "TrainingRoute", wei: int) -> None:
        """Raises SwarmError where this lane's next pass, beside what all others have signed or begun, is too much."""
        begun = sum(one.begun for one in self.lanes if one is not lane) + lane.signed
        if self.most is not None and begun + wei > self.most:
            raise OverLimit(
                "The training stops here: going on would cost more than its max_amount",
                why=f"{format_credits(Credits(begun), 18)} are signed or begun, the next pass costs "
                f"{format_credits(Credits(wei), 18)}, the limit is {format_credits(self.most, 18)}",
                next_step="raise max_amount to go on; what has been learned so far is yours",
            )


class TrainingRoute:
    """One sequence after the other along one route. A node that fails is replaced, and the pass goes on where it was;
    where that can't be had or a session ends, it goes on along another route.

    It signs no more than its plan times the swarm's `replay_margin`: the plan is what a session is signed for, or all
    that was asked of it so far if that is more, at the price of its first route that is paid.
    """

    def __init__(self, swarm: Swarm, tokens: int, rounds: int, ceiling: Ceiling | None = None) -> None:
        self._swarm, self._tokens, self._work = swarm, tokens, tokens * PASSES * rounds
        self._ceiling = ceiling or Ceiling(None)
        self._ceiling.lanes.append(self)
        self._training: Training | None = None
        self._signed = self._begun = self._asked = self._price = 0

    @property
    def signed(self) -> int:
        """Wei, of all its sessions."""
        return self._signed + (self._training.signed if self._training else 0)

    @property
    def begun(self) -> int:
        """Wei that are signed, or will be when the pass under way has ended well."""
        return max(self._begun, self.signed)

    async def forward(self, hidden: torch.Tensor) -> Trail:
        """fp32 `[count, hidden]`."""
        trail = Trail({0: hidden})
        self._asked += trail.count
        await self._tried(trail, lambda training: training.forward(trail))
        return trail

    async def backward(self, trail: Trail, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of the sequence's input."""
        known = Trail(trail.states, {trail.end: gradient})  # of the same states another gradient may be asked later
        self._asked += 2 * trail.count
        return await self._tried(known, lambda training: training.backward(known))

    async def close(self) -> None:
        training, self._training = self._training, None
        if training is not None:
            try:
                await training.close()
            finally:
                self._signed += training.signed

    async def _tried(self, trail: Trail, run: Callable[[Training], Awaitable[T]]) -> T:
        """What has come of a pass stays in `trail`: the rest is asked for again, as long as there is a route.

        What is raised is what went wrong on the way, not that no other way was left.
        """
        failure: SwarmError | ProofError | Refusal | None = None
        for _ in range(ATTEMPTS):
            await self._leave_slow()
            fresh = self._training is None
            try:
                training = self._training = self._training or await self._swarm.relay(self._tokens, self._work)
            except SwarmError as error:
                raise failure or error from None
            self._admit(training, trail, failure)
            try:
                return await run(training)
            except (SwarmError, ProofError, Refusal) as error:
                failure = error
                if not await training.mend():
                    await self.close()
                if fresh and isinstance(error, SessionLimit):
                    break
            finally:
                self._begun = 0
        assert failure is not None  # noqa: S101 - no attempt ends otherwise
        raise failure

    def _admit(self, training: Training, trail: Trail, failure: HivemintError | None) -> None:
        """Raises SwarmError where the rest of a pass is more than the lane, or all of them, may cost."""
        wei = training.cost(trail)
        self._ceiling.admit(self, wei)
        self._price = self._price or training.price
        limit = int(self._swarm.replay_margin * self._price * max(self._work, self._asked))
        if self._price and self.signed + wei > limit:
            margin = f"{self._swarm.replay_margin:g}"
            raise OverLimit(
                f"The training stops here: going on would cost more than {margin} times its plan",
                why=f"{format_credits(Credits(self.signed), 18)} are signed for this lane, the limit is "
                f"{format_credits(Credits(limit), 18)}; passes that failed were computed again",
                next_step="ask again later or at other nodes; or raise replay_margin (HIVEMINT_REPLAY_MARGIN)",
            ) from failure
        self._begun = self.signed + wei

    async def _leave_slow(self) -> None:
        """Nothing is lost between two passes."""
        if self._training is None or (slow := self._training.slow) is None or not self._swarm.another_way(slow):
            return
        await self.close()


class RemoteBlocks(nn.Module):
    """All blocks of the model as one frozen module: `[B, T, hidden]` or `[T, hidden]` -> the same, differentiable.

    Causal, whole sequences from position 0; pad shorter ones on the right and leave their ends out of the loss. Has no
    parameters. Use it as a context manager, or close it: its sessions reserve credits of the accounts.
    """

    def __init__(
        self,
        swarm: Swarm,
        loop: LoopThread,
        hidden_size: int,
        *,
        tokens: int,
        sequences: int = 1,
        rounds: int = ROUNDS,
        max_amount: Credits | None = None,
    ) -> None:
        """`tokens`: the longest sequence. `sequences`: how many are under way at once, each with its own sessions.

        `rounds`: forward and backward passes that a session is signed (and credits reserved) for. `max_amount`: wei
        that all of it may cost; None: what the passes cost times the swarm's `replay_margin`.
        """
        super().__init__()
        if min(tokens, sequences, rounds) < 1:
            raise BadInput("tokens, sequences and rounds are at least 1", why=f"got {tokens}, {sequences}, {rounds}")
        self.hidden_size, self.tokens = hidden_size, tokens
        self._loop = loop
        self.ceiling = Ceiling(max_amount)
        self._lanes = [TrainingRoute(swarm, tokens, rounds, self.ceiling) for _ in range(sequences)]
        self.owner: object = None
        """The model that it belongs to: it stays in the network for as long as this is in use."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Raises BadInput for a shape that can't be run; SwarmError, Refusal, ProofError when no route is left."""
        if hidden.dim() not in (2, 3) or hidden.shape[-1] != self.hidden_size or not hidden.numel():
            raise BadInput(
                f"hidden states of shape {tuple(hidden.shape)} can't be run",
                why=f"expected [sequences, positions, {self.hidden_size}]",
            )
        if hidden.shape[-2] > self.tokens:
            raise BadInput(
                f"a sequence of {hidden.shape[-2]} positions can't be run",
                why=f"the sessions are for {self.tokens}",
                next_step="open blocks(tokens=...) for longer ones, or cut the text",
            )
        whole = hidden if hidden.dim() == 3 else hidden.unsqueeze(0)
        function: Any = _Remote
        output: torch.Tensor = function.apply(whole, self)
        return output if hidden.dim() == 3 else output.squeeze(0)

    @property
    def spent(self) -> Credits:
        """What was signed for its passes so far, in wei; 0 in the donated lane."""
        return self.ceiling.signed

    def close(self) -> None:
        """Sign off with all nodes. Harmless when called again."""
        if self._loop.alive:
            self._loop.run(self._all, lambda lane, _: lane.close(), range(len(self._lanes)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except HivemintError:
            if error is None:
                raise

    def run_forward(self, hidden: torch.Tensor) -> list[Trail]:
        """All sequences of `[B, T, hidden]`, as many at once as there are lanes."""
        rows = list(hidden.detach().to("cpu", torch.float32).contiguous())
        return self._loop.run(self._all, lambda lane, index: lane.forward(rows[index]), range(len(rows)))

    def run_backward(self, trails: Sequence[Trail], gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of all inputs, `[B, T, hidden]` fp32."""
        rows = list(gradient.detach().to("cpu", torch.float32).contiguous())
        return torch.stack(
            self._loop.run(self._all, lambda lane, index: lane.backward(trails[index], rows[index]), range(len(rows)))
        )

    async def _all(self, run: Callable[[TrainingRoute, int], Awaitable[T]], indices: range) -> list[T]:
        """`run` for each index, in order of lanes; the first error ends the others."""
        results: dict[int, T] = {}

        async def serve(number: int, lane: TrainingRoute) -> None:
            for index in indices[number :: len(self._lanes)]:
                results[index] = await run(lane, index)

        try:
            async with asyncio.TaskGroup() as group:
                for number, lane in enumerate(self._lanes):
                    group.create_task(serve(number, lane))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [results[index] for index in indices]


class _Remote(torch.autograd.Function):
    """Forward and backward by way of the swarm. The blocks are frozen: the input alone has a gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, blocks: RemoteBlocks) -> torch.Tensor:
        trails = blocks.run_forward(hidden)
        if ctx.needs_input_grad[0]:
            ctx.trails, ctx.blocks = trails, blocks
        return torch.stack([trail.states[trail.end] for trail in trails]).to(hidden.device, hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        found = ctx.blocks.run_backward(ctx.trails, gradient)
        return found.to(gradient.device, gradient.dtype), None
