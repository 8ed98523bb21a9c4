"""`hivemint node report | pull-reward`: prove that a node signed two receipts of one step, and take the reward."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hivemint.cli.console import JsonFlag, NetworkOption, PasswordFileOption, WalletOption, emit, out, run_async
from hivemint.cli.node.operators import ONE_COIN
from hivemint.cli.transact import load_network, unlocked
from hivemint.protocol import evidence
from hivemint.protocol.errors import BadInput
from hivemint.protocol.network import Network

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.bindings.registry import NodeInfo
    from hivemint.protocol.evidence import Equivocation

_LOST, _REWARD = 2, 10
"""What an equivocation costs: half of the stake; a tenth of that goes to who proves it (`Disputes`)."""


def report(
    file: Annotated[
        Path, typer.Argument(help="Evidence: what lies in client/evidence/ or nodes/NAME/evidence/.", metavar="FILE")
    ],
    wallet: WalletOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, send nothing; needs no wallet.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Prove to the contracts that a node has signed two receipts of one step: half of its stake is lost for it."""
    proof, place = evidence.read(file), load_network(network)
    _check_place(proof, place)
    signer = None if dry_run else unlocked(wallet, password_file)

    async def run() -> dict[str, Any]:
        from hivemint.contracts.bindings import Bindings

        async with await Bindings.connect(place) as contracts:
            known = await _check_node(contracts, proof)
            told: dict[str, Any] = {
                "node": proof.node,
                "session": proof.one.session_id,
                "step": proof.one.step,
                "owner": known.owner,
                "sent": signer is not None,
            }
            if signer is None:
                lost = (known.bonded + known.unbonding) // _LOST
                return told | {"lost_wei": lost, "reward_wei": lost // _REWARD}
            mined = await contracts.disputes.prove_equivocation(signer, proof.one, proof.other)
            slashed = contracts.registry.events_in(mined, "Slashed")
            sums = {name: sum(int(one[key]) for one in slashed) for name, key in _SUMS.items()}
            return told | sums | {"transaction": mined.hash, "block": mined.block, "gas": mined.gas_used}

    _tell(run_async(run()), as_json)


def pull_reward(
    wallet: WalletOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Take what this wallet's reports have earned."""
    place, signer = load_network(network), unlocked(wallet, password_file)

    async def run() -> int:
        from hivemint.contracts.bindings import Bindings

        async with await Bindings.connect(place) as contracts:
            reward = await contracts.registry.reward_of(signer.address)
            if not reward:
                raise BadInput("There is no reward to take", why=f"no report of {signer.address} has earned one")
            await contracts.registry.pull_reward(signer)
            return reward

    reward: int = run_async(run())
    if as_json:
        emit({"reward_wei": reward})
    else:
        out.print(f"[green]{_coins(reward)} taken[/]", highlight=False)


_SUMS = {"lost_wei": "lost", "reward_wei": "reward"}


def _check_place(proof: "Equivocation", network: Network) -> None:
    there, here = proof.domain, network.domain
    if there != here:
        raise BadInput(
            f"This evidence is not of {network.name}",
            why=f"its receipts were signed for {there.settlement} on chain {there.chain_id}, this network has "
            f"{here.settlement} on chain {here.chain_id}",
            next_step="pass the --network that the node served",
        )


async def _check_node(contracts: "Bindings", proof: "Equivocation") -> "NodeInfo":
    """Raises BadInput where nothing could be slashed."""
    known = await contracts.registry.node(proof.node)
    if known is None:
        raise BadInput(
            "This node has no stake", why=f"{proof.node} is not registered", next_step="nothing can be slashed there"
        )
    if known.retired:
        raise BadInput(
            "This node was slashed already", why=f"{proof.node} is retired: an operator key is slashed for it once"
        )
    return known


def _tell(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(told)
        return
    what = f"{told['node']} signed two receipts of step {told['step']}"
    sums = f"{_coins(told['lost_wei'])} of its stake, {_coins(told['reward_wei'])} of it to you"
    if not told["sent"]:
        out.print(f"[green]proved[/]  {what}; reporting it costs the node {sums}", highlight=False, soft_wrap=True)
        return
    out.print(f"[green]slashed[/]  {what}: it loses {sums}", highlight=False, soft_wrap=True)
    out.print("  [dim]next[/]  hivemint node pull-reward", highlight=False)
    out.print(f"  [dim]transaction[/] 0x{told['transaction'].hex()}", highlight=False, soft_wrap=True)


def _coins(wei: int) -> str:
    return f"{wei / ONE_COIN:,.6f} coins"
