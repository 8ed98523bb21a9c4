"""Whom a deposit may go to: by the registry of a real chain, and by what the nodes of a swarm ask."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from hivemint.cli import swarm
from hivemint.cli.wallet import account
from hivemint.cli.wallet.candidates import Candidates, candidates
from hivemint.contracts.bindings import Bindings
from hivemint.contracts.bindings.registry import NodeInfo, Registry
from hivemint.contracts.chain import Transfer
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address, ModelId
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores
from hivemint.protocol.network import Model, Network
from hivemint.protocol.signing import Signer
from hivemint.swarm.records import CheckedRecord
from support.chain import TestChain
from support.credits import COIN, credits_for
from support.fake_swarm import MODEL, FakeNode
from support.verbs import error_of, told

pytest_plugins = ["support.verbs"]
pytestmark = pytest.mark.usefixtures("home")
CLIENT = Signer(b"\xe1" * 32)
ASK = 2 * 10**10


@dataclass
class _Host:
    """A visitor's peer that began while the chain stumbled: it ranks nobody, so every record counts."""

    nodes: Sequence[FakeNode]
    ranks: bool = False

    async def find(self, _model: ModelId, _blocks: range) -> list[CheckedRecord]:
        return [node.record() for node in self.nodes]


async def _register(testchain: TestChain, *nodes: FakeNode) -> None:
    async with await Bindings.connect(testchain.network) as contracts:
        for node in nodes:
            owner = Signer(bytes(node.operator.address.encode()[2:34]))
            payment = Transfer(contracts.chain, owner.address)
            await contracts.chain.send(testchain.signers[1], payment, doing="Paying", value=60 * COIN)
            domain = testchain.network.domain
            await contracts.registry.register(owner, node.operator, node.peer, domain, stake=50 * COIN)


def _sees(monkeypatch: pytest.MonkeyPatch, testchain: TestChain, *nodes: FakeNode) -> Network:
    """A network of one model of 30 blocks whose swarm is these nodes."""

    @asynccontextmanager
    async def visiting(_network: Network) -> AsyncIterator[_Host]:
        yield _Host(nodes)

    monkeypatch.setattr(swarm, "visiting", visiting)
    monkeypatch.setattr(swarm, "block_counts", lambda _: {MODEL: 30})
    return replace(
        testchain.network,
        bootstrap=("/ip4/127.0.0.1/tcp/1/p2p/16Uiu2HAm",),
        models=(Model("tiny", MODEL, "tiny.manifest"),),
    )


async def _found(network: Network, *named: Address, within_ceiling: bool = True) -> Candidates:
    async with await Bindings.connect(network) as contracts:
        return await candidates(
            network, contracts, CLIENT.address, named, None, dial=False, within_ceiling=within_ceiling
        )


def test_the_registry_is_asked_for_every_node_though_the_swarm_ranks_nobody(
    monkeypatch: pytest.MonkeyPatch, testchain: TestChain
) -> None:
    good, stranger, retired, other = (FakeNode(0, 30, ask=ASK) for _ in range(4))
    asyncio.run(_register(testchain, good, retired, other))
    network = _sees(monkeypatch, testchain, good, stranger, retired, other)
    other.key = FakeNode(0, 30).key
    asked = Registry.nodes

    async def nodes(self: Registry, some: Sequence[Address]) -> list[NodeInfo | None]:
        return [
            replace(one, retired=True) if one and one.node == retired.operator.address else one
            for one in await asked(self, some)
        ]

    monkeypatch.setattr(Registry, "nodes", nodes)
    found = asyncio.run(_found(network))
    assert found.nodes == [good.operator.address]
    assert "not registered" in found.left_out[stranger.operator.address]
    assert "retired" in found.left_out[retired.operator.address]
    assert "peer id" in found.left_out[other.operator.address]
    assert found.ask(stranger.operator.address) is None, "what a stranger asks makes no median"
    found = asyncio.run(_found(network, good.operator.address, retired.operator.address, within_ceiling=False))
    assert (found.nodes, list(found.left_out)) == ([good.operator.address], [retired.operator.address])

    async def fails(self: Registry, some: Sequence[Address]) -> list[NodeInfo | None]:
        raise ChainError("The chain does not answer", why="503")

    monkeypatch.setattr(Registry, "nodes", fails)
    with pytest.raises(ChainError):
        asyncio.run(_found(network))


def test_who_asks_more_than_the_ceiling_gets_nothing_unless_named_by_hand(
    monkeypatch: pytest.MonkeyPatch, testchain: TestChain
) -> None:
    asyncio.run(credits_for(testchain, CLIENT, 0xE2))
    Keystores().add("ann", CLIENT, "correct horse", n=CHEAP_SCRYPT_N)
    cheap, usual, absurd = FakeNode(0, 30, ask=ASK), FakeNode(0, 30, ask=2 * ASK), FakeNode(0, 30, ask=5 * 10**18)
    asyncio.run(_register(testchain, cheap, usual, absurd))
    network = _sees(monkeypatch, testchain, cheap, usual, absurd)
    monkeypatch.setattr("hivemint.cli.wallet.funding.load_network", lambda _: network)
    one, two, three = (node.operator.address for node in (cheap, usual, absurd))
    common = ["--no-dial", "--yes", "--wallet", "ann"]

    auto = ["fund", "--auto", "--keep", "3", "--budget", "3.5", *common]
    first = told(account.app, *auto)
    assert first["deposits"] == {one: 3 * COIN, two: COIN // 2}, "the cheapest first"
    assert "3x the median ask" in first["left_out"][three]
    named = told(account.app, *auto[:5], "4", "--node", three, "--node", two, *common)
    assert (named["deposits"], list(named["left_out"])) == ({two: COIN // 2}, [three])
    plain = told(account.app, "fund", "1 wei", *common)
    assert (plain["deposits"], list(plain["left_out"])) == ({one: 1, two: 1}, [three])
    by_hand = told(account.app, "fund", "1 wei", "--node", three, *common)
    assert (by_hand["deposits"], by_hand["left_out"]) == ({three: 1}, {})

    monkeypatch.setenv("HIVEMINT_MAX_PRICE", "0.0000007")
    ceiling = told(account.app, "fund", "1 wei", *common)
    assert list(ceiling["left_out"]) == [three]
    assert "max_price" in ceiling["left_out"][three]
    monkeypatch.setenv("HIVEMINT_MAX_PRICE", "0.0000001")
    assert "max_price" in error_of(account.app, "fund", "1 wei", *common).why
