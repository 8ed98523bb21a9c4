"""A hostile node at real clients of one wallet: real links, real books on disk, and accounts on a real chain.

It refuses with any code, claims any debt with any voucher that it was ever shown, offers any limits, goes silent, dies,
forges. What must hold after each text, whatever it does:
- of what was signed no more is lost than was in flight at one time; with two machines, which know nothing of each
  other, one time more for each voucher of the one that the node shows the other (decision 0017);
- no total passes what the account held when its session opened, no session raises it by more than its amount;
- no input ends a client with an error that is not one of ours.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from hivemint.client.sessions.nodes import Target
from hivemint.client.sessions.payer import Payer
from hivemint.client.sessions.pipelines.live_pipeline import LivePipeline
from hivemint.client.sessions.swarm_client import SwarmClient
from hivemint.client.sessions.wallet import ContractPort, Identity
from hivemint.client.settings import Bid, ClientSettings
from hivemint.contracts.bindings import Bindings
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.protocol.errors import HivemintError
from hivemint.swarm.messages import Code
from support.hostile_node import BLOCKS, HIDDEN, HONEST, MODEL, HostileNode, Move
from support.money_stage import NODE, WALLET, Stage, profile

ASK = 5
PRICE = ASK * BLOCKS
FUNDED = 400 * PRICE
ROWS, AHEAD, TEXT = 4, 3, 40
"""The client's own ceilings: rows a step, steps in flight; tokens of a text."""
MORE = 2
"""Tokens one by one after a prompt, where two texts run at once."""

kinds = ["take"] * 4 + ["refuse"] * 8 + ["end", "die", "forge", "odd", "again", "silent"]
moves = st.builds(
    Move,
    kind=st.sampled_from(kinds),
    code=st.sampled_from([Code.VOUCHER] * 8 + list(Code)),
    owed=st.sampled_from(["truth", "signed", "signed", "nothing", "anything"]),
    off=st.sampled_from([0, 0, 1, -1, PRICE, -PRICE]),
    proof=st.sampled_from(["none", "highest", "highest", "older", "foreign"]),
)
claims = st.builds(
    Move,
    kind=st.just("refuse"),
    owed=st.sampled_from(["signed", "signed", "truth", "anything"]),
    off=st.sampled_from([0, 0, 1]),
    proof=st.sampled_from(["none", "highest", "older", "foreign"]),
)
"""Of a debt, in the place of each step."""
scripts = st.lists(moves, max_size=4)
openings = st.one_of(st.just(HONEST), moves)
sizes = st.integers(1, 6)


class Found:
    """The client's host, to which the directory shows one node."""

    def __init__(self, host: Any, node: HostileNode) -> None:
        self._host, self._node = host, node

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    async def find(self, *_: Any) -> Any:
        return [self._node.record()]


