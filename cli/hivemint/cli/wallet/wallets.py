"""`hivemint wallet create | import | list | show | send`: encrypted keystores."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hivemint.cli.console import JsonFlag, NetworkOption, PasswordFileOption, emit, out, run_async, shown, table
from hivemint.cli.wallet.sending import send
from hivemint.cli.wallet.sources import ways_to_credits
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import BadInput, WalletError
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, SCRYPT_N, Keystores, Wallet, read_password
from hivemint.protocol.network import Network

app = typer.Typer(help="Encrypted keystores: create, import, list, show, send.")
app.command()(send)
NameArgument = Annotated[str, typer.Argument(help="Name of the wallet.", metavar="NAME")]
WeakFlag = Annotated[
    bool, typer.Option("--weak", help="Encrypt quickly instead of well. Only for keys that guard nothing.")
]


@app.command()
def create(
    name: NameArgument, password_file: PasswordFileOption = None, weak: WeakFlag = False, as_json: JsonFlag = False
) -> None:
    """A new random key, encrypted with a password."""
    keystores = Keystores()
    keystores.vacant(name)
    password = read_password(name, file=password_file, confirm=True)
    _created(keystores.create(name, password, n=_cost(weak)), as_json)


@app.command("import")
def import_wallet(
    name: NameArgument,
    keystore: Annotated[Path | None, typer.Option(help="A v3 keystore of another program.", metavar="FILE")] = None,
    key_file: Annotated[Path | None, typer.Option(help="A file with 64 hex digits.", metavar="FILE")] = None,
    password_file: PasswordFileOption = None,
    weak: WeakFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """A key that exists: a keystore, a file with the private key, or asked for at the terminal."""
    if keystore is not None and key_file is not None:
        raise BadInput("--keystore and --key-file exclude each other", next_step="name one of them")
    keystores = Keystores()
    keystores.vacant(name)
    if keystore is not None:
        password = read_password(name, file=password_file)
        return _created(keystores.import_file(name, keystore, password, n=_cost(weak)), as_json)
    key = _read_key(key_file) if key_file is not None else _asked_key()
    password = read_password(name, file=password_file, confirm=True)
    return _created(keystores.import_key(name, key, password, n=_cost(weak)), as_json)


@app.command("list")
def list_wallets(as_json: JsonFlag = False) -> None:
    """All wallets of this user."""
    wallets = Keystores().list()
    if as_json:
        emit([_described(wallet) for wallet in wallets])
    elif not wallets:
        out.print("no wallets yet: `hivemint wallet create NAME` makes one")
    else:
        table("Wallets", "name", "address", rows=[(wallet.name, wallet.address) for wallet in wallets])


@app.command()
def show(name: NameArgument, network: NetworkOption = None, as_json: JsonFlag = False) -> None:
    """One wallet's address; with a network also its credits and the coin that pays for gas."""
    wallet = Keystores().find(name)
    document = _described(wallet)
    ways: tuple[str, ...] = ()
    if network is not None:
        place = Network.load(network)
        document |= run_async(_balances(place, wallet))
        ways = () if document["credits"] else ways_to_credits(place, name)
        document["ways_to_credits"] = list(ways)
    if as_json:
        emit(document)
        return
    out.print(f"[dim]address[/]  {wallet.address}", highlight=False)
    out.print(f"[dim]file[/]     {shown(str(wallet.path))}", highlight=False, soft_wrap=True)
    if "credits" in document:
        out.print(f"[dim]credits[/]  {format_credits(document['credits'])}", highlight=False)
        out.print(f"[dim]coin[/]     {document['coin'] / 10**18:.6f} (pays for gas and stake)", highlight=False)
    for way in ways:
        out.print(f"[dim]get some[/] {shown(way)}", highlight=False, soft_wrap=True)


async def _balances(network: Network, wallet: Wallet) -> dict[str, int]:
    from hivemint.contracts.bindings import Bindings

    async with await Bindings.connect(network) as contracts:
        return {
            "credits": await contracts.token.balance(wallet.address),
            "coin": await contracts.chain.balance(wallet.address),
        }


def _created(wallet: Wallet, as_json: bool) -> None:
    if as_json:
        emit(_described(wallet))
    else:
        out.print(f"[green]wallet {wallet.name}[/]  {wallet.address}", highlight=False)
        out.print(f"  {shown(str(wallet.path))}", highlight=False, soft_wrap=True)
        out.print("  [dim]Keep this file and its password: nobody can restore either.[/]")


def _described(wallet: Wallet) -> dict[str, Any]:
    return {"name": wallet.name, "address": wallet.address, "file": str(wallet.path)}


def _asked_key() -> str:
    """Typed unseen at a terminal; a line of a pipe otherwise."""
    if sys.stdin.isatty():
        return str(typer.prompt("Private key", hide_input=True))
    if line := sys.stdin.readline(256).strip():
        return line
    raise BadInput(
        "Nothing was entered", why="no private key came", next_step="pass --key-file FILE or --keystore FILE"
    )


def _read_key(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(256)
    except (OSError, UnicodeDecodeError) as error:
        raise WalletError(f"The key file {path} cannot be read", why=str(error)) from None


def _cost(weak: bool) -> int:
    return CHEAP_SCRYPT_N if weak else SCRYPT_N
