"""What a wallet has, and what of it may still be spent at the nodes of a model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import HivemintError
from hivemint.protocol.network import Network
from hivemint.protocol.text import plain

if TYPE_CHECKING:
    from hivemint.client import SwarmModelForCausalLM
    from hivemint.client.sessions.swarm_client import SwarmClient


@dataclass(frozen=True, slots=True)
class Means:
    """`credits`: of the wallet itself. `left`: what the account at each node that serves still admits. In wei.

    `trouble`: why they could not be read; the rest is nothing then.
    """

    credits: int = 0
    left: tuple[int, ...] = ()
    trouble: str = ""

    @property
    def spendable(self) -> int:
        return sum(self.left)

    def document(self) -> dict[str, Any]:
        if self.trouble:
            return {"credits_wei": None, "spendable_wei": None, "trouble": self.trouble}
        return {"credits_wei": self.credits, "spendable_wei": self.spendable}

    def __str__(self) -> str:
        if self.trouble:
            return f"unknown: {self.trouble}"
        text = f"{format_credits(self.credits)} in the wallet, "
        if self.spendable:
            funded = sum(amount > 0 for amount in self.left)
            return text + f"{format_credits(self.spendable)} may still be spent at {funded} of {len(self.left)} nodes"
        text += "nothing in escrow that may be spent"
        if self.credits:
            return text + ": `hivemint account fund AMOUNT` deposits some at the nodes"
        return text + ": credits are earned by serving (`hivemint node start`), or come from somebody who has some"


async def _look(network: Network, swarm: "SwarmClient") -> Means:
    from hivemint.contracts.bindings import Bindings

    async with await Bindings.connect(network) as contracts:
        credits = await contracts.token.balance(swarm.payer.who.client)
    left = await swarm.spendable() or {}
    return Means(int(credits), tuple(int(amount) for amount in left.values()))


def means_of(model: "SwarmModelForCausalLM", network: Network) -> Means:
    """As the chain and this machine's books have it now. What can't be asked is told, not raised."""
    swarm: Any = model.swarm
    try:
        return model.run(_look(network, swarm))
    except HivemintError as error:
        return Means(trouble=plain(error.what))
