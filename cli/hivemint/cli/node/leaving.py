"""What `hivemint node unbond` means, told and agreed to before it is done: nothing takes it back."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from hivemint.cli.console import out, shown
from hivemint.cli.node.registering import coins, leaving
from hivemint.protocol.errors import BadInput, ConfigError
from hivemint.protocol.ids import Address
from hivemint.protocol.node_name import named
from hivemint.protocol.text import utc

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings

_DAY, _HOUR = 86_400, 3600


@dataclass(frozen=True, slots=True)
class StakeLeaving:
    """The stake that would leave, in wei of coin; how long that takes, in seconds; when it would be over."""

    operator: Address
    stake: int
    lasts: int
    end: int

    @property
    def lines(self) -> list[str]:
        when = utc(self.end, to_the_minute=True)
        return [
            f"node: {named(self.operator)}",
            f"stake: all of it, {coins(self.stake)}; `hivemint node withdraw` takes it out after {when}, "
            f"in {_long(self.lasts)}",
            "pay: donated work is not paid from now on; paid work goes on",
            "new stake: none can be bonded before that one is out; nothing takes this back",
        ]


async def what_leaves(contracts: "Bindings", operator: Address, holder: Address) -> StakeLeaving:
    """Raises ConfigError where nothing can leave, BadInput for another owner's node."""
    known = await contracts.registry.node(operator)
    if known is None:
        raise ConfigError(
            f"{named(operator)} is not registered", next_step="`hivemint node register` does that, and bonds a stake"
        )
    if known.owner != holder:
        raise BadInput(
            "Only the owner of a node takes its stake out",
            why=f"it is {known.owner}, this wallet is {holder}",
            next_step="pass --owner NAME, the owner's wallet",
        )
    if known.unbonding:
        raise leaving(known)
    if not known.bonded:
        raise ConfigError(
            f"{named(operator)} has no stake", next_step="`hivemint node register --stake AMOUNT` bonds some"
        )
    lasts = (await contracts.parameters.fixed()).unbond
    return StakeLeaving(operator, known.bonded, lasts, await contracts.chain.time() + lasts)


def agree_to_leave(what: StakeLeaving, *, yes: bool, quiet: bool) -> None:
    """`quiet`: nobody is there to be asked. Raises BadInput without an agreement, ConfigError for a no."""
    if yes:
        return
    if quiet or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadInput(
            "Unbonding takes the whole stake out, and nothing takes it back",
            why="; ".join(what.lines),
            next_step="pass --yes to do it",
        )
    out.print("This begins to take the stake out:")
    for line in what.lines:
        out.print(f"  {shown(line)}", highlight=False, soft_wrap=True)
    if not typer.confirm("Unbond it?", default=False):
        raise ConfigError("Nothing was done", why="the question was not answered with yes")


def _long(seconds: int) -> str:
    for unit, name in ((_DAY, "day"), (_HOUR, "hour")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}{'' if seconds == unit else 's'}"
    return f"{seconds} s"
