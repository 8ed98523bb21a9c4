"""Endpoints that fail, lie, lag, ask to wait or are another chain: what a reader of the chain then gets."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from hivemint.contracts import logs, rpc
from hivemint.contracts.bindings import Bindings
from hivemint.contracts.chain import Chain
from hivemint.contracts.rpc import Throttled
from hivemint.protocol.errors import ChainError
from hivemint.protocol.keccak import keccak
from hivemint.protocol.text import shown_url
from support.chain import TestChain
from support.lying_rpc import SECRET, Drop, LyingRpc, Refuse, Status

ACCOUNTS = keccak(b"accounts(address,address[],address[])")[:4]
NODES = keccak(b"nodesOf(address[])")[:4]


@pytest.fixture
def one(testchain: TestChain) -> Iterator[LyingRpc]:
    with LyingRpc(testchain.devchain.url) as endpoint:
        yield endpoint


@pytest.fixture
def two(testchain: TestChain) -> Iterator[LyingRpc]:
    with LyingRpc(testchain.devchain.url) as endpoint:
        yield endpoint


@pytest.fixture
async def both(testchain: TestChain, one: LyingRpc, two: LyingRpc) -> AsyncIterator[Bindings]:
    network = replace(testchain.network, rpc_url=one.url, other_rpc_urls=(two.url,))
    async with await Bindings.connect(network) as bindings:
        yield bindings


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoints are set aside for moments."""
    monkeypatch.setattr(rpc, "_FIRST_PAUSE", 0.005)
    monkeypatch.setattr(rpc, "_ODD_PAUSE", 0.005)
    monkeypatch.setattr(rpc, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(rpc, "_PATIENCE", 0.03)


def test_of_a_url_only_scheme_and_host_are_shown() -> None:
    shown = "https://rpc.example.org:8443"
    assert shown_url(f"https://user:{SECRET}@rpc.example.org:8443/v3/{SECRET}?key={SECRET}#x") == shown
    assert shown_url("http://[::1]:8545/key") == "http://[::1]:8545"
    assert SECRET not in shown_url(f"http://[{SECRET}")


async def test_one_endpoint_down_stops_nothing(
    both: Bindings, one: LyingRpc, two: LyingRpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "_FIRST_PAUSE", 60.0)
    await both.chain.block_number()
    one.drop()
    before = len(two.asked)
    assert await both.chain.block_number() == await both.chain.block_number()
    assert len(two.asked) > before
    asked = len(one.asked)
    await both.chain.block_number()
    assert len(one.asked) == asked, "an endpoint that failed is left alone for a while"
    one.honest()
    both.chain._endpoints.endpoints[0].free_at = 0.0
    await both.chain.block_number()
    assert one.asked[-1][0] == "eth_blockNumber", "and is the first again when it answers"


FAILURES: dict[str, Callable[[str, list[Any], Any], Any]] = {}


def failure(rule: Callable[[str, list[Any], Any], Any]) -> Callable[[str, list[Any], Any], Any]:
    FAILURES[rule.__name__] = rule
    return rule


@failure
def dropped(method: str, params: list[Any], result: Any) -> Any:
    raise Drop


@failure
def status_500(method: str, params: list[Any], result: Any) -> Any:
    raise Status(500, SECRET.encode())


@failure
def redirected(method: str, params: list[Any], result: Any) -> Any:
    raise Status(302, headers={"Location": f"http://127.0.0.1:1/{SECRET}"})


@failure
def no_json(method: str, params: list[Any], result: Any) -> Any:
    raise Status(200, b"<html>" + SECRET.encode())


@failure
def deep_json(method: str, params: list[Any], result: Any) -> Any:
    raise Status(200, b'{"result":' + b"[" * 100_000)


@failure
def no_rpc(method: str, params: list[Any], result: Any) -> Any:
    raise Status(200, b'["result"]')


@failure
def forbidden(method: str, params: list[Any], result: Any) -> Any:
    raise Refuse(-32001, f"the key {SECRET} of /v3/{SECRET} is not allowed\x1b[31m")


@failure
def odd_error(method: str, params: list[Any], result: Any) -> Any:
    raise Status(200, b'{"error": ["what", {"is": "this"}]}')


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", list(FAILURES))
async def test_a_failure_is_told_without_the_urls_secrets(testchain: TestChain, one: LyingRpc, name: str) -> None:
    with capture_logs() as logged:
        async with await Chain.connect(one.url) as chain:
            one.rule(FAILURES[name])
            with pytest.raises(ChainError) as caught:
                await chain.block_number()
        with pytest.raises(ChainError) as again:
            await Chain.connect(one.url)
    told = f"{caught.value} {again.value} {logged}"
    assert SECRET not in told
    assert "\x1b" not in str(caught.value)
    assert one.shown in told


@pytest.mark.usefixtures("quick")
async def test_all_down_names_each(both: Bindings, one: LyingRpc, two: LyingRpc) -> None:
    one.drop()
    two.rule(status_500)
    with pytest.raises(ChainError, match="None of the chain's endpoints") as caught:
        await both.chain.block_number()
    assert one.shown in str(caught.value)
    assert f"{two.shown}: HTTP status 500" in str(caught.value)
    assert SECRET not in str(caught.value)


async def test_an_endpoint_that_is_away_for_long_is_known_to_be(testchain: TestChain, one: LyingRpc) -> None:
    async with await Chain.connect(one.url) as chain:
        one.drop()
        for _ in range(2):
            with pytest.raises(ChainError):
                await chain.block_number()
        asked = len(one.asked)
        chain._endpoints.endpoints[0].free_at = time.monotonic() + 30
        with pytest.raises(ChainError, match="cannot be reached"):
            await chain.block_number()
        assert len(one.asked) == asked


async def test_requests_that_fail_together_are_one_failure(one: LyingRpc) -> None:
    """Else a chain that is away for a moment, while many ask, would be left alone for a minute."""
    async with await Chain.connect(one.url) as chain:
        await chain.block_number()
        one.drop()
        asking = (chain.block_number() for _ in range(20))
        assert all(isinstance(found, ChainError) for found in await asyncio.gather(*asking, return_exceptions=True))
        (endpoint,) = chain._endpoints.endpoints
        assert endpoint.free_at - time.monotonic() < 5.0
        one.honest()
        deadline = time.monotonic() + 20
        while True:
            with suppress(ChainError):
                return await _answered(chain)
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


async def _answered(chain: Chain) -> None:
    assert await chain.block_number() >= 0


async def test_an_answer_is_read_up_to_a_limit(one: LyingRpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "MAX_ANSWER", 1 << 20)
    async with await Chain.connect(one.url) as chain:
        one.lie("eth_blockNumber", lambda params, result: "0x" + "0" * (2 << 20))
        with pytest.raises(ChainError, match="more than 1 MiB"):
            await chain.block_number()


async def test_it_waits_when_it_is_asked_to(one: LyingRpc) -> None:
    async with await Chain.connect(one.url) as chain:
        one.throttle(1, retry_after="0")
        await chain.block_number()
        one.throttle(retry_after="7")
        with pytest.raises(Throttled) as caught:
            await chain.block_number()
        assert caught.value.retry_after == 7


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("asked", ["\u00c2\u00b2", "9" * 400, "soon", "-1", ""])
async def test_a_header_that_is_no_number_is_a_chain_error(one: LyingRpc, asked: str) -> None:
    """The first is a superscript two on the wire: a digit that is no decimal."""
    one.throttle(retry_after=asked)
    with pytest.raises(Throttled):
        await Chain.connect(one.url)


async def test_another_chain_under_the_second_address_is_set_aside(both: Bindings, two: LyingRpc) -> None:
    def other(params: list[Any], result: Any) -> Any:
        return result | {"hash": "0x" + "77" * 32} if params[0] == "0x0" else result

    await both.chain.block_number()
    two.lie("eth_getBlockByNumber", other)
    with pytest.raises(ChainError, match=rf"{two.shown} is the wrong chain.*its first block is"):
        await both.chain.each[1].block_number()
    await both.chain.block_number()


@pytest.mark.usefixtures("quick")
async def test_a_chain_that_began_anew_under_its_address_is_told(one: LyingRpc) -> None:
    async with await Chain.connect(one.url) as chain:
        one.drop(1)
        await chain.block_number()
        one.lie("eth_getBlockByNumber", lambda params, result: result | {"hash": "0x" + "77" * 32})
        one.drop(1)
        with pytest.raises(ChainError, match="is the wrong chain"):
            await chain.block_number()


def aged(seconds: int, blocks: int) -> Callable[[list[Any], Any], Any]:
    """Blocks as of so many seconds before now, and so many blocks lower."""

    def change(params: list[Any], result: Any) -> Any:
        if params[0] != "latest":
            return result
        return result | {
            "timestamp": hex(int(time.time()) - seconds),
            "number": hex(int(result["number"], 16) - blocks),
        }

    return change


async def test_an_endpoint_that_lags_far_behind_is_set_aside(both: Bindings, one: LyingRpc, two: LyingRpc) -> None:
    one.lie("eth_getBlockByNumber", aged(600, 1))
    two.lie("eth_getBlockByNumber", aged(0, 0))
    for endpoint in both.chain._endpoints.endpoints:
        endpoint.looked_at = None
    await both.chain.each[1].block_number()
    with pytest.raises(ChainError, match=r"it is at block \d+, another endpoint at \d+"):
        await both.chain.each[0].block_number()
    await both.chain.block_number()


async def test_a_head_from_the_future_sets_nobody_aside(both: Bindings, one: LyingRpc, two: LyingRpc) -> None:
    one.lie("eth_getBlockByNumber", aged(0, 1))
    two.lie("eth_getBlockByNumber", aged(-10_000, 0))
    for endpoint in both.chain._endpoints.endpoints:
        endpoint.looked_at = None
    assert await both.chain.each[1].block_number() == await both.chain.each[0].block_number()


def cut(answer: bytes) -> bytes:
    return answer[:-64]


def one_fewer(answer: bytes) -> bytes:
    """An ABI list with one entry less than there are."""
    return answer[:32] + (int.from_bytes(answer[32:64], "big") - 1).to_bytes(32, "big") + answer[64:]


def rich(answer: bytes) -> bytes:
    """Each account holds and has paid 2^96-1."""
    return answer[:64] + ((2**96 - 1).to_bytes(32, "big") * 2 + bytes(64)) * ((len(answer) - 64) // 128)


@pytest.mark.parametrize("change", [cut, one_fewer, rich, lambda _: b"", lambda _: b"\xff" * 320])
async def test_a_short_or_odd_list_names_the_endpoint(
    testchain: TestChain, one: LyingRpc, change: Callable[[bytes], bytes]
) -> None:
    clients = [signer.address for signer in testchain.signers[:3]]
    async with await Bindings.connect(replace(testchain.network, rpc_url=one.url)) as bindings:
        one.call(ACCOUNTS, change)
        one.call(NODES, change)
        with pytest.raises(ChainError, match=one.shown):
            await bindings.settlement.accounts(clients[0], [(client, client) for client in clients])
        with pytest.raises(ChainError, match=one.shown):
            await bindings.registry.nodes(clients)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**70) | st.text(max_size=8) | st.sampled_from(["0x", "0x1", "0xzz"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["hash", "number", "x"]), inner),
    max_leaves=6,
)
ASKING: dict[str, Callable[[Bindings], Any]] = {
    "eth_blockNumber": lambda bindings: bindings.chain.block_number(),
    "eth_getBlockByNumber": lambda bindings: bindings.chain.time(),
    "eth_getBalance": lambda bindings: bindings.chain.balance(bindings.token.address),
    "eth_getTransactionCount": lambda bindings: bindings.chain.nonce(bindings.token.address),
    "eth_getCode": lambda bindings: bindings.chain.code(bindings.token.address),
    "eth_call": lambda bindings: bindings.registry.node(bindings.token.address),
    "eth_getLogs": lambda bindings: bindings.events(0, 3),
    "eth_gasPrice": lambda bindings: bindings.chain.fees.offer(bindings.chain.w3),
}


