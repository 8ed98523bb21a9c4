"""Where credits come from, by network."""

from dataclasses import replace

from hivemint.cli.wallet.sources import ways_to_credits
from support.chain import TestChain


def test_the_faucet_is_named_on_the_testnet_and_a_node_elsewhere(testchain: TestChain) -> None:
    here = " ".join(ways_to_credits(testchain.network, "bob"))
    assert "hivemint testnet faucet bob" in here
    elsewhere = " ".join(ways_to_credits(replace(testchain.network, chain_id=8453), "bob"))
    assert "faucet" not in elsewhere
    assert "hivemint node start" in elsewhere
    assert testchain.network.contracts.token in elsewhere
    assert "no market is promised" in elsewhere
