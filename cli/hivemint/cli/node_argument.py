"""NODE of a verb: an operator's address, or the readable name of a node, or the beginning of one that is no other's."""

from collections.abc import Sequence

from hivemint.cli.console import err, run_async
from hivemint.cli.transact import check_address
from hivemint.protocol.errors import BadInput
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.network import Network
from hivemint.protocol.node_name import matching, named, node_name, reads_as_name

_SHOWN = 8


def operator_of(text: str, network: Network, *, wallet: str | None = None, quiet: bool = False) -> Address:
    """Whom NODE means: an address as it is, a name among the registered nodes or, with `wallet`, among its accounts.

    A name is no proof of who it is: the address that it stands for is told, unless `quiet`. Raises BadInput for what
    is neither, and for a name that nobody or more than one has; ChainError.
    """
    if text.startswith("0x"):
        return check_address(text)
    if not reads_as_name(text):
        raise BadInput(
            f"{text!r} is not an address, and no node's name",
            why="a name is like candid-quail-52d6 or its beginning, an address like 0x and 40 hex digits",
            next_step="`hivemint swarm status` names the nodes",
        )
    client = Keystores().find(wallet).address if wallet else None
    known: list[Address] = run_async(_accounts(network, client) if client else _registered(network))
    found = one_of(text, known, f"accounts of {wallet}" if wallet else f"nodes of {network.name}")
    if not quiet:
        err.print(f"[dim]{node_name(found)} is {found}[/]", highlight=False, soft_wrap=True)
    return found


def one_of(text: str, known: Sequence[Address], where: str) -> Address:
    """The one that `text` names. Raises BadInput with the candidates."""
    found = matching(text, known)
    if len(found) == 1:
        return found[0]
    told = ", ".join(named(one) for one in (found or known)[:_SHOWN]) + (
        ", ..." if len(found or known) > _SHOWN else ""
    )
    if found:
        raise BadInput(
            f"{text!r} names {len(found)} of the {where}",
            why=told,
            next_step="write more of the name, or the operator's address",
        )
    raise BadInput(
        f"{text!r} names none of the {where}",
        why=f"there are {told}" if known else "there are none",
        next_step="`hivemint swarm status` names the nodes; an operator's address is taken too",
    )


async def _accounts(network: Network, client: Address) -> list[Address]:
    from hivemint.client.sessions.wallet import funded_nodes
    from hivemint.contracts.bindings import Bindings

    async with await Bindings.connect(network) as contracts:
        accounts = await funded_nodes(contracts, client, network.deployed_block)
    return [node for node, account in accounts.items() if account.balance or account.collected]


async def _registered(network: Network) -> list[Address]:
    """All nodes that were ever registered, by the registry's events."""
    from hivemint.contracts.bindings import Bindings

    async with await Bindings.connect(network) as contracts:
        events = await contracts.registry.read_events("Registered", network.deployed_block)
    return sorted({Address(event["node"]) for event in events})
