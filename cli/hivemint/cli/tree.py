"""The tree of verbs. Each group lives in a file of its own and is imported only when it is called."""

import importlib
import importlib.metadata
from typing import Annotated

import typer

GROUPS = {
    "model": ("hivemint.cli.model", "Models on this machine: pull, info, list."),
    "wallet": ("hivemint.cli.wallet.wallets", "Encrypted keystores: create, import, list, show."),
    "key": ("hivemint.cli.wallet.keys", "Session keys of a wallet: authorize, revoke."),
    "account": (
        "hivemint.cli.wallet.account",
        "Credits in escrow at nodes: fund, thaw, cancel, withdraw, close, send-order, list, new-books.",
    ),
    "node": (
        "hivemint.cli.node.verbs",
        "Serve a span of blocks: register, start, status, claim, report, pull-reward, offer, accept, unbond, withdraw.",
    ),
    "chat": ("hivemint.cli.chat:chat", "Talk with a model through the swarm."),
    "generate": ("hivemint.cli.chat:generate", "One answer to one prompt, streamed."),
    "ledger": ("hivemint.cli.ledger", "Indexer, JSON API and the page of the swarm."),
    "testnet": ("hivemint.cli.testnet", "The whole thing on this machine: up, env, status, epoch, chain, demo, down."),
    "contracts": ("hivemint.cli.contracts", "Compile, deploy and inspect the contracts."),
    "swarm": ("hivemint.cli.swarm", "Who serves what, and how others join: status, bootstrap, invite, join."),
    "doctor": ("hivemint.cli.doctor:doctor", "Check this machine: libraries, memory, home folder, network, chain."),
    "config": ("hivemint.cli.config", "Settings and where each value comes from: show."),
}


def build(chosen: str | None) -> typer.Typer:
    """The command tree. Help needs only the table above, so only the `chosen` group's module is imported."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Run large models on many people's machines; earn credits by serving, spend them to go first.",
    )
    app.callback(invoke_without_command=True)(_root)
    for name, (where, summary) in GROUPS.items():
        module, _, attribute = where.partition(":")
        if name != chosen:
            app.command(name, help=summary)(_not_chosen)
        elif attribute:
            app.command(name, help=summary)(getattr(importlib.import_module(module), attribute))
        else:
            app.add_typer(importlib.import_module(module).app, name=name, help=summary, no_args_is_help=True)
    return app


def _not_chosen() -> None:
    """Stands for a group in `hivemint --help`; never called."""


def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"hivemint {importlib.metadata.version('hivemint')}")
        raise typer.Exit
