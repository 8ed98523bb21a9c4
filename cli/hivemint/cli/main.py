"""The `hivemint` command. Each group lives in a file of its own and is imported only when it is called."""

import importlib
import importlib.metadata
import sys
from typing import Annotated

import typer

from hivemint.cli.console import quiet_libraries, show_error
from hivemint.contracts.errors import HivemintError

GROUPS = {
    "model": ("hivemint.cli.model", "Models on this machine: pull, info, list."),
    "wallet": ("hivemint.cli.wallet", "Encrypted keystores: create, import, list, show."),
    "key": ("hivemint.cli.key", "Session keys of a wallet: authorize, revoke."),
    "account": ("hivemint.cli.account", "Credits in escrow at nodes: fund, thaw, cancel, withdraw, list."),
    "node": ("hivemint.cli.node", "Serve a span of blocks: register, start, status, claim, unbond, withdraw."),
    "chat": ("hivemint.cli.chat:chat", "Talk with a model through the swarm."),
    "generate": ("hivemint.cli.chat:generate", "One answer to one prompt, streamed."),
    "ledger": ("hivemint.cli.ledger", "Indexer, JSON API and the page of the swarm."),
    "testnet": ("hivemint.cli.testnet", "The whole thing on this machine: up, status, epoch, demo, down."),
    "contracts": ("hivemint.cli.contracts", "Compile, deploy and inspect the contracts."),
    "swarm": ("hivemint.cli.swarm", "Who serves what: status."),
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


def run() -> None:
    """Entry point: errors of ours are a few plain lines and exit code 1; Ctrl-C is 130."""
    quiet_libraries()
    chosen = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    try:
        build(chosen)()
    except HivemintError as error:
        show_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()
