"""The first credits of a testnet: earned by donated work and minted by the contracts, as on any network.

There is no premint. Nodes donate an answer, days pass on the chain's clock, the nodes claim and mint; then their
owners share what they have.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hivemint.contracts.bindings import Bindings, Status
from hivemint.contracts.chain import Transfer
from hivemint.protocol.errors import BadInput, ChainError
from hivemint.protocol.ids import Address, Credits
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer
from hivemint.testnet.devchain import CHAIN_ID, dev_signers
from hivemint.testnet.localnet import DEPLOYER, PEOPLE, NodePlan, next_epoch

if TYPE_CHECKING:
    from hivemint.testnet.localnet import LocalNet

NODES_TIME = 15.0
"""Seconds in which a node of the testnet has looked at the chain at least twice."""
MOST_COIN = 100 * 10**18
"""Of the faucet, to one wallet in one call; and it fills nobody above `RICH`."""
RICH = 10_000 * 10**18
QUESTION = "Tell me in a few words why the sky is blue. "
DONATED = 480
"""Positions of a donated prompt: quick to compute at once, and worth a few paid answers when it is minted."""
_SHARE = 2
"""A node's owner gives one part of so many at a time."""


def owner_key(plan: NodePlan) -> Signer:
    return dev_signers()[PEOPLE.index(plan.owner) * 2 + 1]


def node_key(plan: NodePlan) -> Signer:
    return dev_signers()[PEOPLE.index(plan.owner) * 2 + 2]


async def pass_epoch(network: Network, plans: Sequence[NodePlan], *, wait: bool = True) -> int:
    """Let an epoch pass; with `wait` until the nodes have claimed and minted, or have had their time to. Its number."""
    nodes = [node_key(plan).address for plan in plans]
    now = await next_epoch(network)
    async with await Bindings.connect(network) as contracts:
        emission, deadline = contracts.emission, time.monotonic() + (NODES_TIME if wait else 0.0)
        while time.monotonic() < deadline:
            claimed = [(await emission.claim_of(node, now - 1)).units > 0 for node in nodes]
            owed = [(await emission.pending(node, now - 2)).status is Status.MINTABLE for node in nodes]
            if all(claimed) and not any(owed):
                break
            await asyncio.sleep(0.5)
    return now


async def held(network: Network) -> dict[str, Credits]:
    """What each of the testnet's people holds."""
    async with await Bindings.connect(network) as contracts:
        return {
            name: await contracts.token.balance(signer.address)
            for name, signer in zip(PEOPLE, dev_signers()[1::2], strict=False)
        }


async def earn(net: "LocalNet", epochs: int, tell: Callable[[str], None]) -> dict[str, Credits]:
    """Let epochs pass. Of the first one stake counts; what is donated in an epoch is claimed in the next one and
    minted in the one after, so three bring the first credits. In the end the owners give Bob a part of theirs.
    """
    for number in range(epochs):
        tell(f"epoch {number + 1} of {epochs} passes")
        await pass_epoch(net.network, net.plans, wait=number > 0)
        if epochs - number > 2:
            tell("the nodes read a page of questions for nothing: donated work, with real receipts")
            await asyncio.to_thread(_donate, net)
    async with await Bindings.connect(net.network) as contracts:
        await _until_minted(contracts, net.plans if epochs > 2 else ())
        for plan in net.plans:
            if share := await contracts.token.balance(owner_key(plan).address) // _SHARE:
                tell(f"{plan.owner} sends Bob a part of what the node has minted")
                await contracts.token.transfer(
                    owner_key(plan), dev_signers()[PEOPLE.index("bob") * 2 + 1].address, share
                )
    return await held(net.network)


async def drip(
    network: Network, plans: Sequence[NodePlan], to: Address, coin: int, credits: int | None
) -> tuple[int, int]:
    """Coin from the testnet's own rich account, and credits that node owners have earned; how much of each.

    `credits` None: a part of what the owners hold. Raises BadInput above the limits or for more than there is,
    ChainError on a chain that is no development chain.
    """
    if network.chain_id != CHAIN_ID:
        raise ChainError(
            "There is no faucet on this network",
            why=f"{network.name} is chain {network.chain_id}, the local testnet is {CHAIN_ID}",
            next_step="start a testnet with `hivemint testnet up`",
        )
    if not 0 <= coin <= MOST_COIN:
        raise BadInput("The faucet gives 100 coins at most", why="one call gives no more", next_step="ask again later")
    async with await Bindings.connect(network) as contracts:
        chain = contracts.chain
        coin = max(0, min(coin, RICH - await chain.balance(to)))
        holders = [(owner_key(plan), await contracts.token.balance(owner_key(plan).address)) for plan in plans]
        holders = [(owner, has) for owner, has in holders if has and owner.address != to]
        parts = _parts([has for _, has in holders], credits)
        if coin:
            rich = dev_signers(DEPLOYER + 1)[DEPLOYER]
            await chain.send(rich, Transfer(chain, to), doing="Sending coin", value=coin)
        for (owner, _), part in zip(holders, parts, strict=True):
            if part:
                await contracts.token.transfer(owner, to, part)
    return coin, sum(parts)


def _parts(holdings: Sequence[int], wanted: int | None) -> list[int]:
    """How much each owner gives; None: a share of what each has. Raises BadInput for more than all of them hold."""
    if wanted is None:
        return [has // _SHARE for has in holdings]
    if wanted > sum(holdings):
        raise BadInput(
            "The owners of the testnet's nodes hold less than that",
            why=f"they have {sum(holdings)} wei in all: nothing is minted that no work was done for",
            next_step="let nodes earn: ask them something, then `hivemint testnet epoch` twice",
        )
    parts: list[int] = []
    for has in holdings:
        parts.append(min(has, wanted - sum(parts)))
    return parts


def _donate(net: "LocalNet") -> None:
    from transformers import AutoTokenizer

    from hivemint.client import SwarmModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(net.model.folder)
    ids = tokenizer(QUESTION * (DONATED // 10), return_tensors="pt").input_ids[:, :DONATED]
    with SwarmModelForCausalLM.from_pretrained(net.model.folder, network=net.network_file, home=net.home) as model:
        model.generate(ids, max_new_tokens=8, do_sample=False)


async def _until_minted(contracts: Bindings, plans: Sequence[NodePlan]) -> None:
    """Raises ChainError if not one owner has credits in time."""
    deadline = time.monotonic() + 2 * NODES_TIME
    owners = [owner_key(plan).address for plan in plans]
    while owners and not any([await contracts.token.balance(owner) for owner in owners]):
        if time.monotonic() > deadline:
            raise ChainError(
                "No node has minted yet",
                why="the epochs passed, but what was donated is not minted",
                next_step="look into the logs that `hivemint testnet status` names, or `hivemint testnet epoch`",
            )
        await asyncio.sleep(0.5)
