"""What a registration would change, told before it is changed; and the transactions that do it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hivemint.protocol.errors import BadInput, ConfigError
from hivemint.protocol.ids import Address, PeerId
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer
from hivemint.protocol.text import utc

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.bindings.registry import NodeInfo

ONE_COIN = 10**18
GAS = 400_000
"""More than a registration with its bond takes (benchmarks/gas.py)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an operator asks for. `stake` is what shall be bonded in all, `add` what comes on top; wei of coin."""

    peer_hash: bytes
    payout: Address | None = None
    stake: int | None = None
    add: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """What has to be done, and each part of it in words."""

    register: bool = False
    peer: bool = False
    payout: Address | None = None
    bond: int = 0
    lines: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.register or self.peer or self.payout is not None or self.bond > 0


def difference(known: "NodeInfo | None", wanted: Wanted, minimum: int, holder: Address) -> Difference:
    """Raises BadInput for less stake than is bonded and for another owner's node, ConfigError for a retired key and
    where a stake is still leaving."""
    if wanted.stake is not None and wanted.add is not None:
        raise BadInput("--stake and --add exclude each other", why="one is a target, the other comes on top")
    if known is None:
        bond = wanted.stake if wanted.stake is not None else minimum if wanted.add is None else wanted.add
        _reaches(bond, minimum)
        return Difference(register=True, payout=wanted.payout, bond=bond, lines=[f"stake: {coins(bond)}"])
    if known.retired:
        raise ConfigError(
            "This operator key is retired",
            why="an equivocation was proved against it",
            next_step="register a new operator key",
        )
    bond = _bond(known, wanted)
    if bond and known.unbonding:
        raise leaving(known)
    if bond:
        _reaches(known.bonded + bond, minimum)
    payout = wanted.payout if wanted.payout and wanted.payout != known.payout else None
    peer, lines = known.peer_id_hash != wanted.peer_hash, []
    if peer:
        lines.append(f"peer id: {_short(known.peer_id_hash)} -> {_short(wanted.peer_hash)}, the key of this folder")
    if payout:
        lines.append(f"payout: {known.payout} -> {payout}")
    if bond:
        lines.append(f"stake: {coins(known.bonded)} -> {coins(known.bonded + bond)}, {coins(bond)} more")
    if lines and known.owner != holder:
        raise BadInput(
            "Only the owner of a node changes its registration",
            why=f"it is {known.owner}, this wallet is {holder}",
            next_step="pass --owner NAME, the owner's wallet",
        )
    return Difference(peer=peer, payout=payout, bond=bond, lines=lines)


def _reaches(stake: int, minimum: int) -> None:
    """Raises BadInput for a stake that the registry refuses; none at all is no stake."""
    if 0 < stake < minimum:
        raise BadInput(
            f"A stake of {coins(stake)} is too small",
            why=f"the registry takes {coins(minimum)} at least",
            next_step=f"--stake {minimum / ONE_COIN:g} is enough; --stake 0 registers without one, for paid work alone",
        )


async def check_coin(contracts: "Bindings", holder: Address, what: Difference) -> int:
    """What the holder has, wei of coin. Raises ConfigError where stake and gas are more."""
    chain = contracts.chain
    balance = await chain.balance(holder)
    if not what.bond:
        return balance
    async with chain.explained("Reading the gas price"):
        gas = GAS * await chain.fees.price(chain.w3)
    if balance < what.bond + gas:
        raise ConfigError(
            f"A stake of {coins(what.bond)} is more than this wallet can pay",
            why=f"{holder} holds {coins(balance)}, and gas can take {coins(gas)}",
            next_step="send coin to this address, or bond less with --stake AMOUNT",
        )
    return balance


def leaving(known: "NodeInfo") -> ConfigError:
    """Why nothing is bonded or unbonded now, and what comes first."""
    end = utc(known.unbond_end, to_the_minute=True)
    return ConfigError(
        f"The stake of this node is leaving: {coins(known.unbonding)}",
        why=f"no other stake can be bonded before that one is out, which can be after {end}",
        next_step="then `hivemint node withdraw`, and `hivemint node register --stake AMOUNT` bonds anew",
    )


def _bond(known: "NodeInfo", wanted: Wanted) -> int:
    if wanted.add is not None:
        return wanted.add
    if wanted.stake is None or wanted.stake == known.bonded:
        return 0
    if wanted.stake < known.bonded:
        raise BadInput(
            f"--stake {coins(wanted.stake)} is less than what is bonded, {coins(known.bonded)}",
            why="stake can only be taken out whole",
            next_step="`hivemint node unbond` begins that; --add AMOUNT bonds more",
        )
    return wanted.stake - known.bonded


async def carry_out(
    contracts: "Bindings", network: Network, holder: Signer, operator: Signer, peer: PeerId, what: Difference
) -> None:
    """Raises ChainError."""
    registry = contracts.registry
    if what.register:
        await registry.register(holder, operator, peer, network.domain, payout=what.payout, stake=what.bond)
        return
    if what.peer:
        await registry.set_peer(holder, operator, peer, network.domain)
    if what.payout:
        await registry.set_payout(holder, operator.address, what.payout)
    if what.bond:
        await registry.bond(holder, operator.address, what.bond)


def agree(what: Difference, *, yes: bool, quiet: bool, node: Sequence[str] = ()) -> bool:
    """Whether it is to be done. `quiet`: nobody is there to be asked; `node`: of what the first question is.

    Where nobody is asked a first registration is agreed to by the command itself; a change of one that exists is not:
    it raises BadInput without `yes`.
    """
    import typer

    from hivemint.cli.console import out, shown

    if yes or not what:
        return True
    asked = not quiet and sys.stdin.isatty() and sys.stdout.isatty()
    if not asked and what.register:
        return True
    if not asked:
        raise BadInput(
            "The node is registered already, otherwise than asked",
            why="; ".join(what.lines),
            next_step="pass --yes to change it so",
        )
    out.print("This registers a node:" if what.register else "The node is registered already; this changes:")
    for line in (*(node if what.register else ()), *what.lines):
        out.print(f"  {shown(line)}", highlight=False, soft_wrap=True)
    text = question(what) if what.register else "change it"
    return typer.confirm(f"{text.capitalize()}?", default=True)


def question(change: Difference) -> str:
    """The part of a question that is about the registry."""
    if change.register:
        return "register, bond" if change.bond else "register"
    return " and ".join(
        text for text, wanted in (("change the registration", change.peer), ("bond", change.bond)) if wanted
    )


def coins(wei: int) -> str:
    """Every digit that matters: `1 coin`, `0.0312 coins`."""
    text = f"{wei / ONE_COIN:,.6f}".rstrip("0").rstrip(".")
    return "1 coin" if wei == ONE_COIN else f"{text} coins"


def _short(value: bytes) -> str:
    return f"0x{value.hex()[:8]}..."