@pytest.mark.usefixtures("quick")
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(st.tuples(st.sampled_from(list(ASKING)), JSON), min_size=12, max_size=12))
async def test_whatever_is_answered_only_a_chain_error_comes_of_it(
    testchain: TestChain, one: LyingRpc, answers: list[tuple[str, Any]]
) -> None:
    async with await Bindings.connect(replace(testchain.network, rpc_url=one.url)) as bindings:
        for method, result in answers:
            one.lie(method, lambda params, real, result=result: result)  # type: ignore[misc]
            with suppress(ChainError):
                await ASKING[method](bindings)
            one.honest()


CHANGES = st.tuples(st.integers(0, 3), st.integers(0, 400), st.integers(1, 255))


@pytest.mark.usefixtures("quick")
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(CHANGES, min_size=12, max_size=12))
async def test_changed_bytes_of_a_list_are_a_value_or_a_chain_error(
    testchain: TestChain, one: LyingRpc, changes: list[tuple[int, int, int]]
) -> None:
    pairs = [(signer.address, signer.address) for signer in testchain.signers[:2]]

    def changed(answer: bytes, cut_at: int, at: int, by: int) -> bytes:
        at %= len(answer)
        return (answer[:at] + bytes([answer[at] ^ by]) + answer[at + 1 :])[: len(answer) - cut_at * 16]

    async with await Bindings.connect(replace(testchain.network, rpc_url=one.url)) as bindings:
        for change in changes:
            one.call(ACCOUNTS, lambda answer, change=change: changed(answer, *change))  # type: ignore[misc]
            with suppress(ChainError):
                found = await bindings.settlement.accounts(pairs[0][0], pairs)
                assert len(found) == 2
                assert all(0 <= account.balance + account.collected < 2**96 for account in found)
            one.honest()


