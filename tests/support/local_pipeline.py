"""The swarm's reference for tests: a whole model's blocks in this process, by transformers' own layers and cache."""

import asyncio
import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from transformers import AutoModel, DynamicCache

from hivemint.client.kept import TextMark
from hivemint.client.pipeline import Hop, Pipeline, Plan, Rows, SessionLimit, Trail
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import HivemintError, SwarmError
from hivemint.protocol.ids import Address, BlockIndex, Credits, PeerId


class LocalPipeline:
    """One sequence; counts what it is asked. `room`: positions that its session admits."""

    def __init__(self, swarm: "LocalSwarm", room: int) -> None:
        self._swarm, self.room = swarm, room
        self._cache = DynamicCache(config=swarm.decoder.config)
        self.position = 0
        self.price = swarm.price
        self.plan = Plan((), room, Credits(swarm.price * room), Credits(0), "paid" if swarm.price else "donated")
        self.sent: list[int] = []
        self.cancelled = self.closed = False
        self.slow: SwarmError | None = None

    @property
    def hidden_size(self) -> int:
        return int(self._swarm.decoder.config.hidden_size)

    @property
    def spent(self) -> int:
        return self.price * sum(self.sent)

    @property
    def signed(self) -> int:
        return self.spent

    replayed = paid_again = 0
    admit: Callable[[int], None] = staticmethod(lambda wei: None)

    async def forward(self, hidden: torch.Tensor, *, rows: Rows = "last") -> torch.Tensor:
        assert hidden.dtype == torch.float32
        assert hidden.is_contiguous()
        assert hidden.shape[1] == self.hidden_size
        assert not self.closed
        if self.position + len(hidden) > self.room:
            raise SessionLimit(f"the session holds {self.room} tokens")
        self.sent.append(len(hidden))
        if self._swarm.before_step:
            await self._swarm.before_step(self)
        with torch.inference_mode():
            out = self._swarm.decoder(inputs_embeds=hidden[None], past_key_values=self._cache, use_cache=True)
        self.position += len(hidden)
        states: torch.Tensor = out.last_hidden_state[0]
        return states[-1:] if rows == "last" else states

    def crop(self, length: int) -> None:
        assert 0 <= length <= self.position
        if length < self.position:
            self._cache.crop(length - self.position)
        self.position = length

    async def close(self) -> None:
        self.closed = True

    async def cancel(self) -> None:
        await asyncio.sleep(0)
        self.cancelled = True


class LocalTraining:
    """One lane over the same blocks, cut into `spans`. `room`: positions that it computes, a backward's twice."""

    def __init__(self, swarm: "LocalSwarm", spans: tuple[range, ...], room: int) -> None:
        self._swarm, self.spans, self.room = swarm, spans, room
        self.steps: list[tuple[str, int]] = []
        self.closed = False
        self.slow: SwarmError | None = None

    @property
    def signed(self) -> int:
        return self._swarm.price * sum(count for _, count in self.steps)

    @property
    def price(self) -> int:
        return self._swarm.price * len(self.spans)

    def cost(self, trail: Trail) -> int:
        return self._swarm.price * sum((2 if back else 1) * trail.count for _, back in self._due(trail))

    def _due(self, trail: Trail) -> list[tuple[range, bool]]:
        """Spans that must go forward (False) or backward, written down in another way than the real one's."""
        due: list[tuple[range, bool]] = []
        known = set(trail.states)
        if not trail.gradients:
            last = max(i for i, span in enumerate(self.spans) if span.start in known)
            return [(span, False) for span in self.spans[last:] if span.stop not in known]
        for index in reversed(range(len(self.spans))):
            if self.spans[index].start in trail.gradients:
                continue
            missing: list[range] = []
            for before in reversed(self.spans[:index]):
                if before.stop in known:
                    break
                missing.insert(0, before)
            due += [(span, False) for span in missing] + [(self.spans[index], True)]
            known |= {span.stop for span in missing}
        return due

    async def forward(self, trail: Trail) -> torch.Tensor:
        await self._pass(trail)
        return trail.states[self.spans[-1].stop]

    async def backward(self, trail: Trail) -> torch.Tensor:
        await self._pass(trail)
        return trail.gradients[0]

    async def _pass(self, trail: Trail) -> None:
        for span, back in self._due(trail):
            await self._spend("backward" if back else "forward", (2 if back else 1) * trail.count)
            hidden = trail.states[span.start]
            if not back:
                with torch.no_grad():
                    trail.states[span.stop] = self._run(span, hidden)
                continue
            with torch.enable_grad():
                rows = hidden.clone().requires_grad_(True)
                (found,) = torch.autograd.grad(self._run(span, rows), rows, trail.gradients[span.stop])
            trail.gradients[span.start] = found

    async def mend(self) -> bool:
        await asyncio.sleep(0)
        cuts, self._swarm.mended = self._swarm.mended, None
        if cuts is None:
            return False
        edges = [0, *cuts, self.spans[-1].stop]
        self.spans = tuple(range(a, b) for a, b in pairwise(edges))
        return True

    async def close(self) -> None:
        self.closed = True

    async def _spend(self, kind: str, tokens: int) -> None:
        assert not self.closed
        if self._swarm.before_step:
            await self._swarm.before_step(self)
        if sum(count for _, count in self.steps) + tokens > self.room * len(self.spans):
            raise SessionLimit("the session's amount is used up")
        self.steps.append((kind, tokens))

    def _run(self, span: range, hidden: torch.Tensor) -> torch.Tensor:
        decoder = self._swarm.decoder
        layers = decoder.layers
        decoder.layers, decoder.config.num_hidden_layers = layers[span.start : span.stop], len(span)
        try:
            output: torch.Tensor = decoder(inputs_embeds=hidden[None], use_cache=False).last_hidden_state[0]
        finally:
            decoder.layers, decoder.config.num_hidden_layers = layers, len(layers)
        return output


