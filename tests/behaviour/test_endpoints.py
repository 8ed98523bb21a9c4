"""Money through endpoints that lie, shorten and lag: what admission believes, the worker keeps, and the index has."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from hivemint.contracts.bindings import Bindings
from hivemint.ledger.explorer import indexer as indexing
from hivemint.ledger.explorer.indexer import Indexer
from hivemint.ledger.settlement.chainview import ContractView, SeenAccount
from hivemint.ledger.settlement.gas import FIRST_ITEM, settlement_cost
from hivemint.ledger.store.database import database_url
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import ONE_CREDIT, Credits
from hivemint.protocol.signing import Signer
from support.two_endpoints import ACCOUNTS, Scene, with_field


async def test_admission_believes_the_most_cautious_endpoint(scene: Scene) -> None:
    clock = [0.0]
    view = ContractView(scene.seen, scene.node.address, confirmations=1, clock=lambda: clock[0])

    async def seen() -> SeenAccount:
        clock[0] += 1
        scene.testchain.devchain.mine()
        return await view.account(scene.client.address)

    assert await seen() == SeenAccount(Credits(10 * ONE_CREDIT), False)
    scene.two.call(ACCOUNTS, with_field(0, 4 * ONE_CREDIT))
    assert (await seen()).funded == 4 * ONE_CREDIT
    scene.two.call(ACCOUNTS, with_field(2, 2**40))
    assert await seen() == SeenAccount(Credits(0), True)
    scene.honest()
    scene.one.call(ACCOUNTS, with_field(0, 90 * ONE_CREDIT))  # a deposit that is not there
    scene.one.call(ACCOUNTS, with_field(1, 3 * ONE_CREDIT))  # a payment that never was
    assert await seen() == SeenAccount(Credits(10 * ONE_CREDIT), False, Credits(0))
    scene.one.drop()
    assert await seen() == SeenAccount(Credits(10 * ONE_CREDIT), False), "one that is down stops nothing"
    scene.two.call(ACCOUNTS, lambda answer: answer[:-32])
    with pytest.raises(ChainError):
        await seen()


async def test_the_earliest_time_is_told_beside_the_newest(scene: Scene) -> None:
    clock = [0.0]
    view = ContractView(scene.seen, scene.node.address, confirmations=1, clock=lambda: clock[0])
    truth = await scene.true.chain.time()
    assert (await view.time(), await view.earliest()) == (truth, truth)
    for liar in scene.each():
        liar.lie("eth_getBlockByNumber", lambda _, result: result | {"timestamp": hex(truth + 7200)})
        clock[0] += 1
        assert await view.earliest() == truth
        scene.honest()
    scene.two.drop()
    clock[0] += 1
    assert await view.earliest() == truth, "one that is down stops nothing"


async def test_a_lie_about_what_was_collected_costs_no_proof(scene: Scene) -> None:
    """901 once, by all of them and at every block; then the truth, after a restart too."""
    await scene.promise(2 * ONE_CREDIT)
    for endpoint in scene.each():
        endpoint.call(ACCOUNTS, with_field(1, 9 * ONE_CREDIT))
    await scene.settler.round()
    assert await scene.collected() == 0
    assert scene.journal.collectable() == []
    scene.honest()
    scene.clock[0] += 600
    await scene.settler.round()
    assert await scene.collected() == 2 * ONE_CREDIT


async def test_one_that_hides_a_payment_makes_nobody_pay_twice_for_gas(scene: Scene) -> None:
    await scene.promise(2 * ONE_CREDIT)
    await scene.settler.round()
    sent = await scene.true.chain.nonce(scene.node.address)
    for endpoint in scene.each():
        endpoint.call(ACCOUNTS, with_field(1, 0))
    for _ in range(5):
        await scene.settler.round()
    assert await scene.true.chain.nonce(scene.node.address) == sent
    assert len(scene.journal.collectable()) == 1


async def test_a_short_list_is_an_error_that_the_worker_outlives(scene: Scene) -> None:
    await scene.promise(2 * ONE_CREDIT)
    for endpoint in scene.each():
        endpoint.call(ACCOUNTS, lambda answer: answer[:32] + bytes(32))
    with pytest.raises(ChainError, match="0 accounts, asked were 1"):
        await scene.settler.round()
    assert "0 accounts, asked were 1" in scene.settler.reasons["settled"]
    scene.honest()
    await scene.settler.round()
    assert await scene.collected() == 2 * ONE_CREDIT


async def test_gas_above_the_ceiling_makes_it_wait_and_say_so(scene: Scene) -> None:
    await scene.promise(2 * ONE_CREDIT)
    for endpoint in scene.each():
        endpoint.lie("eth_getBlockByNumber", lambda params, result: result | {"baseFeePerGas": hex(10**13)})
    with pytest.raises(ChainError):
        await scene.settler.round()
    assert "gas costs 10,000 gwei now" in scene.settler.reasons["settled"]
    scene.honest()
    await scene.settler.round()
    assert (await scene.collected(), scene.settler.reasons["settled"]) == (2 * ONE_CREDIT, "")


@pytest.mark.parametrize("lie", ["fee", "refusal"])
@pytest.mark.parametrize("first", [True, False])
async def test_one_that_says_nothing_can_be_sent_stops_no_settlement(scene: Scene, lie: str, first: bool) -> None:
    await scene.promise(2 * ONE_CREDIT)
    liar = scene.one if first else scene.two
    if lie == "fee":
        liar.lie("eth_getBlockByNumber", lambda params, result: result | {"baseFeePerGas": hex(10**13)})
    else:
        liar.refuse("eth_estimateGas", 3, "execution reverted")
    await scene.settler.round()
    assert (await scene.collected(), scene.settler.reasons["settled"]) == (2 * ONE_CREDIT, "")


def returning(*words: int) -> str:
    """Code of a contract that answers every call with these words."""
    code = b"".join(
        b"\x7f" + word.to_bytes(32, "big") + b"\x60" + bytes([32 * at]) + b"\x52" for at, word in enumerate(words)
    )
    return "0x" + (code + b"\x60" + bytes([32 * len(words)]) + b"\x60\x00\xf3").hex()


async def test_an_l2s_fee_for_data_counts(scene: Scene) -> None:
    chain, where, rpc_of = scene.true.chain, scene.true.settlement.address, scene.testchain.devchain.rpc
    plain = await settlement_cost(chain, where, 1)
    assert plain == FIRST_ITEM * await chain.fees.price(chain.w3)
    oracle, system, interface = (
        "0x420000000000000000000000000000000000000F",
        "0x" + "64".zfill(40),
        "0x" + "c8".zfill(40),
    )
    try:
        rpc_of("hardhat_setCode", oracle, returning(12345))
        assert await settlement_cost(chain, where, 1) == plain + 12345
        rpc_of("hardhat_setCode", oracle, "0x")
        rpc_of("hardhat_setCode", system, "0xfe")
        rpc_of("hardhat_setCode", interface, returning(1000, 7, 9))
        assert await settlement_cost(chain, where, 1) == plain + 1000 * (plain // FIRST_ITEM)
    finally:
        for address in (oracle, system, interface):
            rpc_of("hardhat_setCode", address, "0x")


async def test_an_index_behind_a_lagging_endpoint_loses_nothing(
    scene: Scene, credits_of: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers by number for blocks that it has not got: with no events. Then an endpoint of several, then none."""
    network = replace(scene.testchain.network, rpc_url=scene.one.url)
    async with await Bindings.connect(network) as lagging:
        index = await Indexer.open(database_url(tmp_path / "index.db"), lagging, network)
        await index.follow()
        head = index.progress.indexed
        scene.one.freeze()
        deposit = {scene.node.address: ONE_CREDIT}
        await scene.true.settlement.fund(credits_of, deposit, client=scene.client.address)
        newest = scene.testchain.devchain.rpc("eth_getBlockByNumber", "latest", False)
        scene.one.lie("eth_getBlockByNumber", lambda params, result: newest if params[0] == "latest" else result)
        with pytest.raises(ChainError):
            await index.follow()
        assert index.progress.indexed == head
        scene.one.honest()
        await index.follow()
        assert index._sums() == (
            await scene.true.token.supply(),
            await scene.true.token.balance(scene.true.settlement.address),
        )
        # What an endpoint keeps back all the same is seen by the sums, and made good.
        scene.one.lie("eth_getLogs", lambda params, result: [])
        await scene.true.settlement.fund(credits_of, deposit, client=scene.client.address)
        monkeypatch.setattr(indexing, "_COMPARE_EVERY", 0.0)
        await index.follow()
        assert "supply and escrow" in index.differs
        scene.one.honest()
        await index.follow()
        assert index.differs == ""
        await index.close()


async def test_accounts_are_listed_where_ranges_are_limited(scene: Scene) -> None:
    first = scene.testchain.network.deployed_block
    scene.testchain.devchain.mine(60)
    wanted = await scene.true.settlement.read_events("Funded", first, client=scene.client.address)
    assert [event["node"] for event in wanted] == [scene.node.address]
    for endpoint in scene.each():
        endpoint.limit_logs(9)
        endpoint.throttle(2, retry_after="0")
    began = time.monotonic()
    assert await scene.seen.settlement.read_events("Funded", first, client=scene.client.address) == wanted
    assert time.monotonic() - began < 60, "no wait without end"
