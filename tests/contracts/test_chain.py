"""Connecting, sending, and errors that people can read; on a real Hardhat node."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest
from web3.types import TxParams

from hivemint.contracts.artifacts import custom_errors, explain_revert
from hivemint.contracts.bindings import Bindings
from hivemint.contracts.chain import Buildable, Chain, Reverted, Transfer
from hivemint.contracts.refusals import MEANINGS
from hivemint.protocol.errors import ChainError
from hivemint.protocol.signing import Signer
from hivemint.testnet.devchain import DevChain, dev_signers
from support.chain import TestChain

COIN = 10**18
PAGE = Path(__file__).resolve().parents[2] / "docs/command-line.md"


async def test_an_unreachable_chain() -> None:
    with pytest.raises(ChainError, match=r"cannot be reached.*check rpc_url"):
        await Chain.connect("http://127.0.0.1:1")


async def test_something_that_is_no_chain() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        with pytest.raises(ChainError):
            await Chain.connect(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def test_a_chain_that_never_answers() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        with pytest.raises(ChainError, match="no answer in time"):
            await Chain.connect(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=0.2)


async def test_the_wrong_chain(testchain: TestChain) -> None:
    with pytest.raises(ChainError, match=r"its id is 31337, expected 5\. mend"):
        await Bindings.connect(replace(testchain.network, chain_id=5))


async def test_a_chain_without_the_contracts(testchain: TestChain) -> None:
    nothing = replace(testchain.network.contracts, settlement=testchain.signers[0].address)
    with pytest.raises(ChainError, match="no contracts at"):
        await Bindings.connect(replace(testchain.network, contracts=nothing))


async def test_an_address_without_a_contract(testchain: TestChain, contracts: Bindings) -> None:
    lost = Bindings.over(contracts.chain, replace(testchain.network.contracts, token=testchain.signers[0].address))
    with pytest.raises(ChainError, match="no such contract"):
        await lost.token.supply()


async def test_many_tasks_send_from_one_key(testchain: TestChain, contracts: Bindings) -> None:
    sender, to = testchain.signers[9], Signer(b"\x21" * 32).address
    before = await contracts.chain.balance(to)
    mined = await asyncio.gather(
        *(contracts.chain.send(sender, Transfer(contracts.chain, to), doing="Paying", value=7) for _ in range(10))
    )
    assert await contracts.chain.balance(to) == before + 70
    assert len({one.hash for one in mined}) == 10
    assert all(one.cost > 0 for one in mined)


async def test_a_stuck_transaction_is_replaced(testchain: TestChain, contracts: Bindings) -> None:
    devchain, chain, sender = testchain.devchain, contracts.chain, testchain.signers[10]
    to = Signer(b"\x22" * 32).address
    before = await chain.balance(to)  # other tests share this chain
    devchain.rpc("evm_setAutomine", False)
    try:
        stuck = await chain.submit(sender, Transfer(chain, to), doing="Paying", value=1)
        assert await chain.mined(stuck) is None
        with pytest.raises(ChainError, match="no block holds it"):
            await chain.wait(stuck, timeout=0.2)
        fees = chain.fees.raised(stuck.transaction, stuck.transaction)
        pay = Transfer(chain, to)
        faster = await chain.submit(sender, pay, doing="Paying", value=2, nonce=stuck.nonce, fees=fees)
        devchain.mine()
    finally:
        devchain.rpc("evm_setAutomine", True)
    assert (await chain.wait(faster)).gas_used == 21_000
    assert await chain.mined(stuck) is None
    assert await chain.balance(to) == before + 2


async def test_a_refusal_that_only_shows_in_the_block_has_its_reason_too(
    testchain: TestChain, contracts: Bindings
) -> None:
    devchain, chain, client = testchain.devchain, contracts.chain, testchain.signers[11]
    devchain.rpc("evm_setAutomine", False)
    try:
        thaw = FixedGas(contracts.settlement.function("thaw", testchain.signers[12].address))
        sent = [await chain.submit(client, thaw, doing="Thawing") for _ in range(2)]
        devchain.mine()
    finally:
        devchain.rpc("evm_setAutomine", True)
    assert (await chain.wait(sent[0])).gas_used > 0
    with pytest.raises(Reverted, match=r"Thawing was refused by the contract\. already thawing"):
        await chain.wait(sent[1])
    with pytest.raises(Reverted):
        await chain.mined(sent[1])


class FixedGas:
    """A call with a fixed gas limit, so that nothing is estimated: what an estimate would refuse gets into a block."""

    def __init__(self, call: Buildable) -> None:
        self._call = call

    async def build_transaction(self, transaction: TxParams | None = None) -> TxParams:
        return await self._call.build_transaction({**(transaction or {}), "gas": 300_000})


async def test_a_wallet_without_coin(contracts: Bindings, testchain: TestChain) -> None:
    poor = Signer(b"\x23" * 32)
    with pytest.raises(ChainError, match="pays for gas"):
        await contracts.settlement.thaw(poor, testchain.signers[0].address)
    with pytest.raises(ChainError):
        await contracts.chain.send(poor, Transfer(contracts.chain, poor.address), doing="Paying", value=COIN)


def test_reasons_of_reverts() -> None:
    selectors = {error.name: selector for selector, error in custom_errors().items()}
    end = (1_800_000_000).to_bytes(32, "big")
    assert explain_revert(selectors["StillThawing"] + end) == (
        "StillThawing",
        {"thawEnd": 1_800_000_000},
        "still thawing (thawEnd 2027-01-15 08:00:00 UTC)",
    )
    assert explain_revert(selectors["NotThawing"])[2] == "not thawing"
    small = (15 * 10**17).to_bytes(32, "big") + (10**20).to_bytes(32, "big")
    assert (
        explain_revert(selectors["StakeTooSmall"] + small)[2] == "stake too small (stake 1.5 coins, minimum 100 coins)"
    )
    assert "not what its error says" in explain_revert(selectors["StillThawing"] + b"short")[2]
    assert "0x01020304" in explain_revert(b"\1\2\3\4")[2]
    assert explain_revert(b"", "out of gas")[2] == "out of gas"
    assert "panic 0x11" in explain_revert(bytes.fromhex("4e487b71") + (0x11).to_bytes(32, "big"))[2]
    text = bytes.fromhex("08c379a0") + (32).to_bytes(32, "big") + (2).to_bytes(32, "big") + b"no".ljust(32, b"\0")
    assert explain_revert(text)[2] == "no"


def test_the_clock_of_a_development_chain() -> None:
    with DevChain.start() as chain:
        start = chain.time()
        assert chain.travel(86_400) >= start + 86_400
        assert chain.travel_to(start + 10**6) == start + 10**6
        with pytest.raises(ChainError, match="refused evm_setNextBlockTimestamp"):
            chain.travel_to(start)
        kept = chain.snapshot()
        chain.mine(3)
        chain.revert(kept)
        assert chain.time() == start + 10**6
        with pytest.raises(ChainError, match="no such snapshot"):
            chain.revert(kept)
        with pytest.raises(ChainError, match="EADDRINUSE"):
            DevChain.start(port=int(chain.url.rpartition(":")[2]))
    with pytest.raises(ChainError, match="does not answer"):
        DevChain(chain.url).mine()


async def test_dev_accounts_are_funded(contracts: Bindings) -> None:
    assert dev_signers(1)[0].address == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    assert await contracts.chain.balance(dev_signers()[15].address) > 9_990 * COIN, "less what other tests have spent"


async def test_a_transaction_is_not_sent_twice_when_its_answer_is_lost(
    contracts: Bindings, testchain: TestChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, to = contracts.chain, Signer(b"\x24" * 32).address
    send = chain.w3.eth.send_raw_transaction

    async def sends_again(raw: bytes) -> object:
        await send(raw)
        return await send(raw)  # as the provider does when the first answer never came

    monkeypatch.setattr(chain.w3.eth, "send_raw_transaction", sends_again)
    await chain.send(testchain.signers[13], Transfer(chain, to), doing="Paying", value=5)
    assert await chain.balance(to) == 5


async def test_two_connections_send_from_one_key(testchain: TestChain, contracts: Bindings) -> None:
    sender, to = testchain.signers[14], Signer(b"\x25" * 32).address
    async with await Chain.connect(testchain.network.rpc_url) as other:
        pays = [(chain, value) for value, chain in enumerate([contracts.chain, other] * 3, 1)]
        await asyncio.gather(
            *(chain.send(sender, Transfer(chain, to), doing="Paying", value=value) for chain, value in pays)
        )
    assert await contracts.chain.balance(to) == 1 + 2 + 3 + 4 + 5 + 6


def test_a_refusal_that_is_known_has_words_and_a_next_step() -> None:
    """Each is an error of the contracts, and each verb that it names is one."""
    names = {error.name for error in custom_errors().values()}
    assert set(MEANINGS) <= names
    verbs = set(re.findall(r"^##+ (hivemint [a-z -]+)$", PAGE.read_text(), re.MULTILINE))
    for name, meaning in MEANINGS.items():
        refused = Reverted("Doing it", name, {}, "as it says itself")
        assert meaning.words in refused.why
        assert "as it says itself" in refused.why
        assert refused.next_step == meaning.next_step
        assert refused.next_step
        for verb in re.findall(r"`(hivemint [a-z]+ [a-z-]+)", refused.next_step):
            assert verb in verbs
    assert "its own address" in Reverted("Authorizing", "BadKey", {}, "bad key").why
    assert "account thaw" in Reverted("Withdrawing", "NotThawing", {}, "not thawing").next_step
    assert "nobody has registered it" in Reverted("Unbonding", "NotOwner", {}, "not owner").why
    unknown = Reverted("Doing it", "Unheard", {}, "unheard")
    assert (unknown.why, unknown.next_step) == ("unheard", "")
