"""`hivemint node`: serve a span of blocks, and the operator's business with the contracts."""

import asyncio
from typing import TYPE_CHECKING, Any

import typer

from hivemint.cli.console import JsonFlag, NetworkOption, PasswordFileOption, WalletOption, run_async
from hivemint.cli.node import registration
from hivemint.cli.node.operators import NameOption, operator_wallet, report, unlock, with_contracts
from hivemint.cli.node.report import pull_reward
from hivemint.cli.node.report import report as report_evidence
from hivemint.cli.node.serving import start
from hivemint.cli.node.standing import status
from hivemint.cli.transact import load_network
from hivemint.protocol.home import Home

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings

app = typer.Typer(help="Serve a span of blocks.")
app.command()(start)
for verb in (
    registration.register,
    status,
    registration.offer,
    registration.accept,
    registration.unbond,
    registration.withdraw,
):
    app.command()(verb)
app.command("report")(report_evidence)
app.command("pull-reward")(pull_reward)


@app.command()
def claim(
    wallet: WalletOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    name: NameOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Settle vouchers, claim donated work, mint its share: what a running node does by itself."""
    home, wallet = Home.open(), operator_wallet(wallet)
    operator = unlock(home, wallet, password_file)
    folder = home.node(name or wallet)

    async def work(contracts: "Bindings") -> dict[str, Any]:
        from hivemint.ledger.books.journal import Journal
        from hivemint.ledger.settlement.payments import ContractPayments
        from hivemint.ledger.settlement.settler import Settler

        url = f"sqlite:///{folder / 'journal.db'}"
        genesis = await contracts.chain.genesis()
        journal = await asyncio.to_thread(Journal.open, url, load_network(network).domain, operator.address, genesis)
        try:
            confirmations = load_network(network).confirmations
            settler = Settler(journal, ContractPayments(contracts, operator, confirmations=confirmations))
            burned = await settler.settle_now()
            await settler.round()
            return {
                "operator": operator.address,
                "settled_wei": int(burned),
                "donated_minted_wei": int(settler.donated_minted),
                "reasons": settler.reasons,
            }
        finally:
            await journal.close()

    report(run_async(with_contracts(network, work)), as_json)
