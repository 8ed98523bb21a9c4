"""The life of a token, told with real numbers: `make demo`.

A testnet of its own is started and ended here. Every figure is read from the chain, the ledger's API or the client;
nothing is assumed. The chain's clock is moved where an epoch has to pass, and every move is told.
"""

import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from hivemint.cli.attacks import Attacker
from hivemint.cli.console import emit
from hivemint.cli.localnet import Layout, LocalNet, NodePlan
from hivemint.cli.story import Figures, LaneFigures, Story, Typist
from hivemint.client.settings import Bid
from hivemint.contracts.bindings import Bindings
from hivemint.contracts.credits import format_credits
from hivemint.contracts.errors import HivemintError, Refusal
from hivemint.contracts.ids import Address, Credits
from hivemint.swarm.models import LocalModel

QUESTION = "Explain in two sentences why the sky is blue."
ANSWER_TOKENS = 48
ROUNDS = 5
ROUND_TOKENS = 16
CROWD = ("dave", "erin")
CROWD_PROMPTS, CROWD_LENGTH = 6, 200
RAISE = "4x"
"""Alice's bid while the nodes are busy: four times the ask."""
CHAIN_PATIENCE = 60.0
TENSORS = "hivemint_node_outputs_sent_total"


async def run_demo(model: LocalModel, *, as_json: bool) -> None:
    """Tell the story, or print its figures as one JSON document. Raises HivemintError if a claim did not come true."""
    story = Story(silent=as_json)
    with tempfile.TemporaryDirectory(prefix="hivemint-demo-") as folder:
        net = LocalNet(Path(folder) / "net", model)
        try:
            await _Demo(story, net).play()
        finally:
            with story.waiting("ending the testnet ..."):
                await asyncio.to_thread(net.down)
    figures = story.end()
    if as_json:
        emit(figures)
    else:
        story.tell(
            f"\n[bold]Done[/] in {figures.seconds['total']:.0f} s. Next: `hivemint testnet up`, and look around."
        )
    if not figures.sound:
        raise HivemintError("The demo ran, but not all that it claims came true", why="see the figures above")


