"""`hivemint wallet send` on a real chain: what arrives, and what is refused before anything is sent."""

import asyncio
from dataclasses import astuple

import pytest

from hivemint.cli.wallet import wallets
from hivemint.contracts.bindings import Bindings
from hivemint.protocol.errors import BadInput, WalletError
from hivemint.protocol.ids import ONE_CREDIT, Address
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores
from hivemint.protocol.signing import Signer
from support.chain import TestChain
from support.credits import credits_for
from support.verbs import error_of, told

pytest_plugins = ["support.verbs"]
pytestmark = pytest.mark.usefixtures("home")
COIN = 10**18


async def _holds(testchain: TestChain, who: Address) -> tuple[int, int]:
    async with await Bindings.connect(testchain.network) as contracts:
        return await contracts.token.balance(who), await contracts.chain.balance(who)


def test_credits_and_coin_arrive_and_too_much_is_refused_first(testchain: TestChain) -> None:
    rich, poor = Signer(b"\xb2" * 32), Signer(b"\xb3" * 32)
    asyncio.run(credits_for(testchain, rich, 0xB4))
    Keystores().add("rich", rich, "correct horse", n=CHEAP_SCRYPT_N)
    Keystores().add("poor", poor, "correct horse", n=CHEAP_SCRYPT_N)
    place = ["--network", str(testchain.network.path)]
    mine, yes = [*place, "--wallet", "rich"], "--yes"

    sent = told(wallets.app, "send", "poor", "2.5", yes, *mine)
    assert (sent["to"], sent["amount_wei"], sent["coin"]) == (poor.address, 25 * 10**17, False)
    assert len(sent["transaction"]) == 2 + 64
    assert asyncio.run(_holds(testchain, poor.address)) == (25 * 10**17, 0)
    told(wallets.app, "send", poor.address, "1 wei", yes, *mine)
    assert asyncio.run(_holds(testchain, poor.address))[0] == 25 * 10**17 + 1

    no_gas = error_of(wallets.app, "send", "rich", "1", yes, *place, "--wallet", "poor")
    assert (isinstance(no_gas, BadInput), no_gas.what) == (True, "This wallet has too little coin")
    told(wallets.app, "send", "poor", "2", "--coin", yes, *mine)
    assert asyncio.run(_holds(testchain, poor.address))[1] == 2 * COIN

    before = asyncio.run(_holds(testchain, rich.address))
    refused: dict[tuple[str, ...], str] = {
        ("poor", "98"): "too few credits",
        ("poor", "60", "--coin"): "too little coin",
        ("rich", "1"): "reach nobody",
        **{(contract, "1"): "reach nobody" for contract in astuple(testchain.network.contracts)},
        (testchain.network.contracts.emission, "1", "--coin"): "reach nobody",
        ("poor", "0"): "nothing to send",
        ("poor", "lots"): "not an amount",
        (poor.address[:-1] + ("0" if poor.address[-1] != "0" else "1"), "1"): "not an address",
    }
    for words, what in refused.items():
        assert what in error_of(wallets.app, "send", *words, yes, *mine).what, words
    assert isinstance(error_of(wallets.app, "send", "nobody", "1", yes, *mine), WalletError)
    script = error_of(wallets.app, "send", "poor", "1", *mine)
    assert "--yes" in script.next_step
    assert asyncio.run(_holds(testchain, rich.address)) == before, "nothing moved and no gas was paid"

    shown = told(wallets.app, "show", "rich", *place)
    assert (shown["credits"], shown["ways_to_credits"]) == (100 * ONE_CREDIT - 25 * 10**17 - 1, [])
