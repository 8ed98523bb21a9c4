"""The tree of verbs. Each group lives in a file of its own and is imported only when it is called."""

import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Annotated, Any

import typer

GROUPS = {
    "model": ("hivemint.cli.model", "Models on this machine: pull, info, list."),
    "wallet": ("hivemint.cli.wallet.wallets", "Encrypted keystores: create, import, list, show, send."),
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
    "testnet": (
        "hivemint.cli.testnet",
        "The whole thing on this machine: up, env, status, epoch, faucet, chain, demo, down.",
    ),
    "contracts": ("hivemint.cli.contracts", "Compile, deploy and inspect the contracts."),
    "swarm": ("hivemint.cli.swarm", "Who serves what, and how others join: status, bootstrap, invite, join."),
    "doctor": ("hivemint.cli.doctor:doctor", "Check this machine: libraries, memory, home folder, network, chain."),
    "config": ("hivemint.cli.config", "Settings and where each value comes from: show."),
    "help": ("hivemint.cli.terminal.about:help_", "What a verb does and which options it has."),
    "version": ("hivemint.cli.terminal.about:version", "Which version this is, and on what it runs."),
}
PROGRAM = "hivemint"


def call(words: Sequence[str]) -> int:
    """Run the verb that `words` name. Returns its exit code; raises what it ends with, and typer's errors of usage."""
    from hivemint.cli.terminal import completion

    typed = completion.words() or words
    chosen = next((word for word in typed if not word.startswith("-")), None)
    code = command(chosen).main(list(words), prog_name=PROGRAM, standalone_mode=False)
    return code if isinstance(code, int) else 0


def command(chosen: str | None) -> Any:
    """The command tree as typer runs it, with what completes its values."""
    from typer.main import get_command

    from hivemint.cli.terminal import about, completion

    root = get_command(build(chosen))
    about.tell_whole(root)
    completion.attach(root)
    return root


def build(chosen: str | None) -> typer.Typer:
    """The command tree. Help needs only the table above, so only the `chosen` group's module is imported."""
    from hivemint.cli.terminal.about import help_form

    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=help_form(),
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