class _Demo:
    """The acts, in order."""

    def __init__(self, story: Story, net: LocalNet) -> None:
        self.story, self.figures, self.net = story, story.figures, net
        self.nodes: list[NodePlan] = []
        self.ledger_url = ""

    async def play(self) -> None:
        await self._start()
        async with self._bindings() as bindings:
            self.bindings = bindings
            await self._next_epoch("stake counts from the epoch after it was bonded")
            with self._client("bob", bid="free") as bob:
                await self._chat(bob)
                await self._earn()
                with self._client("alice") as alice:
                    await self._spend(alice, bob)
                    await self._settle()
                    with self.story.act("attacks", "5  Attacks, each refused with its reason"):
                        await self._attacks(alice, bob)

    # --- before the story

    async def _start(self) -> None:
        with self.story.act("start", "Testnet: a chain, six contracts, a bootstrap peer, two nodes, a ledger"):
            with self.story.waiting("starting ...") as status:
                state = await self.net.up(Layout(), lambda what: status.update(f"starting: {what} ..."))
            self.nodes, self.ledger_url = state.nodes, state.ledger_url
            rows = [(plan.owner.title(), plan.operator, plan.blocks, "100 coins bonded") for plan in state.nodes]
            self.story.table("owner", "node", "blocks", "stake", rows=rows)
            self.story.tell(f"chain {state.chain_url}   ledger {state.ledger_url}")

    @asynccontextmanager
    async def _bindings(self) -> AsyncIterator[Bindings]:
        async with await Bindings.connect(self.net.network) as bindings:
            yield bindings

    async def _next_epoch(self, why: str) -> None:
        epoch = await self.net.next_epoch()
        self.story.clock(f"moved to the start of epoch {epoch}: {why}")

    def _client(self, person: str, **settings: Any) -> Any:
        from hivemint.client import SwarmModelForCausalLM

        model, network = self.net.model.name, self.net.network_file
        return SwarmModelForCausalLM.from_pretrained(
            model if self.net.model.folder.name == model else self.net.model.folder,
            network=network, wallet=self.net.signer(person), home=self.net.home, **settings,
        )  # fmt: skip

    # --- the acts

    async def _chat(self, bob: Any) -> None:
        with self.story.act("chat", "1  Bob has no credits; he asks on the free lane"):
            tokenizer, ids = self._prompt(bob)
            before = await self._tensors()
            typist = Typist(self.story, tokenizer, f"[dim]Bob:[/] {QUESTION}\n[dim]Swarm:[/] ")
            await asyncio.to_thread(bob.generate, ids, max_new_tokens=ANSWER_TOKENS, do_sample=False, streamer=typist)
            figures = self.figures
            figures.text = tokenizer.decode(typist.ids, skip_special_tokens=True)
            figures.tokens = len(typist.ids)
            with self.story.waiting("the same question to plain transformers ..."):
                figures.equal_to_reference = await asyncio.to_thread(self._reference, ids, typist.ids)
            sent, after = len(typist.ids), await self._tensors()
            figures.hops_per_token = round((after - before + sent) / sent, 3)
            signed = await self._receipts(figures)
            self.story.tell(
                f"{figures.tokens} tokens, equal to plain transformers: {_yes(figures.equal_to_reference)}   "
                f"hops a token: {figures.hops_per_token:g} (S nodes, S + 1 hops)"
            )
            self.story.table("node", ">receipts signed", ">countersigned", ">tokens", rows=signed)

    async def _earn(self) -> None:
        with self.story.act("earn", "2  Two epochs pass; Alice's and Carol's nodes mint for their donated work"):
            await self._next_epoch("the nodes claim what they donated in the last one")
            await self._until(self._claimed, "claims")
            await self._next_epoch("what was claimed can be minted")
            await self._until(self._minted_donations, "mints")
            rows = []
            for plan in self.nodes:
                earned = await self.bindings.token.balance(self.net.signer(plan.owner).address)
                self.figures.donated_minted_wei += earned
                rows.append((plan.owner.title(), format_credits(earned, digits=9)))
            self.story.table("owner", ">minted from donated work", rows=rows)
            self.story.tell("These are the first credits of this network: there was no premint.")

    async def _spend(self, alice: Any, bob: Any) -> None:
        with self.story.act("spend", "3  The nodes are busy with free requests; Alice pays, Bob does not"):
            balance = await self.bindings.token.balance(self.net.signer("alice").address)
            share = Credits(balance * 2 // 5)
            accounts = {self.net.signer(plan.operator).address: share for plan in self.nodes}
            await self.bindings.settlement.fund(self.net.signer("alice"), accounts)
            self.story.tell(f"Alice funds an account at each node with {format_credits(share, digits=9)}")
            await self._confirmed()
            _, ids = self._prompt(alice)
            plan = alice.dry_run(ids, max_new_tokens=ROUND_TOKENS)
            self.story.tell(
                f"her plan: {plan.lane} lane, {plan.tokens} tokens for {format_credits(plan.cost, digits=9)}"
            )
            with self._crowd():
                await asyncio.to_thread(self._rounds, alice, bob, ids)
            paid, free = self.figures.priority["paid"], self.figures.priority["free"]
            rows = [
                ("Alice, paid", f"{paid.wait_ms_p50:,.0f} ms", f"{paid.tokens_per_s:.1f}"),
                ("Bob, free", f"{free.wait_ms_p50:,.0f} ms", f"{free.tokens_per_s:.1f}"),
            ]
            self.story.table("who", ">wait for the first token (median)", ">tokens/s", rows=rows)

    async def _settle(self) -> None:
        with self.story.act("settle", "4  Alice's vouchers settle: burned, minted, fee"):
            await self._until(self._all_settled, "settlement")
            figures, token = self.figures, self.bindings.token
            donated = 0
            for event in await self.bindings.events(0, await self.bindings.chain.block_number()):
                if event.name == "Settled":
                    figures.settled += 1
                    figures.burned_wei += event.values["burned"]
                    figures.minted_wei += event.values["minted"]
                elif event.name == "Minted":
                    donated += event.values["amount"]
            figures.fee_wei = figures.burned_wei - figures.minted_wei
            supply = await token.supply()
            figures.supply_ok = supply == donated + figures.minted_wei - figures.burned_wei
            await self._receipts(figures)
            self.story.table(
                "", ">wei",
                rows=[
                    ("burned in Alice's accounts", f"{figures.burned_wei:,}"),
                    ("minted to the nodes' owners", f"{figures.minted_wei:,}"),
                    ("fee, gone for good", f"{figures.fee_wei:,}"),
                    ("minted for donated work", f"{donated:,}"),
                    ("supply", f"{supply:,}"),
                ],
            )  # fmt: skip
            self.story.tell(f"supply = donated + minted - burned, to the wei: {_yes(figures.supply_ok)}")

    async def _attacks(self, alice: Any, bob: Any) -> None:
        attacker = Attacker(self.net, self.bindings, alice, bob)
        async for attack in attacker.all():
            self.figures.attacks.append(attack)
            mark = "[green]refused[/]" if attack.refused else "[red]NOT REFUSED[/]"
            self.story.tell(f"{mark}  [bold]{attack.name}[/]\n         [dim]{attack.reason}[/]")

    # --- the crowd and the race

    def _crowd(self) -> Any:
        """Free clients that keep both nodes busy with long prompts."""
        return Crowd([self._client(person, bid="free") for person in CROWD])

    def _rounds(self, alice: Any, bob: Any, ids: Any) -> None:
        """Alice and Bob ask the same at the same moment, several times."""
        alice.swarm.settings = alice.swarm.settings.model_copy(update={"bid": Bid.parse(RAISE)})
        lanes: dict[str, list[tuple[float, float]]] = {"paid": [], "free": []}

        def ask(lane: str, client: Any, gate: threading.Barrier) -> None:
            watch, exactly = Watch(), {"max_new_tokens": ROUND_TOKENS, "min_new_tokens": ROUND_TOKENS}
            gate.wait()
            began = time.monotonic()
            client.generate(ids, do_sample=False, streamer=watch, **exactly)
            lanes[lane].append((watch.times[0] - began, watch.tokens_per_s))

        for _ in range(ROUNDS):
            gate = threading.Barrier(2)
            race = (("paid", alice), ("free", bob))
            threads = [threading.Thread(target=ask, args=(lane, who, gate)) for lane, who in race]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for lane, seen in lanes.items():
            if len(seen) < ROUNDS:
                raise HivemintError(f"Requests of the {lane} lane failed", next_step="look at the lines above")
            waits, speeds = zip(*seen, strict=True)
            self.figures.priority[lane] = LaneFigures(
                round(statistics.median(waits) * 1000, 1), round(statistics.median(speeds), 2)
            )

    # --- questions to chain and ledger

    def _prompt(self, client: Any) -> tuple[Any, Any]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(client.folder)
        chat = [{"role": "user", "content": QUESTION}]
        encoded = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        return tokenizer, encoded["input_ids"]

    def _reference(self, ids: Any, answer: list[int]) -> bool:
        """Whether plain transformers, whole model in this process, says the same, token for token."""
        import torch
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_pretrained(self.net.model.folder, dtype=torch.float32).eval()
        said: list[int] = plain.generate(ids, max_new_tokens=ANSWER_TOKENS, do_sample=False)[0, ids.shape[1] :].tolist()
        return said == answer

    async def _tensors(self) -> int:
        """How many outputs the nodes have sent, by their own metrics."""
        sent = 0
        async with httpx.AsyncClient(trust_env=False) as http:
            for plan in self.nodes:
                text = (await http.get(str(self.net.child(plan.operator).ready["metrics"]))).raise_for_status().text
                sent += sum(int(float(line.split()[-1])) for line in text.splitlines() if line.startswith(TENSORS))
        return sent

    async def _receipts(self, figures: Figures) -> list[tuple[str, ...]]:
        """Receipts by node, from the journals by way of the ledger: a session's step number counts its receipts."""
        figures.receipts_signed = figures.receipts_countersigned = 0
        rows: list[tuple[str, ...]] = []
        async with httpx.AsyncClient(base_url=self.ledger_url, trust_env=False) as http:
            for plan in self.nodes:
                path, signed, countersigned, tokens = f"/api/own/{self._operator(plan)}/sessions", 0, 0, 0
                offset: int | None = 0
                while offset is not None:
                    page = (await http.get(path, params={"limit": 100, "offset": offset})).raise_for_status().json()
                    signed += sum(one["signed_step"] for one in page["items"])
                    countersigned += sum(one["countersigned_step"] or 0 for one in page["items"])
                    tokens += sum(one["signed_tokens"] for one in page["items"])
                    offset = page["next"]
                figures.receipts_signed += signed
                figures.receipts_countersigned += countersigned
                rows.append((plan.operator, f"{signed:,}", f"{countersigned:,}", f"{tokens:,}"))
        return rows

    def _operator(self, plan: NodePlan) -> Address:
        return self.net.signer(plan.operator).address

    async def _claimed(self) -> bool:
        last = await self.bindings.emission.current_epoch() - 1
        claims = [await self.bindings.emission.claim_of(self._operator(plan), last) for plan in self.nodes]
        return all(claim.units for claim in claims)

    async def _minted_donations(self) -> bool:
        epoch = await self.bindings.emission.current_epoch() - 2
        claims = [await self.bindings.emission.claim_of(self._operator(plan), epoch) for plan in self.nodes]
        return all(claim.minted for claim in claims)

    async def _all_settled(self) -> bool:
        """All that Alice has promised was collected."""
        alice, settlement = self.net.signer("alice").address, self.bindings.settlement
        async with httpx.AsyncClient(base_url=self.ledger_url, trust_env=False) as http:
            own = {node["node"]: node for node in (await http.get("/api/own")).raise_for_status().json()}
        for plan in self.nodes:
            node = self._operator(plan)
            if (await settlement.account(alice, node)).collected < max(1, int(own[node]["promised"])):
                return False
        return True

    async def _confirmed(self) -> None:
        """Deposits count after `confirmations` blocks."""
        target = await self.bindings.chain.block_number() + self.net.network.confirmations + 1

        async def there() -> bool:
            return await self.bindings.chain.block_number() >= target

        await self._until(there, "confirmation")

    async def _until(self, done: Callable[[], Awaitable[bool]], what: str) -> None:
        """Poll until it is so. Raises HivemintError after a minute, with the place to look at."""
        deadline = time.monotonic() + CHAIN_PATIENCE
        with self.story.waiting(f"waiting for {what} ..."):
            while not await done():
                if time.monotonic() > deadline:
                    raise HivemintError(f"No {what} within {CHAIN_PATIENCE:.0f} s", why="the nodes' logs tell more")
                await asyncio.sleep(0.2)


class Watch:
    """A streamer that only keeps when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, _: Any) -> None:
        if self._prompt_seen:
            self.times.append(time.monotonic())
        self._prompt_seen = True

    def end(self) -> None:
        pass

    @property
    def tokens_per_s(self) -> float:
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


class Crowd:
    """Free clients that ask again and again while the context lasts; each keeps several sessions busy."""

    def __init__(self, clients: list[Any]) -> None:
        self._clients, self._stop = clients, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(client, seed)) for seed, client in enumerate(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()

    def _ask(self, client: Any, seed: int) -> None:
        import torch

        numbers = torch.Generator().manual_seed(seed)
        while not self._stop.is_set():
            ids = torch.randint(1000, 40_000, (CROWD_PROMPTS, CROWD_LENGTH), generator=numbers)
            try:
                client.generate(ids, max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(ids))
            except Refusal:
                self._stop.wait(0.2)  # the free lane is full: come again


def _yes(fine: bool) -> str:
    return "[green]yes[/]" if fine else "[red]NO[/]"
