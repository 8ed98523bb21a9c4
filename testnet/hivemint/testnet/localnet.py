"""A whole network on this machine, in one folder: chain, contracts, bootstrap peer, nodes, ledger.

Everything listens on loopback at free ports. What runs is written to `state.json`, so another process can look at it
or end it. The accounts' keys are Hardhat's, known to everybody.
"""

import asyncio
import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from hivemint.contracts.bindings import Bindings
from hivemint.contracts.deploy import Deployment, deploy, load_numbers
from hivemint.model import companions
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import ConfigError, HivemintError
from hivemint.protocol.home import Home, private_folder, write_private
from hivemint.protocol.ids import Address, BlockIndex
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.network import Model, Network
from hivemint.protocol.signing import Signer
from hivemint.swarm.identity import PeerKey
from hivemint.testnet.checkout import from_checkout
from hivemint.testnet.devchain import CHAIN_ID, DevChain, dev_signers
from hivemint.testnet.processes import Child, adopt, hivemint, launch, wait_ready

NETWORK_NAME = "testnet"
PASSWORD = "hivemint"  # noqa: S105 - of keystores that hold publicly known keys
CHEAP_SCRYPT = 1024
STAKE = 100 * 10**18
DEPLOYER = 0
NODE_START = 120.0
QUICK = {
    "OMP_NUM_THREADS": "1",
    "HIVEMINT_THREADS": "1",
    "HIVEMINT_SETTLE_MIN": "1 wei",
    "HIVEMINT_SETTLE_EVERY": "5",
    "HIVEMINT_COIN_A_DAY": "10",  # its coin is worth nothing, and it settles every wei
}
"""Environment of the nodes: one compute thread each, as they share a machine, and settlement while one watches."""
PEOPLE = ("alice", "carol", "bob", "dave", "erin", "frank", "grace", "heidi")
"""Wallets of the testnet. The first ones own the nodes; account 1 is Alice's, 2 her node's operator key, and so on."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Layout:
    """What to start. `nodes`: how many; the blocks are shared out evenly. `copies`: nodes for each of these spans.
    `settings`: environment of the nodes."""

    nodes: int = 2
    copies: int = 1
    ledger: bool = True
    mine_every: float = 1.0
    settings: tuple[tuple[str, str], ...] = ()


class NodePlan(msgspec.Struct, frozen=True):
    """One node of the testnet: whose it is, and its span."""

    owner: str
    first: int
    end: int

    @property
    def operator(self) -> str:
        """Its keystore, its folder and its process are called so."""
        return f"{self.owner}-node"

    @property
    def address(self) -> Address:
        """Of its operator."""
        return dev_signers()[PEOPLE.index(self.owner) * 2 + 2].address

    @property
    def blocks(self) -> str:
        return f"{self.first}:{self.end}"


class State(msgspec.Struct, frozen=True):
    """What `state.json` keeps."""

    chain_url: str
    ledger_url: str
    nodes: list[NodePlan]
    children: list[Child]


class LocalNet:
    """One local network. `up` starts it, `down` ends it; both may run in different processes."""

    def __init__(self, folder: Path, model: LocalModel) -> None:
        self.folder, self.model = private_folder(folder), model
        self.network_file = folder / "network.toml"
        self.home = Home.open(folder / "home")
        self.logs = private_folder(folder / "logs")
        self.plans: list[NodePlan] = []
        self._children: list[Child] = []
        self._layout = Layout()
        self._ask = 0

    # --- up

    async def up(self, layout: Layout, tell: Tell) -> State:
        """Start everything, wait until it is ready. On any failure what was started is ended again."""
        with self._alone():
            return await self._up_alone(layout, tell)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time starts a testnet in this folder: it begins by removing what the one before has left."""
        with (self.folder / "starting").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    "A testnet is being started already",
                    why=f"another process starts one in {self.folder}",
                    next_step="wait until it is up, or end it with Ctrl-C",
                ) from None
            yield

    async def _up_alone(self, layout: Layout, tell: Tell) -> State:
        if (running := read_state(self.folder)) and any(child.alive for child in running.children):
            raise ConfigError(
                "A testnet is already up",
                why=f"its processes are named in {self.folder / 'state.json'}",
                next_step="look at it with `hivemint testnet status`, end it with `hivemint testnet down`",
            )
        self._forget()
        self._layout = layout
        try:
            return await self._up(tell)
        except BaseException:
            stop(self._children)
            raise

    async def _up(self, tell: Tell) -> State:
        tell("chain")
        chain = await asyncio.to_thread(self._start_chain)
        tell("contracts")
        deployment = await self._deploy(chain.url)
        tell("wallets")
        plans = self.plans = self._share_out()
        await asyncio.to_thread(self._make_wallets, plans)
        tell("bootstrap peer")
        bootstrap = await self._start(
            "bootstrap",
            hivemint("swarm", "bootstrap", "--name", NETWORK_NAME, "--identity", str(self.folder / "bootstrap.key")),
            60.0,
        )
        network = self._write_network(chain.url, deployment, bootstrap)
        tell("registration and stake")
        async with await Bindings.connect(network) as bindings:
            await asyncio.gather(*(self._register(bindings, network, plan) for plan in plans))
        tell("nodes")
        for copy in range(self._layout.copies):
            await asyncio.gather(*(self.start_node(plan) for plan in plans[copy :: self._layout.copies]))
        ledger_url = ""
        if self._layout.ledger:
            tell("ledger")
            ledger = await self._start("ledger", self._ledger_command(plans), 60.0)
            ledger_url = str(ledger.ready["url"])
        chain.mine_every(self._layout.mine_every)
        state = State(chain.url, ledger_url, plans, self._children)
        self._save(state)
        return state

    def _start_chain(self) -> DevChain:
        log = self.logs / "chain.log"
        chain = DevChain.start(log=log, detached=True)
        if chain.pid is None:
            raise HivemintError("The chain has no process of its own")
        self._children.append(adopt("chain", chain.pid, log))
        return chain

    async def _deploy(self, url: str) -> Deployment:
        numbers = load_numbers(from_checkout() / "contracts" / "networks" / "dev.toml")
        self._ask = numbers.ask
        rates = {**numbers.rates, self.model.model_id: mega_flop(self.model)}
        record = self.folder / "deployed.toml"
        deployer = dev_signers(1)[DEPLOYER]
        return await deploy(url, deployer, replace(numbers, rates=rates), record, chain_id=CHAIN_ID)

    def _share_out(self) -> list[NodePlan]:
        blocks, count = self.model.anatomy.num_blocks, self._layout.nodes
        total, most = count * self._layout.copies, min(blocks, len(PEOPLE) - 2)
        if not 1 <= total <= most:
            raise ConfigError(f"{total} nodes are not possible", why=f"1 to {most} are")
        cuts = [round(index * blocks / count) for index in range(count + 1)]
        return [NodePlan(PEOPLE[i], cuts[i % count], cuts[i % count + 1]) for i in range(total)]

    def _make_wallets(self, plans: list[NodePlan]) -> None:
        keystores = Keystores(self.home.keystores)
        names = {person: index * 2 + 1 for index, person in enumerate(PEOPLE)}
        names |= {plan.operator: names[plan.owner] + 1 for plan in plans}
        for name, index in names.items():
            keystores.add(name, dev_signers()[index], PASSWORD, n=CHEAP_SCRYPT)
        write_private(self.folder / "password", f"{PASSWORD}\n".encode())

    def _write_network(self, url: str, deployment: Deployment, bootstrap: Child) -> Network:
        (self.folder / "model.manifest").write_bytes(self.model.manifest.to_bytes())
        folder = self.model.folder
        network = Network(
            NETWORK_NAME,
            CHAIN_ID,
            url,
            deployment.contracts,
            deployed_block=deployment.block,
            confirmations=1,
            bootstrap=tuple(bootstrap.ready["addresses"]),
            models=(Model(self.model.name, self.model.model_id, "model.manifest", companions.digests(folder)),),
        )
        return network.save(self.network_file)

    async def _register(self, bindings: Bindings, network: Network, plan: NodePlan) -> None:
        peer = PeerKey.load(self.home.node(plan.operator) / "peer.key")
        await bindings.registry.register(
            self.signer(plan.owner), self.signer(plan.operator), peer.peer_id, network.domain, stake=STAKE
        )

    async def start_node(self, plan: NodePlan, **settings: str) -> Child:
        """Start (or start again) one node and wait until it serves. `settings`: environment of this one alone."""
        self._children = [child for child in self._children if child.name != plan.operator]
        command = hivemint(
            "node",
            "start",
            self.model_argument,
            "--blocks",
            plan.blocks,
            "--wallet",
            plan.operator,
            "--name",
            plan.operator,
            "--network",
            str(self.network_file),
            "--password-file",
            str(self.folder / "password"),
            "--metrics-port",
            "0",
        )
        return await self._start(plan.operator, command, NODE_START, settings)

    @property
    def model_argument(self) -> str:
        """The name, where the testnet's home can see the user's store of models; else the folder."""
        store, seen = self.model.home.models, self.home.root / "models"
        if self.model.folder.parent != store:
            return str(self.model.folder)
        if not seen.exists():
            seen.symlink_to(store, target_is_directory=True)
        return self.model.name

    def _ledger_command(self, plans: list[NodePlan]) -> list[str]:
        journals = [word for plan in plans for word in ("--journal", self.journal_url(plan))]
        return hivemint("ledger", "serve", "--network", str(self.network_file), "--port", "0", *journals)

    async def _start(
        self, name: str, command: list[str], within: float, settings: Mapping[str, str] | None = None
    ) -> Child:
        log = self.logs / f"{name}.log"
        log.unlink(missing_ok=True)
        environment = {
            "HIVEMINT_HOME": str(self.home.root),
            "HIVEMINT_ASK": f"{self._ask} wei",
            **QUICK,
            **dict(self._layout.settings),
            **(settings or {}),
        }
        child = launch(name, command, log, environment)
        self._children.append(child)
        ready = await asyncio.to_thread(wait_ready, child, within)
        self._children[self._children.index(child)] = ready
        return ready

    def _save(self, state: State) -> None:
        write_private(self.folder / "state.json", msgspec.json.encode(state), replace=True)

    def _forget(self) -> None:
        """The chain forgets everything over a restart, so what was built on it goes too."""
        for folder in (self.home.root, self.logs):
            shutil.rmtree(folder, ignore_errors=True)  # a link to the models is removed, not followed
        for name in ("state.json", "network.toml", "deployed.toml", "model.manifest", "password"):
            (self.folder / name).unlink(missing_ok=True)
        self.home, self.logs = Home.open(self.folder / "home"), private_folder(self.folder / "logs")

    # --- while it runs

    @property
    def network(self) -> Network:
        return Network.load(self.network_file)

    def signer(self, name: str) -> Signer:
        """A testnet person's key, or that of a node's operator (`alice-node`)."""
        person, _, suffix = name.partition("-")
        return dev_signers()[PEOPLE.index(person) * 2 + 1 + bool(suffix)]

    def journal_url(self, plan: NodePlan) -> str:
        return f"sqlite:///{self.home.node(plan.operator) / 'journal.db'}"

    def child(self, name: str) -> Child:
        return next(child for child in self._children if child.name == name)

    async def next_epoch(self) -> int:
        """Move the chain's clock to the start of the next epoch. Returns that epoch's number."""
        return await next_epoch(self.network)

    def down(self) -> None:
        """End what `up` of this object started, the nodes first so that they can drain."""
        stop(self._children)


async def next_epoch(network: Network) -> int:
    """Move the clock of a development chain to the start of the next epoch. Returns that epoch's number."""
    async with await Bindings.connect(network) as bindings:
        length = await bindings.emission.epoch_seconds()
        epoch = await bindings.chain.time() // length + 1
    await asyncio.to_thread(DevChain(network.rpc_url).travel_to, epoch * length)
    return epoch


def read_state(folder: Path) -> State | None:
    """What runs in `folder`, as far as it was written down. Raises ConfigError for a damaged file."""
    path = folder / "state.json"
    with suppress(FileNotFoundError):
        try:
            return msgspec.json.decode(path.read_bytes(), type=State)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path} is damaged", why=str(error), next_step="remove it") from None
    return None


def stop(children: list[Child]) -> None:
    """End processes, last started first; chain and bootstrap peer go last, so that nodes can settle and say goodbye."""
    for child in reversed(children):
        child.stop()


def mega_flop(model: LocalModel) -> int:
    """The lane-B rate of a model: 2 FLOP per parameter of one block and token, in mega-FLOP, rounded down."""
    parameters = sum(entry.elements for entry in model.anatomy.block_tensors(BlockIndex(0)))
    return max(1, 2 * parameters // 10**6)
