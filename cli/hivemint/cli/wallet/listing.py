"""`hivemint account list`: what may still be spent at each node, and why not more."""

import asyncio
from dataclasses import dataclass
from typing import Any

from hivemint.cli.console import JsonFlag, NetworkOption, WalletOption, emit, need, out, run_async, shown
from hivemint.cli.transact import load_network
from hivemint.cli.wallet.sources import ways_to_credits
from hivemint.protocol.credits import format_credits
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.network import Network
from hivemint.protocol.node_name import named, node_name
from hivemint.protocol.text import utc


@dataclass(frozen=True, slots=True)
class Listed:
    """One account, in wei. `confirmed`: what of `balance` + `collected` the last confirmed block knows.

    `promised`: the highest total of the vouchers signed for the node. Times in seconds since 1970.
    """

    balance: int
    collected: int
    promised: int
    confirmed: int
    thaw_end: int

    @property
    def waiting(self) -> int:
        """Deposited, but in no confirmed block yet: nodes don't count it."""
        return 0 if self.thaw_end else max(0, self.balance + self.collected - self.confirmed)

    @property
    def left(self) -> int:
        """What may still be spent: the deposit that counts, less what is collected or signed away; nothing while it
        thaws."""
        if self.thaw_end:
            return 0
        counted = self.balance + self.collected - self.waiting
        return max(0, counted - max(self.collected, self.promised))

    def state(self, now: int, confirmations: int) -> str:
        if self.thaw_end:
            return (
                f"thaws until {utc(self.thaw_end)}" if self.thaw_end >= now else "thawed: `hivemint account withdraw`"
            )
        if self.waiting:
            return f"open; {format_credits(self.waiting, 9)} not counted yet ({confirmations} blocks)"
        return "open"


def list_accounts(network: NetworkOption = None, wallet: WalletOption = None, as_json: JsonFlag = False) -> None:
    """A wallet's accounts: what may still be spent, what is there, what nodes have collected, what vouchers promise."""
    name = need(wallet, "No wallet", "pass --wallet NAME or set HIVEMINT_WALLET")
    place = load_network(network)
    rows = run_async(_accounts(place, Keystores().find(name).address))
    if as_json:
        emit(rows)
    elif not rows:
        out.print("no accounts yet: `hivemint account fund AMOUNT` opens some", soft_wrap=True)
        for way in ways_to_credits(place, name):
            out.print(f"  [dim]credits[/]  {shown(way)}", highlight=False, soft_wrap=True)
    else:
        out.print(f"[bold]Accounts of {shown(name)}[/]", highlight=False)
        for row in rows:
            sums = ", ".join(f"{one} {format_credits(row[one], 9)}" for one in ("balance", "collected", "promised"))
            out.print(f"the account at {named(row['node'])}", highlight=False, soft_wrap=True)
            left = format_credits(row["left"], 9)
            out.print(f"  left {left}; {sums}; {row['state']}", highlight=False, soft_wrap=True)


async def _accounts(network: Network, client: Address) -> list[dict[str, Any]]:
    from hivemint.client.sessions.wallet import funded_nodes
    from hivemint.contracts.bindings import Bindings
    from hivemint.ledger.books.voucher_book import VoucherBook

    async with await Bindings.connect(network) as contracts:
        accounts = await funded_nodes(contracts, client, network.deployed_block)
        sure = max(0, await contracts.chain.block_number() - network.confirmations)
        confirmed = await asyncio.gather(
            *(contracts.settlement.account(client, node, block=max(sure, network.deployed_block)) for node in accounts)
        )
        now = await contracts.chain.time()
        genesis = await contracts.chain.genesis()
    book = VoucherBook.open(Home.open().client / "vouchers.db", network.domain, client, genesis)
    try:
        promised = book.totals()
    finally:
        book.close()
    return [
        {
            "name": node_name(node),
            "node": node,
            "left": one.left,
            "balance": one.balance,
            "collected": one.collected,
            "promised": one.promised,
            "waiting": one.waiting,
            "thaw_end": one.thaw_end,
            "state": one.state(now, network.confirmations),
        }
        for node, account, old in zip(accounts, accounts.values(), confirmed, strict=True)
        for one in [
            Listed(
                account.balance,
                account.collected,
                promised.get(node, (0, 0))[0],
                old.balance + old.collected,
                account.thaw_end,
            )
        ]
    ]
