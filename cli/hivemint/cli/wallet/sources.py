"""Where credits come from, said wherever somebody lacks them."""

from hivemint.protocol.network import Network

LOCAL_CHAIN = 31337
"""Chain id of the local testnet, where the faucet is."""


def ways_to_credits(network: Network, who: str = "NAME") -> tuple[str, ...]:
    """By network, the nearest way first. `who`: a wallet's name or address. Nothing here promises a market."""
    if network.chain_id == LOCAL_CHAIN:
        return (
            f"`hivemint testnet faucet {who}` sends coin, and credits that the testnet's node owners have earned",
            "`hivemint testnet epoch` lets a day pass: nodes mint for donated work of the day before the last one",
        )
    return (
        "run a node: `hivemint node start MODEL`; paid and donated work both mint credits to its payout address",
        f"receive them from who has some: credits are the ERC-20 token {network.contracts.token} on chain "
        f"{network.chain_id}; `hivemint wallet show {who}` names the address to send to",
        "buy them where somebody sells them: no market is promised, and what credits cost nobody here knows",
    )
