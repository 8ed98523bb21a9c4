"""A real network for tests: chain, contracts, bootstrap peer, two node processes and a ledger, on the demo model.

localnet   one for the whole test session; what a test has stopped or killed runs again for the next one

The nodes ask 1 wei a token and block, so a span of 15 blocks costs 15 wei a token. There is no premint: the first
credits are earned by donated work and two moves of the chain's clock (`RealNet.payer`).

(PYTEST_DONT_REWRITE: tests import from here before pytest does, and nothing is asserted here.)
"""

import asyncio
import secrets
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from hivemint.client import SwarmModelForCausalLM
from hivemint.contracts.bindings import Account, Bindings, Event
from hivemint.model.local_models import LocalModel
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Credits
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.signing import Signer
from hivemint.testnet.devchain import DevChain
from hivemint.testnet.localnet import CHEAP_SCRYPT, PASSWORD, Layout, LocalNet, NodePlan
from hivemint.testnet.processes import Child

pytest_plugins = ["support.models"]

T = TypeVar("T")
SETTINGS = {"HIVEMINT_ASK": "1 wei"}
PATIENCE = 90.0
GRANT = Credits(10**9)
"""Wei in escrow at every node for each wallet that `payer` makes: enough for 66 million tokens."""


class RealNet:
    """A running `LocalNet`, with the questions that tests have. Its methods block; each opens what it needs."""

    def __init__(self, net: LocalNet, ledger_url: str) -> None:
        self.net, self.ledger_url = net, ledger_url
        self.first, self.last = net.plans

    @property
    def nodes(self) -> list[NodePlan]:
        return self.net.plans

    def operator(self, plan: NodePlan) -> Signer:
        return self.net.signer(plan.operator)

    def price(self, plan: NodePlan) -> int:
        """Wei a token."""
        return plan.end - plan.first

    # --- clients

    def client(self, wallet: Signer | None = None, *, home: Home | None = None, **settings: Any) -> Any:
        """A `SwarmModelForCausalLM`, joined. `home` keeps its voucher book; default: the network's own."""
        settings = {"bid": "free" if wallet is None else "ask", "open_timeout": 30, **settings}
        return SwarmModelForCausalLM.from_pretrained(
            self.net.model.folder if home else self.net.model.name,
            network=self.net.network_file,
            wallet=wallet or Signer(secrets.token_bytes(32)),
            home=home or self.net.home,
            **settings,
        )

    def payer(self, keystore: str = "") -> Signer:
        """A new wallet with `GRANT` in escrow at every node, confirmed; also kept as a `keystore` if it has a name."""
        wallet = Signer(secrets.token_bytes(32))
        self.earn()
        funded = self.chain(lambda bindings: self._fund(bindings, wallet))
        self.until(lambda: self.chain(height) > funded + self.net.network.confirmations, "confirmation")
        if keystore:
            Keystores(self.net.home.keystores).add(keystore, wallet, PASSWORD, n=CHEAP_SCRYPT)
        return wallet

    def earn(self) -> None:
        """Unless they have credits: let the nodes donate a little work, claim it, and mint."""
        if self.chain(self._credits):
            return
        self.next_epoch()  # stake counts from the epoch after it was bonded
        with self.client() as model:
            model.generate(prompt(16), max_new_tokens=2, do_sample=False)
        self.next_epoch()
        self.until(lambda: self.chain(self._claimed), "claims")
        self.next_epoch()
        self.until(lambda: self.chain(self._credits), "mints")

    # --- the chain

    def chain(self, work: Callable[[Bindings], Awaitable[T]]) -> T:
        """Run `work` with bindings over a connection of its own."""

        async def run() -> T:
            async with await Bindings.connect(self.net.network) as bindings:
                return await work(bindings)

        return asyncio.run(run())

    @property
    def devchain(self) -> DevChain:
        return DevChain(self.net.network.rpc_url)

    def next_epoch(self) -> int:
        return asyncio.run(self.net.next_epoch())

    def account(self, wallet: Signer, plan: NodePlan) -> Account:
        node = self.operator(plan).address
        return self.chain(lambda bindings: bindings.settlement.account(wallet.address, node))

    def events(self, name: str, **values: Any) -> list[Event]:
        """All events of this name with these values, oldest first."""

        async def read(bindings: Bindings) -> list[Event]:
            return await bindings.events(0, await bindings.chain.block_number())

        found = [event for event in self.chain(read) if event.name == name]
        return [event for event in found if all(event.values[key] == wanted for key, wanted in values.items())]

    def settlements(self, wallet: Signer, plan: NodePlan) -> list[dict[str, Any]]:
        """Each settlement of this account, by its event."""
        node = self.operator(plan).address
        return [one.values for one in self.events("Settled", client=wallet.address, node=node)]

    def collected(self, wallet: Signer, plan: NodePlan, due: int) -> int:
        """What the node has collected of this account, as soon as that is `due` or more."""
        self.until(lambda: self.account(wallet, plan).collected >= due, f"settlement of {due} wei")
        return int(self.account(wallet, plan).collected)

    # --- the nodes

    def metrics(self, plan: NodePlan) -> Counter[str]:
        """A node's own counters: `name{label}` -> value."""
        text = httpx.get(str(self.net.child(plan.operator).ready["metrics"]), trust_env=False).raise_for_status().text
        return Counter(
            {
                "".join([sample.name, *(f"{{{value}}}" for value in sample.labels.values())]): int(sample.value)
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )

    def sessions(self, plan: NodePlan, wallet: Signer) -> list[dict[str, Any]]:
        """This client's sessions in the node's journal, by way of the ledger's API."""
        found: list[dict[str, Any]] = []
        offset: int | None = 0
        while offset is not None:
            path = f"{self.ledger_url}/api/own/{self.operator(plan).address}/sessions"
            page = httpx.get(path, params={"limit": 100, "offset": offset}, trust_env=False).raise_for_status().json()
            found += [one for one in page["items"] if one["client"] == wallet.address]
            offset = page["next"]
        return found

    def complaints(self) -> str:
        """What its processes have logged as errors since they were started, for a test that failed."""
        lines = [line for log in self.net.folder.glob("logs/*.log") for line in log.read_text().splitlines()]
        return "\n".join(line for line in lines if '"level": "error"' in line or line.startswith("Traceback"))

    def start(self, plan: NodePlan, **settings: str) -> Child:
        """Start a node that has ended; `settings` go before the network's own."""
        return asyncio.run(self.net.start_node(plan, **settings))

    def restart(self, plan: NodePlan, **settings: str) -> Child:
        """End a node in good order and start it again."""
        self.net.child(plan.operator).stop()
        return self.start(plan, **settings)

    def kill(self, plan: NodePlan) -> None:
        """kill -9 and wait for the end."""
        self.net.child(plan.operator).kill()

    def stop(self, plan: NodePlan) -> psutil.Process:
        """SIGSTOP: the process is there and says nothing."""
        process = psutil.Process(self.net.child(plan.operator).pid)
        process.suspend()
        return process

    def mend(self) -> None:
        """Every node runs, with the usual settings."""
        for plan in self.nodes:
            child = self.net.child(plan.operator)
            if child.alive:
                psutil.Process(child.pid).send_signal(signal.SIGCONT)
            else:
                self.start(plan)

    # --- waiting

    def until(self, done: Callable[[], object], what: str) -> None:
        """Poll until it is so."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} within {PATIENCE:.0f} s; see {self.net.logs}")
            time.sleep(0.1)

    # --- inside

    async def _credits(self, bindings: Bindings) -> bool:
        wanted = 1000 * GRANT * len(self.nodes)
        return bool(await bindings.token.balance(self.net.signer(self.first.owner).address) > wanted)

    async def _claimed(self, bindings: Bindings) -> bool:
        epoch = await bindings.emission.current_epoch() - 1
        claims = [await bindings.emission.claim_of(self.operator(plan).address, epoch) for plan in self.nodes]
        return all(claim.units for claim in claims)

    async def _fund(self, bindings: Bindings, wallet: Signer) -> int:
        owner = self.net.signer(self.first.owner)
        accounts = {self.operator(plan).address: GRANT for plan in self.nodes}
        return (await bindings.settlement.fund(owner, accounts, client=wallet.address)).block


async def height(bindings: Bindings) -> int:
    """The chain's newest block."""
    return await bindings.chain.block_number()


class At:
    """A transformers streamer that does something once `count` tokens of the answer have come, and keeps them."""

    def __init__(self, count: int, act: Callable[[], object] = lambda: None) -> None:
        self._count, self._act = count, act
        self._prompt_came = False
        self.ids: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_came:
            self.ids += value.flatten().tolist()
            if len(self.ids) == self._count:
                self._act()
        self._prompt_came = True

    def end(self) -> None:
        pass


def prompt(length: int) -> torch.Tensor:
    """`[1, length]` token ids, always the same."""
    return torch.randint(1000, 40_000, (1, length), generator=torch.Generator().manual_seed(length))


def exactly(tokens: int) -> dict[str, Any]:
    """Settings of `generate`: greedy, this many tokens, no earlier end."""
    return {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens}


@pytest.fixture(scope="session")
def _network(smollm2: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNet]:
    net = LocalNet(tmp_path_factory.mktemp("localnet") / "net", smollm2)
    try:
        state = asyncio.run(net.up(Layout(settings=tuple(SETTINGS.items())), lambda _: None))
        yield RealNet(net, state.ledger_url.rstrip("/"))
    finally:
        net.down()


@pytest.fixture
def localnet(_network: RealNet) -> RealNet:
    _network.mend()
    return _network


def pids_below(folder: Path) -> list[int]:
    """Processes that were started for what lies in `folder`: its path is on their command line or in their home."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in word for word in [*process.cmdline(), process.environ().get("HIVEMINT_HOME", "")]):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
