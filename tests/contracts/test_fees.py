"""What own transactions may cost, whatever an endpoint says; and how a stuck one is seen through."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemint.contracts.bindings import Bindings
from hivemint.contracts.chain import Chain, Transfer
from hivemint.contracts.fees import GWEI, DailyBudget, FeeCeiling, TooDear
from hivemint.protocol.errors import ChainError, ConfigError
from hivemint.protocol.keccak import keccak
from hivemint.protocol.signing import Signer
from support.chain import TestChain
from support.lying_rpc import LyingRpc

CEILING = FeeCeiling.gwei(50, 2)
WILD = st.integers(0, 2**100)


@pytest.fixture
def liar(testchain: TestChain) -> Iterator[LyingRpc]:
    with LyingRpc(testchain.devchain.url) as endpoint:
        yield endpoint


def sent(rpc: LyingRpc) -> list[Any]:
    """The raw transactions that were sent through it."""
    return [params[0] for method, params in rpc.asked if method == "eth_sendRawTransaction"]


def fees_of(raw: str) -> tuple[int, int]:
    """(fee, tip) of a raw transaction of type 2."""
    fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
    return int(fields["maxFeePerGas"]), int(fields["maxPriorityFeePerGas"])


def with_base(base: int | None) -> Any:
    def change(params: list[Any], result: Any) -> Any:
        told = {name: value for name, value in result.items() if name != "baseFeePerGas"}
        return told if base is None else told | {"baseFeePerGas": hex(base)}

    return change


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=WILD, tip=WILD)
async def test_a_liar_burns_no_more_than_the_ceiling(testchain: TestChain, liar: LyingRpc, base: int, tip: int) -> None:
    sender, to = testchain.signers[17], Signer(b"\x31" * 32).address
    async with await Chain.connect(liar.url, fees=CEILING) as chain:
        liar.lie("eth_getBlockByNumber", with_base(base))
        liar.lie("eth_maxPriorityFeePerGas", lambda params, result: hex(tip))
        before = len(sent(liar))
        try:
            await chain.submit(sender, Transfer(chain, to), doing="Paying", value=1)
        except TooDear:
            assert base > CEILING.max_fee
            assert len(sent(liar)) == before
        except ChainError:
            assert base < GWEI, "an offer below what the chain really takes is its own refusal"
        for raw in sent(liar)[before:]:
            fee, offered = fees_of(raw)
            assert fee <= CEILING.max_fee
            assert offered <= CEILING.max_tip
        liar.honest()


async def test_replacements_end_at_the_ceiling(testchain: TestChain, liar: LyingRpc) -> None:
    """It denies every receipt: more is offered, to the ceiling, all with one nonce."""
    sender, to = testchain.signers[18], Signer(b"\x32" * 32).address
    devchain = testchain.devchain
    async with await Chain.connect(liar.url, fees=FeeCeiling.gwei(1000, 3)) as chain:
        liar.lie("eth_getTransactionReceipt", lambda params, result: None)
        liar.lie("eth_maxPriorityFeePerGas", lambda params, result: hex(10**15))
        devchain.rpc("evm_setAutomine", False)
        try:
            with pytest.raises(ChainError, match="no block holds it"):
                await chain.send(sender, Transfer(chain, to), doing="Paying", value=1, patience=0.05)
        finally:
            devchain.mine()
            devchain.rpc("evm_setAutomine", True)
        tips = [fees_of(raw)[1] for raw in sent(liar)]
        assert tips[0] == 1.5 * GWEI
        assert len(tips) > 2
        assert tips == sorted(tips)
        assert tips[-1] <= 3 * GWEI
    before = await _balance(testchain, to)
    assert before == 1, "whatever was offered, it was done once"


async def _balance(testchain: TestChain, of: Any) -> int:
    async with await Chain.connect(testchain.network.rpc_url) as chain:
        return await chain.balance(of)


def test_a_raise_is_what_nodes_ask_for_or_none() -> None:
    old: Any = {"maxFeePerGas": 40 * GWEI, "maxPriorityFeePerGas": GWEI}
    assert CEILING.raised(old, old) == {"maxFeePerGas": 50 * GWEI, "maxPriorityFeePerGas": int(1.25 * GWEI) + 1}
    near_fee: Any = {**old, "maxFeePerGas": 46 * GWEI}
    near_tip: Any = {**old, "maxPriorityFeePerGas": int(1.9 * GWEI)}
    assert CEILING.raised(near_fee, old) is CEILING.raised(near_tip, old) is None
    now: Any = {"maxFeePerGas": 30 * GWEI, "maxPriorityFeePerGas": GWEI}
    low: Any = {"maxFeePerGas": 10 * GWEI, "maxPriorityFeePerGas": 0}
    assert CEILING.raised(low, now) == now
    legacy: Any = {"gasPrice": 10 * GWEI}
    assert CEILING.raised(legacy, legacy) == {"gasPrice": int(12.5 * GWEI) + 1}


def without_a_price(params: list[Any], result: Any) -> Any:
    """As chains answer that have no base fee."""
    return result and {name: value for name, value in result.items() if name != "effectiveGasPrice"}


async def test_a_chain_without_a_base_fee_takes_a_gas_price(testchain: TestChain, liar: LyingRpc) -> None:
    sender, to = testchain.signers[19], Signer(b"\x33" * 32).address
    liar.lie("eth_getBlockByNumber", with_base(None))
    liar.lie("eth_getTransactionReceipt", without_a_price)
    async with await Chain.connect(liar.url, fees=CEILING) as chain:
        assert await CEILING.price(chain.w3) == await chain.w3.eth.gas_price
        mined = await chain.send(sender, Transfer(chain, to), doing="Paying", value=5)
        assert (mined.gas_used, mined.gas_price > 0) == (21_000, True)
        assert await chain.balance(to) == 5
        liar.lie("eth_gasPrice", lambda params, result: hex(51 * GWEI))
        with pytest.raises(TooDear, match=r"costs 51 gwei now\. the ceiling .* is 50 gwei.*HIVEMINT_MAX_FEE"):
            await chain.send(sender, Transfer(chain, to), doing="Paying", value=5)


async def test_without_the_question_for_a_tip_the_history_answers(testchain: TestChain, liar: LyingRpc) -> None:
    async with await Chain.connect(liar.url, fees=CEILING) as chain:
        liar.refuse("eth_maxPriorityFeePerGas", -32601, "the method does not exist")
        liar.lie("eth_feeHistory", lambda params, result: {"reward": [["0x64"], ["0x3e8"], ["0xffffffffffff"]]})
        offer: Any = await CEILING.offer(chain.w3)
        assert offer["maxPriorityFeePerGas"] == 1000
        liar.refuse("eth_feeHistory", -32601, "the method does not exist")
        offer = await CEILING.offer(chain.w3)
        assert offer["maxPriorityFeePerGas"] == GWEI // 10


async def test_an_estimate_beyond_any_block_is_refused(testchain: TestChain, liar: LyingRpc) -> None:
    async with await Chain.connect(liar.url) as chain:
        liar.lie("eth_estimateGas", lambda params, result: hex(10**12))
        with pytest.raises(ChainError, match=rf"{liar.shown} estimates"):
            await chain.submit(testchain.signers[17], Transfer(chain, ZERO), doing="Paying")
        assert sent(liar) == []


ZERO: Any = "0x" + "00" * 19 + "01"


async def test_the_next_try_takes_the_place_of_a_stuck_one(testchain: TestChain, contracts: Bindings) -> None:
    """As in the command line: an earlier command left a payment behind, too cheap. Again, and it is done once."""
    devchain, chain, sender = testchain.devchain, contracts.chain, testchain.signers[17]
    to = Signer(b"\x34" * 32).address
    devchain.rpc("evm_setAutomine", False)
    try:
        base = int(devchain.rpc("eth_getBlockByNumber", "latest", False)["baseFeePerGas"], 16)
        cheap: Any = {"maxFeePerGas": base * 9 // 8 + 1, "maxPriorityFeePerGas": 1}
        stuck = await chain.submit(sender, Transfer(chain, to), doing="Paying", value=7, fees=cheap)
        again = asyncio.create_task(chain.send(sender, Transfer(chain, to), doing="Paying", value=7, patience=0.5))
        for _ in range(300):
            pending = devchain.rpc("eth_getBlockByNumber", "pending", True)["transactions"]
            mine = [one for one in pending if one["from"] == sender.address.lower()]
            if mine and all(one["hash"] != "0x" + stuck.hash.hex() for one in mine):
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("the stuck transaction was never replaced")
        devchain.mine()
        await again
    finally:
        devchain.rpc("evm_setAutomine", True)
        devchain.mine()
    assert await chain.balance(to) == 7
    assert await chain.mined(stuck) is None


async def test_a_stuck_one_that_the_chain_does_not_count_is_replaced_too(testchain: TestChain, liar: LyingRpc) -> None:
    """Endpoints whose count of pending transactions is that of mined ones: the nonce of the stuck one comes again."""
    devchain, sender, to = testchain.devchain, testchain.signers[17], Signer(b"\x38" * 32).address
    async with await Chain.connect(liar.url) as chain:
        devchain.rpc("evm_setAutomine", False)
        try:
            fees: Any = await chain.fees.offer(chain.w3)
            fees |= {"maxFeePerGas": fees["maxFeePerGas"] - 1}  # what is offered now is too little more than that
            stuck = await chain.submit(sender, Transfer(chain, to), doing="Paying", value=7, fees=fees)
            liar.lie("eth_getTransactionCount", lambda params, result: hex(stuck.nonce))
            again = await chain.submit(sender, Transfer(chain, to), doing="Paying", value=7)
            devchain.mine()
        finally:
            devchain.rpc("evm_setAutomine", True)
        assert again.nonce == stuck.nonce
        assert (await chain.wait(again)).gas_used == 21_000
        assert await chain.mined(stuck) is None
        assert await chain.balance(to) == 7


async def test_what_was_displaced_is_told_and_not_done_again(testchain: TestChain, contracts: Bindings) -> None:
    devchain, chain, sender = testchain.devchain, contracts.chain, testchain.signers[17]
    to, other = Signer(b"\x35" * 32).address, Signer(b"\x36" * 32).address
    devchain.rpc("evm_setAutomine", False)
    try:
        nonce = await chain.nonce(sender.address)
        task = asyncio.create_task(chain.send(sender, Transfer(chain, to), doing="Paying", value=7, patience=1.5))
        for _ in range(500):
            if await chain.nonce(sender.address) > nonce:
                break
            await asyncio.sleep(0.02)
        fees: Any = {"maxFeePerGas": 90 * GWEI, "maxPriorityFeePerGas": 80 * GWEI}
        await chain.submit(sender, Transfer(chain, other), doing="Paying", value=3, nonce=nonce, fees=fees)
        devchain.mine()
        with pytest.raises(ChainError, match="was displaced by another transaction"):
            await task
    finally:
        devchain.rpc("evm_setAutomine", True)
        devchain.mine()
    assert (await chain.balance(to), await chain.balance(other)) == (0, 3)


async def test_a_transaction_goes_to_every_endpoint(testchain: TestChain, liar: LyingRpc) -> None:
    """One that keeps it to itself stops nothing."""
    to = Signer(b"\x37" * 32).address
    urls = [liar.url, testchain.devchain.url]
    async with await Chain.connect(urls) as chain:
        kept = liar.answer

        def answer(method: str, params: list[Any]) -> dict[str, Any]:
            return {"result": "0x" + "11" * 32} if method == "eth_sendRawTransaction" else kept(method, params)

        liar.answer = answer  # type: ignore[method-assign]
        await chain.send(testchain.signers[17], Transfer(chain, to), doing="Paying", value=9)
        assert await chain.balance(to) == 9


def test_a_days_budget_is_kept_over_restarts(tmp_path: Path) -> None:
    file, clock = tmp_path / "gas.json", [86_400.0 * 100]
    budget = DailyBudget(100, file, lambda: clock[0])
    budget.take(1, 60)
    budget.take(1, 80)  # a replacement counts with what it adds
    assert budget.spent == 80
    with pytest.raises(TooDear, match="reached the day's budget"):
        budget.take(2, 21)
    again = DailyBudget(100, file, lambda: clock[0])
    assert again.spent == 80
    with pytest.raises(TooDear):
        again.take(2, 21)
    clock[0] += 86_400
    again.take(2, 100)
    for odd in ('{"1": "x"}', '{"1": Infinity}', "[" * 10_000):
        file.write_text(odd)
        with pytest.raises(ConfigError, match="is damaged"):
            DailyBudget(100, file)


async def test_nothing_is_sent_beyond_the_budget(testchain: TestChain, liar: LyingRpc) -> None:
    async with await Chain.connect(liar.url, budget=DailyBudget(10**12)) as chain:
        with pytest.raises(TooDear):
            await chain.send(testchain.signers[17], Transfer(chain, ZERO), doing="Paying")
        assert sent(liar) == []


async def test_an_l2s_fee_for_data_is_in_the_budget(testchain: TestChain, liar: LyingRpc) -> None:
    """The OP stack takes it beside gas times price: a budget that left it out would be spent many times."""
    liar.lie("eth_getCode", lambda params, result: "0xfe" if params[0].lower().endswith("00f") else result)
    liar.call(keccak(b"getL1Fee(bytes)")[:4], lambda _: (10**16).to_bytes(32, "big"))
    budget = DailyBudget(10**16)
    async with await Chain.connect(liar.url, budget=budget) as chain:
        with pytest.raises(TooDear, match="reached the day's budget"):
            await chain.send(testchain.signers[17], Transfer(chain, ZERO), doing="Paying")
        assert (sent(liar), budget.spent) == ([], 0)
        liar.honest()
        await chain.send(testchain.signers[17], Transfer(chain, ZERO), doing="Paying")
        assert 0 < budget.spent < 10**16


def test_ceilings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FeeCeiling.from_environment() == FeeCeiling.gwei(100, 3)
    monkeypatch.setenv("HIVEMINT_MAX_FEE", "0.5")
    assert FeeCeiling.from_environment().max_fee == GWEI // 2
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("HIVEMINT_MAX_TIP", wrong)
        with pytest.raises(ConfigError, match="HIVEMINT_MAX_TIP"):
            FeeCeiling.from_environment()