# ---- logs


async def test_a_refused_range_is_halved_and_nothing_is_lost(
    testchain: TestChain, contracts: Bindings, one: LyingRpc
) -> None:
    testchain.devchain.mine(logs.NEWEST + 40)
    head = await contracts.chain.block_number()
    wanted = await contracts.events(0, head)
    assert len(wanted) > 5
    async with await Bindings.connect(replace(testchain.network, rpc_url=one.url)) as bindings:
        one.limit_logs(7)
        assert await bindings.events(0, head) == wanted
        one.honest()
        one.limit_logs(3, "Log response size exceeded. this block range should work: [0x0, 0x2]")
        one.throttle(2, retry_after="0")
        assert await bindings.events(0, head) == wanted
        one.honest()
        one.refuse("eth_getLogs", -32005, "query returned more than 10000 results")
        with pytest.raises(ChainError, match="more than 10000"):
            await bindings.events(0, head)


def _throttled(params: list[Any], result: Any) -> Any:
    raise Status(429, headers={"Retry-After": "0"})


async def test_a_throttled_range_is_not_halved(testchain: TestChain, one: LyingRpc) -> None:
    async with await Bindings.connect(replace(testchain.network, rpc_url=one.url)) as bindings:
        testchain.devchain.mine(logs.NEWEST + 10)
        one.lie("eth_getLogs", _throttled, times=4)
        await bindings.events(0, await bindings.chain.block_number())
        ranges = {
            (asked[0]["fromBlock"], asked[0]["toBlock"])
            for name, asked in one.asked
            if "getLogs" in name and "fromBlock" in asked[0]
        }
        assert len(ranges) == 1