class LocalSwarm:
    """Opens `LocalPipeline`s. `room` (default: what is asked) limits each; `before_step` may fail or wait."""

    replay_margin = 2.0
    price = 3

    def __init__(self, model: LocalModel, room: int | None = None, before_step: Any = None) -> None:
        self.decoder = AutoModel.from_pretrained(model.folder, dtype=torch.float32).eval()
        self.decoder.norm = torch.nn.Identity()
        self.room, self.before_step = room, before_step
        self.pipelines: list[LocalPipeline] = []
        self.asked: list[int] = []
        self.forks: list[int] = []
        self.forgets = False
        self.lanes: list[LocalTraining] = []
        self.cuts: list[int] = []
        """Where the next lanes' spans are cut."""
        self.mended: list[int] | None = None
        """Where the cuts are once a lane has been mended; None: it can't be."""
        self.closed = False
        self.others = False
        """Whether another node can take the place of one that failed."""
        self.named: list[HivemintError] = []
        self.offers: list[tuple[object, object]] = []
        """Bid and ceiling of each call that has its own."""

    description = "network here, as nobody, bid auto"

    def offering(self, *, bid: object = None, max_price: object = None) -> "LocalSwarm":
        self.offers.append((bid, max_price))
        return self

    async def open(self, tokens: int) -> Pipeline:
        self.asked.append(tokens)
        self.pipelines.append(LocalPipeline(self, tokens if self.room is None else self.room))
        return self.pipelines[-1]

    def another_way(self, error: HivemintError) -> bool:
        self.named.append(error)
        return self.others

    async def fork(self, parent: Pipeline, tokens: int, count: int) -> Pipeline | None:
        assert isinstance(parent, LocalPipeline)
        assert not parent.closed
        assert 0 < count <= parent.position
        self.forks.append(count)
        if self.forgets:
            return None
        child = LocalPipeline(self, tokens if self.room is None else self.room)
        child._cache, child.position = copy.deepcopy(parent._cache), parent.position
        child.crop(count)
        self.pipelines.append(child)
        return child

    async def mark(self, pipeline: Pipeline) -> TextMark | None:
        """Nothing here outlives its process."""
        await asyncio.sleep(0)
        return None

    def recall(self, mark: TextMark) -> Pipeline:
        raise AssertionError(mark)

    async def relay(self, tokens: int, work: int) -> LocalTraining:
        self.asked.append(tokens)
        edges = [0, *self.cuts, self.decoder.config.num_hidden_layers]
        spans = tuple(range(a, b) for a, b in pairwise(edges))
        self.lanes.append(LocalTraining(self, spans, work))
        return self.lanes[-1]

    async def plan(self, tokens: int) -> Plan:
        end = BlockIndex(self.decoder.config.num_hidden_layers)
        hop = Hop(PeerId(b"local"), "local", BlockIndex(0), end, Credits(3), 0.0, Address("0x" + "11" * 20))
        return Plan((hop,), tokens, Credits(3 * tokens), Credits(3 * tokens * 5 // 4), "paid")

    async def close(self) -> None:
        self.closed = True
