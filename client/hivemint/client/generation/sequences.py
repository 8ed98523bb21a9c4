"""The sequences of one `generate` call: a pipeline each, no padding sent, none for a sequence that has ended.

What several texts of a call begin with is computed once; and what a text begins with that an earlier call of the same
conversation had, not at all.
"""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import structlog
import torch

from hivemint.client.generation.bill import Bill
from hivemint.client.generation.ends import Ends
from hivemint.client.generation.loop import LoopThread
from hivemint.client.kept import KeptTalk, TextMark
from hivemint.client.pipeline import Misled, Pipeline, Plan, Rows, SessionLimit, Swarm
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import BadInput, HivemintError, OverLimit, ProofError, Refusal, SwarmError
from hivemint.protocol.ids import Credits

log = structlog.get_logger(__name__)
GOODBYE = 5.0
"""Seconds that closing or cancelling may take: what a node does not hear now it learns from the ended stream."""

SHARED = 16
"""Tokens that texts must begin with alike to share them: a fork waits for a message to every node and back."""


class Sequence:
    """One text on its way through the swarm; where its sessions are used up, it goes on in new ones.

    It signs no more than its plan times the swarm's `replay_margin`: the plan is the price of all its tokens at the
    first route that is paid.
    """

    def __init__(self, swarm: Swarm, ends: Ends, tokens: int) -> None:
        self._swarm, self._ends, self._tokens = swarm, ends, tokens
        self._pipeline: Pipeline | None = None
        self.plan: Plan | None = None
        """Of its newest pipeline, also when that is closed."""
        self._ids = torch.empty(0, dtype=torch.long)
        self._cap: int | None = None
        self._spent = self._signed = self._replayed = self._paid_again = 0  # of pipelines that are closed
        self._failure: HivemintError | None = None  # what the present pipeline is the remedy for

    @property
    def spent(self) -> int:
        """What its own steps cost so far, in wei."""
        return self._spent + (self._pipeline.spent if self._pipeline else 0)

    @property
    def replayed(self) -> int:
        """Positions that were lost with a node and computed again, once for each lost span."""
        return self._replayed + (self._pipeline.replayed if self._pipeline else 0)

    @property
    def paid_again(self) -> int:
        """Positions that were paid a second time, at each span that was."""
        return self._paid_again + (self._pipeline.paid_again if self._pipeline else 0)

    @property
    def computed(self) -> torch.Tensor:
        """The token ids whose positions the nodes have."""
        return self._ids[: self._pipeline.position] if self._pipeline else self._ids[:0]

    @classmethod
    def recalled(cls, swarm: Swarm, ends: Ends, ids: torch.Tensor, mark: TextMark) -> "Sequence":
        """What nodes may still have of the text `ids` of another process: for others to begin with."""
        found = cls(swarm, ends, len(ids))
        found._ids, found._pipeline = ids, swarm.recall(mark)
        return found

    async def mark(self) -> TextMark | None:
        """See `Swarm.mark`."""
        return None if self._pipeline is None else await self._swarm.mark(self._pipeline)

    async def begin_as(self, other: "Sequence", ids: torch.Tensor) -> int:
        """Begin with what `other` has computed of the text `ids`, all but its last token, if it can be had.

        Gives how many positions can't: those that must be computed again.
        """
        count = min(common([other.computed, ids]), len(ids) - 1)
        if count < SHARED or other._pipeline is None:
            return 0
        self._ids, self._pipeline = ids, await self._swarm.fork(other._pipeline, self._tokens, count)
        self.plan = self._pipeline.plan if self._pipeline else None
        return 0 if self._pipeline else count

    async def go_on_from(self, other: "Sequence", ids: torch.Tensor) -> None:
        """The same for the next turn of one talk: what its nodes have given to others meanwhile is counted as lost."""
        lost = await self.begin_as(other, ids)
        self._replayed += lost
        self._paid_again += lost * (len(other._pipeline.plan.hops) if other._pipeline else 0)

    async def advance(self, ids: torch.Tensor, rows: Rows = "last") -> torch.Tensor:
        """The last block's output at the end of the text `ids` `[length]`, as `[1, hidden]`; with `all` at each
        position that is not cached yet.

        Only positions that are not cached yet are computed. A session at its limit is closed and the text so far
        replayed in a new one; a second limit at once is an error, and so is a text that comes to cost too much. The
        same where a node has failed whose place no other could take, if there is a whole other way.
        """
        fresh = self._pipeline is None
        self._ids = ids
        pipeline = self._pipeline = self._pipeline or await self._open()
        pipeline.admit = self._admit
        self._admit((len(ids) - pipeline.position) * pipeline.price)
        try:
            hidden = self._ends.embed(ids[pipeline.position :], pipeline.position).to("cpu", torch.float32)
            output = await pipeline.forward(hidden, rows=rows)
        except SessionLimit as limit:
            if fresh:
                raise SwarmError(
                    f"a new session cannot hold the {len(ids)} tokens so far",
                    why=str(limit),
                    next_step="shorten the text, or raise the price ceiling or the funds of the accounts",
                ) from limit
        except (SwarmError, ProofError, Refusal) as error:
            if self._failure is not None or isinstance(error, OverLimit | Misled) or not self._swarm.another_way(error):
                raise
            self._failure = error
        else:
            self._failure = None
            return output
        finally:
            self.plan = pipeline.plan
        done = pipeline.position
        self._replayed, self._paid_again = self._replayed + done, self._paid_again + done * len(pipeline.plan.hops)
        await self.close()
        return await self.advance(ids, rows)

    async def _open(self) -> Pipeline:
        """What is raised is what went wrong on the way, not that no other way was left."""
        try:
            return await self._swarm.open(self._tokens)
        except (SwarmError, Refusal) as error:
            raise self._failure or error from None

    def _admit(self, wei: int) -> None:
        """Raises OverLimit where so much more is more than the text may cost."""
        pipeline = self._pipeline
        if self._cap is None and pipeline is not None and pipeline.price:
            self._cap = int(pipeline.price * self._tokens * self._swarm.replay_margin)
        signed = self._signed + (pipeline.signed if pipeline else 0)
        if self._cap is not None and signed + wei > self._cap:
            raise OverLimit(
                f"The text stops here: going on would cost more than {self._swarm.replay_margin:g} times its plan",
                why=f"{format_credits(Credits(signed), 18)} are signed, {format_credits(Credits(self.spent), 18)} of "
                f"them for steps of its own, the limit is {format_credits(Credits(self._cap), 18)}; nodes have lost "
                f"its room or failed, and {self.replayed} positions were computed again",
                next_step="ask again later or at other nodes; or raise replay_margin (HIVEMINT_REPLAY_MARGIN)",
            )

    async def cancel(self) -> None:
        if self._pipeline is not None:
            await self._pipeline.cancel()

    async def close(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            try:
                await pipeline.close()
            finally:
                self._spent += pipeline.spent
                self._signed += pipeline.signed
                self._replayed += pipeline.replayed
                self._paid_again += pipeline.paid_again


class Turns:
    """One talk over several calls of `generate`, one after the other, for a text at a time.

    The sessions of an answer stay open, so that the next prompt, which begins with all that was said, computes only
    what is new. A context manager. With a file it outlives its process: see `SwarmModelForCausalLM.conversation`.
    """

    def __init__(self, loop: LoopThread, kept: KeptTalk | None = None) -> None:
        """`kept`: the file, and what it held."""
        self._loop, self._kept = loop, kept
        self._last: Sequence | None = None
        self._found = None if kept is None else kept.mark

    @property
    def keeps(self) -> bool:
        """Whether there is a file."""
        return self._kept is not None

    @property
    def ids(self) -> torch.Tensor:
        """The text as the file has it, `[1, length]` token ids: of the last call, or of an earlier process."""
        return torch.tensor([self._kept.ids if self._kept else []], dtype=torch.long)

    @property
    def note(self) -> dict[str, Any]:
        """What was remembered last, here or in an earlier process."""
        return self._kept.note if self._kept else {}

    def remember(self, note: dict[str, Any]) -> None:
        """Keep something of the caller's own in the file, as JSON has it. Raises BadInput where it can't be written."""
        if self._kept is not None:
            self._kept.remember(note)

    async def write(self, sequence: Sequence, ids: torch.Tensor) -> None:
        """The text so far, and what names it to its nodes."""
        if self._kept is None:
            return
        mark = await sequence.mark()
        try:
            self._kept.write(ids.tolist(), mark)
        except BadInput as error:
            log.warning("the talk is not kept any more", reason=str(error))
            self._kept.close()
            self._kept = None

    def keep(self, sequence: Sequence) -> None:
        self._last = sequence

    def recall(self, swarm: Swarm, ends: Ends) -> Sequence | None:
        """What an earlier process has left at the nodes; once."""
        mark, self._found = self._found, None
        if mark is None:
            return None
        return Sequence.recalled(swarm, ends, self.ids[0], mark)

    def take(self) -> Sequence | None:
        """What the last call has left; it is the caller's to close."""
        last, self._last = self._last, None
        return last

    def close(self) -> None:
        """Sign off, and remove the file. Harmless when called again, or after the model has been closed."""
        self._sign_off()
        if self._kept is not None:
            self._kept.remove()

    def _sign_off(self) -> None:
        self._found = None
        if (last := self.take()) is not None and self._loop.alive:
            self._loop.run(last.close)

    def __enter__(self) -> "Turns":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """After an error the file stays, for a program that begins again."""
        try:
            if kind is None:
                self.close()
            else:
                self._sign_off()
        finally:
            if self._kept is not None:
                self._kept.close()


class Sequences:
    """All rows of a batch. A context manager: leaving it closes the sessions, after an interrupt cancels them first."""

    def __init__(
        self,
        swarm: Swarm,
        ends: Ends,
        loop: LoopThread,
        conversation: Turns | None = None,
        bill: Bill | None = None,
    ) -> None:
        """`bill`: gets what all rows have cost, when they have ended."""
        self._began = time.monotonic()
        self._swarm, self._ends, self._loop, self._conversation = swarm, ends, loop, conversation
        self._bill = bill or Bill()
        self._rows: list[Sequence | None] = []
        self._all: list[Sequence] = []
        self._starts: list[int] = []
        self.limit = ends.context
        """Tokens that a text may come to have, padding included."""
        self.greedy = False
        """Whether only the largest logit of each step counts."""
        self._finished: torch.Tensor | None = None

    def _begin(self, ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Prepare a row for each prompt of `ids` `[batch, length]`; its sessions open with the first step.

        `mask` has the same shape, zeros where padding stands left of a prompt. Raises `BadInput` for any other mask
        and for prompts that leave no room for an answer.
        """
        batch, length = ids.shape
        if length >= self.limit:
            raise BadInput(
                f"the prompt has {length} tokens",
                why=f"the model was made for {self._ends.context}, the answer included",
                next_step="shorten the prompt",
            )
        self._starts = [0] * batch if mask is None else padding(mask, batch, length)
        # the last token of an answer is never sent
        self._all = [Sequence(self._swarm, self._ends, self.limit - 1 - start) for start in self._starts]
        self._bill.prompt_tokens += batch * length - sum(self._starts)
        self._rows = list(self._all)

    def finish(self, met: torch.Tensor) -> None:
        """Each row has a token more; those of `[batch]` that have met a stop criterion close with the next step."""
        self._bill.tokens += len(met) if self._finished is None else int((~self._finished).sum())
        self._finished = met if self._finished is None else self._finished | met

    def noted(self, ids: torch.Tensor) -> None:
        """All ids so far `[batch, length]`, the newest among them: a talk that is kept has them on disk from now on."""
        row = self._rows[0] if len(self._rows) == 1 else None
        if self._conversation is not None and row is not None:
            self._loop.run(self._conversation.write, row, ids[0, self._starts[0] :])

    def advance(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`ids` `[batch, length]`, the texts so far, to the last block's output at their ends `[batch, hidden]`.

        `mask` counts with the first call. Rows that have ended give zeros and cost nothing.
        """
        if not self._rows:
            self._begin(ids, mask)
            if len(self._rows) > 1 or self._conversation is not None:
                self._loop.run(self._share, ids)
        if len(self._rows) == 1 and self._rows[0] is not None:  # the common case, without a task per row
            return self._loop.run(self._rows[0].advance, ids[0, self._starts[0] :])
        return self._loop.run(self._advance_all, ids)

    def whole(self, texts: list[torch.Tensor]) -> list[torch.Tensor]:
        """In place of steps: the last block's outputs at all positions of each text `[length]`, `[length, hidden]`."""
        self._all = [Sequence(self._swarm, self._ends, len(text)) for text in texts]
        self._rows = list(self._all)
        self._bill.prompt_tokens += sum(len(text) for text in texts)
        states: dict[int, torch.Tensor] = {}

        async def one(index: int, row: Sequence) -> None:
            states[index] = await row.advance(texts[index], "all")

        self._loop.run(lambda: _together([one(index, row) for index, row in enumerate(self._all)]))
        return [states[index] for index in range(len(texts))]

    async def _advance_all(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.zeros(len(self._rows), self._ends.hidden_size)

        async def one(index: int, row: Sequence) -> None:
            if self._finished is not None and self._finished[index]:
                self._rows[index] = None
                await row.close()
            else:
                hidden[index] = (await row.advance(ids[index, self._starts[index] :]))[0]

        await _together([one(index, row) for index, row in enumerate(self._rows) if row is not None])
        return hidden

    async def _share(self, ids: torch.Tensor) -> None:
        """Before the first step: begin with what the conversation had, and compute once what rows begin with."""
        texts = [text[start:] for text, start in zip(ids, self._starts, strict=True)]
        rows = [row for row in self._rows if row is not None]  # all are there yet
        talk = self._conversation
        if talk is not None and (before := talk.take() or talk.recall(self._swarm, self._ends)) is not None:
            try:
                if len(rows) == 1:
                    await rows[0].go_on_from(before, texts[0])
            finally:
                await before.close()

        async def one(group: list[int], count: int) -> None:
            first = rows[group[0]]
            await first.advance(texts[group[0]][:count])
            await _together([rows[other].begin_as(first, texts[other]) for other in group[1:]])

        await _together([one(group, count) for group, count in alike(texts)])

    def __enter__(self) -> "Sequences":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Raises what a pipeline's closing raises (a lie about the last step), unless another error is on its way."""
        interrupted = kind is not None and not issubclass(kind, Exception)
        if error is None and self._conversation is not None and len(self._rows) == 1 and self._rows[0] is not None:
            self._conversation.keep(self._rows[0])
            self._rows = []
        failed = self._loop.run(lambda: self._end(cancel=interrupted))
        self._bill.spent += sum(row.spent for row in self._all)
        self._bill.replayed += sum(row.replayed for row in self._all)
        self._bill.paid_again += sum(row.paid_again for row in self._all)
        self._bill.plans += [row.plan for row in self._all if row.plan is not None]
        self._bill.seconds += time.monotonic() - self._began
        if failed is not None and error is None:
            raise failed

    async def _end(self, *, cancel: bool) -> BaseException | None:
        """Close all rows. Gives the first error that came of it."""

        async def one(row: Sequence) -> None:
            if cancel:
                await row.cancel()
            await row.close()

        rows, self._rows = [row for row in self._rows if row is not None], []
        if not rows:
            return None
        ended, late = await asyncio.wait([asyncio.create_task(one(row)) for row in rows], timeout=GOODBYE)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return next((error for task in ended if not task.cancelled() and (error := task.exception())), None)


def summed(plans: list[Plan], texts: list[torch.Tensor]) -> Plan:
    """The plans of all rows as one: what `texts` begin with alike is computed once."""
    spared = sum((len(group) - 1) * count for group, count in alike(texts))
    return replace(
        plans[0],
        tokens=sum(plan.tokens for plan in plans) - spared,
        cost=Credits(sum(plan.cost for plan in plans) - spared * sum(hop.price for hop in plans[0].hops)),
        reserved=Credits(sum(plan.reserved for plan in plans)),
    )


def alike(texts: list[torch.Tensor]) -> list[tuple[list[int], int]]:
    """Groups of texts that begin alike, and with how many tokens: less than any text has, so each has an own end."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, text in enumerate(texts):
        if len(text) > SHARED:
            groups.setdefault(tuple(text[:SHARED].tolist()), []).append(index)
    found = []
    for group in (group for group in groups.values() if len(group) > 1):
        members = [texts[index] for index in group]
        found.append((group, min(common(members), min(len(text) for text in members) - 1)))
    return found


def common(texts: list[torch.Tensor]) -> int:
    """How many tokens all texts begin with."""
    shortest = min(len(text) for text in texts)
    same = torch.stack([text[:shortest] == texts[0][:shortest] for text in texts]).all(0)
    return shortest if bool(same.all()) else int(same.int().argmin())


async def _together(work: list[Coroutine[Any, Any, Any]]) -> None:
    """All at once; the first to fail cancels the others, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def padding(mask: torch.Tensor, batch: int, length: int) -> list[int]:
    """How many positions stand left of each row's text. Raises `BadInput` unless the mask is zeros, then ones."""
    if tuple(mask.shape) != (batch, length):
        raise BadInput(f"attention_mask has the shape {tuple(mask.shape)}", why=f"input_ids have {(batch, length)}")
    ones = mask != 0
    counts = ones.sum(1)
    if not bool(ones[:, -1].all()) or not bool((ones.int().diff(dim=1) >= 0).all()):
        raise BadInput(
            "attention_mask hides tokens inside or after the text",
            why="only padding before the text can be left out",
            next_step="set the tokenizer's padding_side to 'left'",
        )
    return [length - int(count) for count in counts]
