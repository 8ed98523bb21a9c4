"""A real chain for tests: Hardhat's node, the contracts deployed with short numbers, funded signers.

devchain      the node of this test session (`time`, `travel`, `mine`)
testchain     network + signers; deployed once a session
contracts     `Bindings` over an own connection, closed after the test
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from hivemint.contracts.bindings import Bindings
from hivemint.contracts.deploy import Numbers, deploy, load_numbers
from hivemint.protocol.ids import ModelId
from hivemint.protocol.keccak import keccak
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer
from hivemint.testnet.devchain import CHAIN_ID, DevChain, dev_signers

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = ROOT / "contracts" / "networks" / "dev.toml"
TEST_MODEL = ModelId(keccak(b"a model for tests"))
TEST_RATE = 7


@dataclass(frozen=True)
class TestChain:
    """`signers[0]` deployed the contracts; each has 10,000 coins and none has credits yet."""

    __test__ = False

    devchain: DevChain
    network: Network
    signers: list[Signer]

    def next_epoch(self) -> int:
        """Move the chain's clock to the beginning of the next epoch. Returns its number."""
        epoch = self.devchain.time() // EPOCH + 1
        self.devchain.travel_to(epoch * EPOCH)
        return epoch


def numbers() -> Numbers:
    """Those of dev.toml, with a rate for `TEST_MODEL`."""
    read = load_numbers(NUMBERS)
    return replace(read, rates={**read.rates, TEST_MODEL: TEST_RATE})


EPOCH = load_numbers(NUMBERS).fixed.epoch


@pytest.fixture(scope="session")
def devchain() -> Iterator[DevChain]:
    with DevChain.start() as chain:
        yield chain


@pytest.fixture(scope="session")
def testchain(devchain: DevChain, tmp_path_factory: pytest.TempPathFactory) -> TestChain:
    signers = dev_signers()
    folder = tmp_path_factory.mktemp("network")
    done = asyncio.run(deploy(devchain.url, signers[0], numbers(), folder / "deployed.toml", chain_id=CHAIN_ID))
    network = Network("test", CHAIN_ID, devchain.url, done.contracts, deployed_block=done.block)
    return TestChain(devchain, network.save(folder / "network.toml"), signers)


@pytest_asyncio.fixture
async def contracts(testchain: TestChain) -> AsyncIterator[Bindings]:
    async with await Bindings.connect(testchain.network) as bindings:
        yield bindings
