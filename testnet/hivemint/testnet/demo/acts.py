"""The life of a token, told with real numbers: `make demo`.

A testnet of its own is started and ended here. Every figure is read from the chain, the ledger's API or the client;
nothing is assumed. The chain's clock is moved where an epoch has to pass, and every move is told.
"""

import asyncio
import re
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from hivemint.contracts.bindings import Bindings
from hivemint.model.local_models import LocalModel
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import HivemintError
from hivemint.protocol.ids import Address, Credits
from hivemint.testnet.demo.attacks import Attacker
from hivemint.testnet.demo.race import Crowd, race
from hivemint.testnet.demo.story import Figures, Story, Typist
from hivemint.testnet.localnet import Layout, LocalNet, NodePlan

QUESTION = "Explain in two sentences why the sky is blue."
ANSWER_TOKENS = 48
ROUNDS = 4
PAID_TOKENS, DONATED_TOKENS = 40, 12
"""Alice's answers are longer, so that she is still there while Bob gets his."""
LAYOUT = Layout(settings=(("HIVEMINT_BATCH_ROWS", "16"),))
"""Small batches: on two shared cores four guests then fill a node, as forty would fill a larger one."""
CHAIN_PATIENCE = 60.0
TENSORS = re.compile(r'^hivemint_node_outputs_sent_total\{to="(\w+)"\} (\S+)$', re.MULTILINE)


async def run_demo(model: LocalModel, story: Story) -> Figures:
    """Tell the story; its figures. Whether all that it claims came true is `Figures.sound`."""
    with tempfile.TemporaryDirectory(prefix="hivemint-demo-") as folder:
        net = LocalNet(Path(folder) / "net", model)
        try:
            await _Demo(story, net).play()
        finally:
            with story.waiting("ending the testnet ..."):
                await asyncio.to_thread(net.down)
    return story.end()


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
                state = await self.net.up(LAYOUT, lambda what: status.update(f"starting: {what} ..."))
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
            network=network,
            wallet=self.net.signer(person),
            home=self.net.home,
            **settings,
        )

    # --- the acts

    async def _chat(self, bob: Any) -> None:
        with self.story.act("chat", "1  Bob has no credits; he asks on the donated lane"):
            tokenizer, ids = self._prompt(bob)
            before = Counter(await self._tensors())
            typist = Typist(self.story, tokenizer, f"[dim]Bob:[/] {QUESTION}\n[dim]Swarm:[/] ")
            await asyncio.to_thread(bob.generate, ids, max_new_tokens=ANSWER_TOKENS, do_sample=False, streamer=typist)
            figures = self.figures
            figures.text = tokenizer.decode(typist.ids, skip_special_tokens=True)
            figures.tokens = len(typist.ids)
            with self.story.waiting("the same question to plain transformers ..."):
                figures.equal_to_reference = await asyncio.to_thread(self._reference, ids, typist.ids)
            sent = Counter(await self._tensors()) - before
            signed = await self._receipts(figures)
            steps = figures.receipts_signed / len(self.nodes)  # each began with one tensor from the client
            figures.hops_per_token = round(1 + sent["next"] / steps + sent["client"] / figures.tokens, 3)
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
        with self.story.act("spend", "3  The nodes are busy with donated requests; Alice pays, Bob does not"):
            balance = await self.bindings.token.balance(self.net.signer("alice").address)
            share = Credits(balance * 2 // 5)
            accounts = {self.net.signer(plan.operator).address: share for plan in self.nodes}
            await self.bindings.settlement.fund(self.net.signer("alice"), accounts)
            self.story.tell(f"Alice funds an account at each node with {format_credits(share, digits=9)}")
            await self._confirmed()
            _, ids = self._prompt(alice)
            plan = alice.dry_run(ids, max_new_tokens=PAID_TOKENS)
            self.story.tell(
                f"her plan: {plan.lane} lane, {plan.tokens} tokens for {format_credits(plan.cost, digits=9)}"
            )
            with self.story.waiting("the race ..."), Crowd(self.net, bob):
                self.figures.priority = await asyncio.to_thread(
                    race, [("paid", alice, PAID_TOKENS), ("donated", bob, DONATED_TOKENS)], ids, ROUNDS
                )
            paid, donated = self.figures.priority["paid"], self.figures.priority["donated"]
            rows = [
                ("Alice, paid", f"{paid.wait_ms_p50:,.0f} ms", f"{paid.tokens_per_s:.1f}"),
                ("Bob, donated", f"{donated.wait_ms_p50:,.0f} ms", f"{donated.tokens_per_s:.1f}"),
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
                "",
                ">wei",
                rows=[
                    ("burned in Alice's accounts", f"{figures.burned_wei:,}"),
                    ("minted to the nodes' owners", f"{figures.minted_wei:,}"),
                    ("fee, gone for good", f"{figures.fee_wei:,}"),
                    ("minted for donated work", f"{donated:,}"),
                    ("supply", f"{supply:,}"),
                ],
            )
            self.story.tell(f"supply = donated + minted - burned, to the wei: {_yes(figures.supply_ok)}")

    async def _attacks(self, alice: Any, bob: Any) -> None:
        attacker = Attacker(self.net, self.bindings, alice, bob)
        async for attack in attacker.all():
            self.figures.attacks.append(attack)
            mark = "[green]refused[/]" if attack.refused else "[red]NOT REFUSED[/]"
            self.story.tell(f"{mark}  [bold]{attack.name}[/]\n         [dim]{attack.reason}[/]")

    # --- questions to chain and ledger

    def _prompt(self, client: Any) -> tuple[Any, Any]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(client.folder)
        chat = [{"role": "user", "content": QUESTION}]
        encoded: Any = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        return tokenizer, encoded["input_ids"]

    def _reference(self, ids: Any, answer: list[int]) -> bool:
        """Whether plain transformers, whole model in this process, says the same, token for token."""
        import torch
        from transformers import AutoModelForCausalLM

        plain: Any = AutoModelForCausalLM.from_pretrained(self.net.model.folder, dtype=torch.float32)
        said = plain.generate(ids, max_new_tokens=ANSWER_TOKENS, do_sample=False)[0, ids.shape[1] :]
        return bool(said.tolist() == answer)

    async def _tensors(self) -> dict[str, int]:
        """How many outputs the nodes have sent to the `next` node and to the `client`, by their own metrics."""
        sent: Counter[str] = Counter()
        async with httpx.AsyncClient(trust_env=False) as http:
            for plan in self.nodes:
                text = (await http.get(str(self.net.child(plan.operator).ready["metrics"]))).raise_for_status().text
                for to, number in TENSORS.findall(text):
                    sent[to] += int(float(number))
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


def _yes(fine: bool) -> str:
    return "[green]yes[/]" if fine else "[red]NO[/]"
