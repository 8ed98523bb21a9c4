"""Wallets with credits for the benchmarks. There is no premint, so a little donated work earns them first.

The nodes ask 1 wei a token and block here: what is measured is the cost of receipts and vouchers, not of credits.
"""

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness import prompt

from hivemint.client import SwarmModelForCausalLM
from hivemint.contracts.bindings import Bindings
from hivemint.protocol.ids import Credits
from hivemint.protocol.signing import Signer

CHEAP = {"HIVEMINT_ASK": "1 wei", "HIVEMINT_SETTLE_MIN": "1000", "HIVEMINT_SETTLE_EVERY": "3600"}
PATIENCE = 60.0


def open_client(net: Any, wallet: Signer, **settings: Any) -> Any:
    """A `SwarmModelForCausalLM` for `wallet`."""
    return SwarmModelForCausalLM.from_pretrained(
        net.model.name, network=net.network_file, wallet=wallet, home=net.model.home, **settings
    )


def funded_wallets(net: Any, count: int) -> list[Signer]:
    """New wallets with an equal share of the first credits in escrow at every node."""
    wallets = [Signer(secrets.token_bytes(32)) for _ in range(count)]
    asyncio.run(_fund(net, wallets))
    return wallets


@contextmanager
def paying_client(net: Any) -> Iterator[Any]:
    """One client with a funded wallet, on the paid lane."""
    with open_client(net, funded_wallets(net, 1)[0], bid="ask") as model:
        yield model


async def _fund(net: Any, wallets: Sequence[Signer]) -> None:
    owner = net.signer(net.plans[0].owner)
    async with await Bindings.connect(net.network) as bindings:
        if not await bindings.token.balance(owner.address):
            await _earn(net, bindings, owner)
        share = Credits(await bindings.token.balance(owner.address) // (2 * len(wallets) * len(net.plans)))
        for wallet in wallets:
            accounts = {net.signer(plan.operator).address: share for plan in net.plans}
            await bindings.settlement.fund(owner, accounts, client=wallet.address)
        target = await bindings.chain.block_number() + net.network.confirmations + 1
        await _until(lambda: _reached(bindings, target))


async def _earn(net: Any, bindings: Bindings, owner: Signer) -> None:
    """Donate work, let two epochs pass, wait for the mint."""
    await net.next_epoch()
    await asyncio.to_thread(_donate, net)
    await net.next_epoch()
    claimed = await bindings.emission.current_epoch() - 1
    operators = [net.signer(plan.operator).address for plan in net.plans]
    await _until(lambda: _all_claimed(bindings, operators, claimed))
    await net.next_epoch()
    await _until(lambda: _has(bindings, owner))


def _donate(net: Any) -> None:
    """Through every node: where a span has several, over those that no answer went through yet."""
    used: list[str] = []
    while len(used) < len(net.plans):
        with open_client(net, Signer(secrets.token_bytes(32)), bid="free", blocked_nodes=tuple(used)) as model:
            model.generate(prompt(256), max_new_tokens=8, do_sample=False)
            used += [hop.operator for hop in model.last_call.plan.hops]


async def _reached(bindings: Bindings, block: int) -> bool:
    return await bindings.chain.block_number() >= block


async def _all_claimed(bindings: Bindings, operators: Sequence[Any], epoch: int) -> bool:
    return all([(await bindings.emission.claim_of(node, epoch)).units for node in operators])


async def _has(bindings: Bindings, owner: Signer) -> bool:
    return await bindings.token.balance(owner.address) > 0


async def _until(done: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await done():
        if time.monotonic() > deadline:
            raise TimeoutError("the chain did not get there")
        await asyncio.sleep(0.2)