async def test_a_range_that_was_halved_grows_again(testchain: TestChain, one: LyingRpc) -> None:
    async with await Bindings.connect(replace(testchain.network, rpc_url=one.url)) as bindings:
        testchain.devchain.mine(logs.NEWEST + 100)
        one.refuse("eth_getLogs", -32005, "query exceeds max block range", times=3)
        await bindings.events(0, await bindings.chain.block_number())
        asked = [params[0] for name, params in one.asked if name == "eth_getLogs" and "fromBlock" in params[0]]
        sizes = [int(wanted["toBlock"], 16) - int(wanted["fromBlock"], 16) + 1 for wanted in asked]
        assert sizes[:4] == [sizes[0], sizes[0] // 2, sizes[0] // 4, sizes[0] // 8]
        assert sizes[4:6] == [2 * sizes[3], 4 * sizes[3]]


async def test_a_backend_that_lags_loses_no_event(testchain: TestChain, contracts: Bindings, one: LyingRpc) -> None:
    """It says "nothing" where there is something: that is an error, never an empty list."""
    async with await Bindings.connect(replace(testchain.network, rpc_url=one.url)) as bindings:
        one.freeze()
        devchain, client = testchain.devchain, testchain.signers[15]
        await contracts.settlement.thaw(client, testchain.signers[0].address)
        head = await contracts.chain.block_number()
        block = bytes.fromhex(devchain.rpc("eth_getBlockByNumber", hex(head), False)["hash"][2:])
        assert [event.name for event in await contracts.events_of(block)] == ["Thawing"]
        with pytest.raises(ChainError):
            await bindings.events_of(block)
        with pytest.raises(ChainError):
            await bindings.events(head, head)
        devchain.mine(logs.NEWEST + 5)
        one.lie("eth_blockNumber", lambda params, result: hex(head + logs.NEWEST + 5), times=1)
        with pytest.raises(ChainError, match="asked was up to"):
            await bindings.events(0, head + 1)
        one.honest()
        assert [event.name for event in await bindings.events(head, head)] == ["Thawing"]


async def test_another_endpoint_has_what_the_first_lacks(
    testchain: TestChain, contracts: Bindings, both: Bindings, one: LyingRpc
) -> None:
    await both.chain.block_number()
    one.freeze()
    await contracts.settlement.thaw(testchain.signers[16], testchain.signers[0].address)
    head = await contracts.chain.block_number()
    block = await contracts.chain.w3.eth.get_block(head)
    assert [event.name for event in await both.events_of(bytes(block["hash"]))] == ["Thawing"]


async def test_many_requests_at_once_look_at_an_endpoint_once(both: Bindings, one: LyingRpc) -> None:
    both.chain._endpoints.endpoints[0].looked_at = None
    before = len(one.asked)
    await asyncio.gather(*(both.chain.block_number() for _ in range(10)))
    looks = [name for name, _ in one.asked[before:] if name == "eth_chainId"]
    assert len(looks) == 1