class OneMachine(RuleBasedStateMachine):
    """Two processes of a wallet on one machine: one file of books."""

    books = ("books", "books")
    delivered = 0
    """Over all examples, so that a play in which nothing ever happens is noticed."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage, self.folder = stage, stage.reset()
        stage.fund(FUNDED)
        self.node = HostileNode(stage.host, NODE, stage.domain, ASK, self._funded)
        stage.run(self.node.start())
        self.chains: list[Bindings] = []
        self.clients = [stage.run(self._client(name)) for name in self.books]
        self.most = 0
        """The highest total that any signature was good for."""

    async def _client(self, name: str) -> SwarmClient:
        contracts = await Bindings.connect(self.stage.network)
        self.chains.append(contracts)
        genesis = await contracts.chain.genesis()
        book = VoucherBook.open(self.folder / f"{name}.db", self.stage.domain, WALLET.address, genesis)
        payer = Payer(Identity.own(WALLET), self.stage.domain, book, ContractPort(contracts))
        chosen = ClientSettings(
            bid=Bid("times"),
            min_chunk=2,
            step_timeout=1.5,
            open_timeout=10,
            patience=0,
            set_aside=0,
            max_rows=ROWS,
            max_ahead=AHEAD,
            max_session_tokens=512,
            max_wait=0.01,
        )
        host: Any = Found(self.stage.client, self.node)
        return SwarmClient(host, Target(MODEL, BLOCKS, HIDDEN), payer, chosen, proofs=self.folder / "evidence")

    def _funded(self) -> int:
        balance, collected, thaw_end, *_ = self.stage.account()
        return 0 if thaw_end else balance + collected

    @rule(process=st.integers(0, 1), size=sizes, more=st.integers(0, 3), script=scripts, first=openings)
    def text(self, process: int, size: int, more: int, script: list[Move], first: Move) -> None:
        """A prompt of `size` tokens, then `more` one by one, as far as it goes. Where room is lost, all that came until
        then is under way once more, as a prompt."""
        self._script(script, first)
        self.stage.run(self._text(self.clients[process], size, more))
        self._most(size + more)

    @rule(rounds=st.integers(4, 24), move=claims)
    def one_token_again_and_again(self, rounds: int, move: Move) -> None:
        """The same answer each time: what it costs once it must not cost each time."""
        for process in range(rounds):
            self._script([move] * 4, replace(move, kind="take"))
            self.stage.run(self._text(self.clients[process % 2], 1, 0))
            self._most(1)
            self.no_more_is_lost_than_was_in_flight()

    @rule(one=sizes, other=sizes, script=scripts, first=openings)
    def texts_at_once(self, one: int, other: int, script: list[Move], first: Move) -> None:
        async def both() -> None:
            await asyncio.gather(
                *(self._text(who, size, MORE) for who, size in zip(self.clients, (one, other), strict=True))
            )

        self._script(script, first)
        self.stage.run(both())
        self._most(min(one + MORE, ROWS * AHEAD) + min(other + MORE, ROWS * AHEAD))

    @rule(ahead=st.sampled_from([1, 2, 64, 2**31]), rows=st.sampled_from([1, 4, 4096, 2**31]))
    def offer(self, ahead: int, rows: int) -> None:
        self.node.ahead, self.node.max_rows = ahead, rows

    @rule(order=st.sampled_from(["thaw", "cancelThaw"]))
    def account(self, order: str) -> None:
        self.stage.order(order, NODE.address)

    @rule(process=st.integers(0, 1))
    def another_process(self, process: int) -> None:
        """It ends, and begins again with the same books."""
        old = self.clients[process].payer.book
        self.clients[process] = self.stage.run(self._client(self.books[process]))
        old.close()

    @invariant()
    def no_more_is_lost_than_was_in_flight(self) -> None:
        assert self.node.highest <= self.most + self._between_machines()

    @invariant()
    def nothing_passes_the_account(self) -> None:
        assert self.node.wrong == []

    @invariant()
    def no_error_is_a_strangers(self) -> None:
        assert self.stage.told == []

    def teardown(self) -> None:
        type(self).delivered += self.node.delivered
        for client in self.clients:
            client.payer.book.close()
        for contracts in self.chains:
            self.stage.run(contracts.close())

    def _between_machines(self) -> int:
        return 0

    def _script(self, script: list[Move], first: Move) -> None:
        self.node.moves.clear()
        self.node.moves.extend(script)
        self.node.first = first

    def _most(self, in_flight: int) -> None:
        self.most = max(self.most, self.node.owed + min(in_flight, 2 * ROWS * AHEAD) * PRICE)

    async def _text(self, client: SwarmClient, size: int, more: int) -> None:
        try:
            pipeline = await client.open(TEXT)
        except HivemintError:
            return
        try:
            await self._go(pipeline, size, more)
        finally:
            with contextlib.suppress(HivemintError):
                await pipeline.close()
            for one in pipeline.sessions:
                assert one.signed <= one.session.max_amount

    async def _go(self, pipeline: LivePipeline, size: int, more: int) -> None:
        with contextlib.suppress(HivemintError):
            for count in [size] + [1] * more:
                rows = torch.randn(count, HIDDEN)
                got = await pipeline.forward(rows)
                assert torch.equal(got, rows[-1:] + BLOCKS)


class TwoMachines(OneMachine):
    """Each with books of its own: a voucher of the one for a refused step is, to the other, one of another machine."""

    books = ("books", "books of another machine")

    def _between_machines(self) -> int:
        return self.node.lies * ROWS * AHEAD * PRICE


@pytest.fixture
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage.start(tmp_path_factory.mktemp("stage")) as made:
        yield made


@pytest.mark.parametrize("machines", [OneMachine, TwoMachines])
def test_whatever_a_node_does_its_clients_lose_steps_in_flight(stage: Stage, machines: type[OneMachine]) -> None:
    run_state_machine_as_test(partial(machines, stage), settings=profile(5, 12))  # type: ignore[arg-type]
    assert machines.delivered


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machines", [OneMachine, TwoMachines])
def test_whatever_a_node_does_for_long(stage: Stage, machines: type[OneMachine]) -> None:
    run_state_machine_as_test(partial(machines, stage), settings=profile(80, 40))  # type: ignore[arg-type]
    assert machines.delivered
