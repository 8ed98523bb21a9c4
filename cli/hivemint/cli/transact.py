"""What verbs share that change something on the chain: by a transaction of the wallet, or by an order that it signs."""

import shlex
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hivemint.cli.console import NO_NETWORK, emit, need, out, run_async, shown
from hivemint.protocol.addresses import read_address
from hivemint.protocol.eip712 import MAX_UINT96
from hivemint.protocol.errors import BadInput
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import Keystores, read_password
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.chain import Mined
    from hivemint.contracts.order_file import AnyOrder, SignedOrder

Act = Callable[["Bindings", Signer], Awaitable["Mined"]]
NodeArgument = Annotated[str, typer.Argument(help="The node's name, or its operator's address.", metavar="NODE")]
SignOnlyOption = Annotated[
    Path | None,
    typer.Option(
        "--sign-only",
        help="Send nothing: write the signed order to FILE (- for the terminal), for anybody to send. "
        "The wallet needs no coin then.",
        metavar="FILE",
    ),
]
HoursOption = Annotated[float | None, typer.Option("--hours", help="With --sign-only: how long it is good [24].")]
NonceOption = Annotated[
    int | None,
    typer.Option(
        "--nonce", help="With --sign-only: of an order that goes after others signed before.", min=0, max=MAX_UINT96
    ),
]
_USUAL_HOURS, _LONGEST_HOURS = 24.0, 24 * 365


@dataclass(frozen=True, slots=True)
class SignOnly:
    """Whether an order is only signed: into `file`, good for `hours`, with `nonce` or else the wallet's next."""

    file: Path | None
    hours: float | None
    nonce: int | None

    @property
    def seconds(self) -> int:
        """Raises BadInput for no time at all, and for more than a year."""
        hours = _USUAL_HOURS if self.hours is None else self.hours
        if not 1 <= hours * 3600 <= _LONGEST_HOURS * 3600:  # false for what is no number, too
            raise BadInput(f"An order cannot be good for {hours:g} hours", why="a second at least, a year at most")
        return int(hours * 3600)


@dataclass(frozen=True, slots=True)
class Ready:
    """What an order is made of. `deadline` and `now` in seconds since 1970, by the chain's time."""

    client: Address
    nonce: int
    deadline: int
    now: int


def check_address(text: str) -> Address:
    """Raises BadInput unless it is an address; mixed case must carry the right checksum."""
    found = read_address(text)
    if found is None:
        raise BadInput(
            f"{text!r} is not an address",
            why="an address is 0x and 40 hex digits, mixed case with the checksum of EIP-55",
            next_step="copy it anew from where it was told: one digit or letter in another case is enough for this",
        )
    if not int(found, 16):
        raise BadInput("The zero address is nobody's", next_step="name whom you mean")
    return found


def unlocked(wallet: str | None, password_file: Any) -> Signer:
    """The key of `--wallet`. Raises ConfigError without one, WalletError."""
    name = need(wallet, "No wallet", "pass --wallet NAME or set HIVEMINT_WALLET")
    keystores = Keystores()
    keystores.find(name)
    return keystores.unlock(name, read_password(name, file=password_file))


def load_network(path: Any) -> Network:
    return Network.load(need(path, "No network file", NO_NETWORK))


def send_transaction(
    network: Network, wallet: str | None, password_file: Any, act: Act, done: str, as_json: bool
) -> None:
    """Sign a transaction of the wallet, wait until it is mined, tell its cost."""
    signer = unlocked(wallet, password_file)

    async def run() -> "Mined":
        from hivemint.contracts.bindings import Bindings

        async with await Bindings.connect(network) as contracts:
            return await act(contracts, signer)

    tell_mined(run_async(run()), done, as_json)


def tell_mined(mined: "Mined", done: str, as_json: bool, **more: Any) -> None:
    """One line, or one document with `more` in it."""
    if as_json:
        emit({"transaction": mined.hash, "block": mined.block, "gas": mined.gas_used, **more})
    else:
        out.print(f"[green]{done}[/]  [dim]transaction[/] 0x{mined.hash.hex()}", highlight=False, soft_wrap=True)


def send_or_sign(
    network: Network,
    wallet: str | None,
    password_file: Any,
    act: Act,
    order: Callable[[Ready], "AnyOrder | Awaitable[AnyOrder]"],
    done: str,
    signing: SignOnly,
    as_json: bool,
) -> None:
    """`act` as a transaction of the wallet, or with --sign-only the same thing as an order in a file."""
    if signing.file is None:
        for name in ("nonce", "hours"):
            if getattr(signing, name) is not None:
                raise BadInput(f"--{name} is of an order that is signed", next_step="pass --sign-only FILE")
        return send_transaction(network, wallet, password_file, act, done, as_json)
    lasts = signing.seconds
    signer = unlocked(wallet, password_file)

    async def run() -> "SignedOrder":
        from hivemint.contracts.bindings import Bindings

        async with await Bindings.connect(network) as contracts:
            now = await contracts.chain.time()
            nonce = await contracts.settlement.nonce(signer.address) if signing.nonce is None else signing.nonce
            made = order(Ready(signer.address, nonce, now + lasts, now))
            return await _signed(contracts, network, signer, await made if isinstance(made, Awaitable) else made)

    return write_order(run_async(run()), signing.file, as_json)


async def _signed(contracts: "Bindings", network: Network, signer: Signer, order: "AnyOrder") -> "SignedOrder":
    """A deposit goes with a permit, so that the escrow may take the credits and nothing else has to be sent."""
    from hivemint.contracts.order_file import SignedOrder
    from hivemint.protocol.orders import Fund

    permit = None
    if isinstance(order, Fund):
        now, total = await contracts.chain.time(), sum(order.amounts)
        permit = await contracts.token.permit(
            signer, contracts.settlement.address, total, seconds=max(1, order.deadline - now)
        )
    return SignedOrder(network.domain, order, order.sign(network.domain, signer), permit)


def write_order(signed: "SignedOrder", file: Path, as_json: bool) -> None:
    """Into a new file, or onto the terminal for `-`."""
    from hivemint.contracts import order_file

    if str(file) == "-":
        sys.stdout.write(order_file.to_json(signed).decode())
        return
    order_file.write(file, signed)
    if as_json:
        emit({"file": file, "kind": signed.kind, "order": signed.order})
    else:
        out.print(f"[green]signed[/] {shown(str(file))}: anybody sends it with", highlight=False, soft_wrap=True)
        words = shlex.join(("hivemint", "account", "send-order", str(file), "--wallet", "NAME"))
        out.print(f"  {shown(words)}", highlight=False, soft_wrap=True)
