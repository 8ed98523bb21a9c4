"""`hivemint account fund`: what is deposited where, and what it buys, before anything is paid."""

import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hivemint.cli.console import (
    JsonFlag,
    NetworkOption,
    PasswordFileOption,
    WalletOption,
    err,
    out,
    run_async,
    shown,
)
from hivemint.cli.node_argument import operator_of
from hivemint.cli.terminal.screen import Terminal
from hivemint.cli.transact import (
    HoursOption,
    NonceOption,
    Ready,
    SignOnly,
    SignOnlyOption,
    check_address,
    load_network,
    send_or_sign,
    tell_mined,
    unlocked,
)
from hivemint.cli.wallet.candidates import Candidates, candidates
from hivemint.cli.wallet.daily import DailyDeposits
from hivemint.cli.wallet.purchase import POSITIONS, top_ups
from hivemint.cli.wallet.sources import ways_to_credits
from hivemint.protocol.credits import format_credits, parse_credits
from hivemint.protocol.errors import BadInput, HivemintError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Address, Credits
from hivemint.protocol.network import Network
from hivemint.protocol.node_name import named
from hivemint.protocol.orders import Fund
from hivemint.protocol.signing import Signer

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.chain import Mined

ForOption = Annotated[str | None, typer.Option("--for", help="Only nodes of this model.", metavar="MODEL")]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True, slots=True)
class Deposit:
    """What was asked for. `each` in wei, or else `keep` and `budget` (`--auto`)."""

    network: Network
    named: tuple[Address, ...]
    model: str | None
    dial: bool
    each: int = 0
    keep: int = 0
    budget: int = 0
    payee: Address | None = None


@dataclass(frozen=True, slots=True)
class _Done:
    mined: "Mined | None"
    deposits: dict[Address, int]
    found: Candidates


def fund(
    amount: Annotated[str | None, typer.Argument(help="Credits for each node, e.g. 2.5", metavar="AMOUNT")] = None,
    node: Annotated[
        list[str] | None,
        typer.Option(help="A node's name or operator address; may be repeated. Default: all in the swarm."),
    ] = None,
    model: ForOption = None,
    auto: Annotated[bool, typer.Option("--auto", help="Top up: each account to --keep, within --budget.")] = False,
    keep: Annotated[str | None, typer.Option(help="With --auto: what each account shall have left to spend.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="With --auto: the most that this machine deposits so in a day (UTC), in all.")
    ] = None,
    client: Annotated[str | None, typer.Option(help="Deposit for another wallet's address.")] = None,
    no_dial: Annotated[bool, typer.Option("--no-dial", help="Do not ask first whether the nodes answer.")] = False,
    yes: YesFlag = False,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    sign_only: SignOnlyOption = None,
    hours: HoursOption = None,
    nonce: NonceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Deposit credits, so that these nodes take your bids. Fund more nodes than one route needs.

    Nodes are dialled first: who does not answer or goes down gets nothing; nor does who asks more than your price
    ceiling, unless you name it with --node and without --auto. Nodes, sum and what it buys are shown; at a terminal it
    asks before it pays. In a script, the amount or the budget on the command line is the consent.
    """
    place, payee = load_network(network), check_address(client) if client else None
    _check(auto, amount, keep, budget, payee, bool(sign_only))
    asked = Deposit(
        place,
        tuple(operator_of(one, place, quiet=as_json) for one in node or ()),
        model,
        not no_dial,
        int(parse_credits(amount)) if amount is not None else 0,
        int(parse_credits(keep)) if keep else 0,
        int(parse_credits(budget)) if budget else 0,
        payee,
    )
    if not (asked.keep and asked.budget if auto else asked.each):
        raise BadInput("There is nothing to deposit", why="the amount is zero")
    ask = sys.stdin.isatty() and not yes and not as_json
    if sign_only or hours is not None or nonce is not None:
        return _sign(asked, wallet, password_file, SignOnly(sign_only, hours, nonce), ask, as_json)
    if not yes and not ask:
        raise BadInput(
            "Nobody is there to confirm",
            why="a deposit is paid at once, and comes back only through a thaw",
            next_step="look at it with `hivemint account list`, and add --yes",
        )
    signer = unlocked(wallet, password_file)
    done: _Done = run_async(_pay(asked, signer, ask, as_json))
    return _tell(done, as_json)


def _check(
    auto: bool, amount: str | None, keep: str | None, budget: str | None, payee: Address | None, order: bool
) -> None:
    """Raises BadInput for what does not go together."""
    if payee and order:
        raise BadInput("An order deposits for its own wallet", next_step="leave --client or --sign-only out")
    if not auto and (keep or budget):
        raise BadInput("--keep and --budget are of --auto", next_step="add --auto, or leave them out")
    if not auto and amount is None:
        raise BadInput("How much?", next_step="`hivemint account fund AMOUNT`, or --auto --keep AMOUNT --budget AMOUNT")
    if auto and (amount is not None or not keep or not budget):
        raise BadInput(
            "--auto needs --keep and --budget, and no amount",
            next_step="`hivemint account fund --auto --keep 0.001 --budget 0.01`",
        )
    if auto and (payee or order):
        raise BadInput("--auto tops up the wallet's own accounts", next_step="leave --client and --sign-only out")


def _sign(asked: Deposit, wallet: str | None, password_file: Any, signing: SignOnly, ask: bool, as_json: bool) -> None:
    """With --sign-only: the same deposit as an order in a file."""

    async def act(_contracts: "Bindings", _signer: Signer) -> "Mined":
        raise BadInput("An order is signed, not sent", next_step="pass --sign-only FILE")

    async def order(ready: Ready) -> Fund:
        from hivemint.contracts.bindings import Bindings

        async with await Bindings.connect(asked.network) as contracts:
            deposits, found = await _planned(asked, contracts, ready.client)
            view = err if str(signing.file) == "-" else out  # the order alone goes to stdout, and so into a file
            if not as_json:
                _preview(deposits, found, await contracts.token.balance(ready.client), view=view)
            _consent(ask, view)
        amounts = tuple(Credits(wei) for wei in deposits.values())
        return Fund(ready.client, tuple(deposits), amounts, ready.nonce, ready.deadline)

    send_or_sign(asked.network, wallet, password_file, act, order, "", signing, as_json)


async def _pay(asked: Deposit, signer: Signer, ask: bool, as_json: bool) -> _Done:
    from hivemint.contracts.bindings import Bindings

    async with await Bindings.connect(asked.network) as contracts:
        if not asked.budget:
            return await _deposit(asked, contracts, signer, ask, as_json)
        domain = asked.network.domain
        name = f"deposits-{domain.chain_id}-{domain.settlement}-{signer.address}.json"
        days = DailyDeposits(Home.open().client / name)
        async with days.alone():
            return await _deposit(asked, contracts, signer, ask, as_json, days)


async def _deposit(
    asked: Deposit,
    contracts: "Bindings",
    signer: Signer,
    ask: bool,
    as_json: bool,
    days: DailyDeposits | None = None,
) -> _Done:
    deposits, found = await _planned(asked, contracts, asked.payee or signer.address, days)
    has, total = await contracts.token.balance(signer.address), sum(deposits.values())
    if has < total:
        raise BadInput(
            "This wallet has too few credits",
            why=f"the deposit is {format_credits(total)} in all, {signer.address} has {format_credits(has)}",
            next_step="deposit less, or get some: " + "; ".join(ways_to_credits(asked.network, signer.address)),
        )
    if not as_json:
        _preview(deposits, found, has, days)
    if not deposits:
        return _Done(None, deposits, found)
    _consent(ask)
    if days is not None:
        days.take(total)  # before it is sent: what a crash leaves open counts as spent
    mined = await contracts.settlement.fund(signer, deposits, client=asked.payee)
    return _Done(mined, deposits, found)


async def _planned(
    asked: Deposit, contracts: "Bindings", client: Address, days: DailyDeposits | None = None
) -> tuple[dict[Address, int], Candidates]:
    by_hand = bool(asked.named) and days is None  # a node that is named in so many words may ask what it likes
    found = await candidates(
        asked.network, contracts, client, asked.named, asked.model, asked.dial, within_ceiling=not by_hand
    )
    if days is None:
        return dict.fromkeys(found.nodes, asked.each), found
    left = {node: found.funds[node].left for node in found.nodes}
    asks = {node: ask for node in found.nodes if (ask := found.ask(node)) is not None}
    chosen = top_ups(left, asked.keep, max(0, asked.budget - days.today), asks)
    return chosen, found


def _preview(
    deposits: dict[Address, int],
    found: Candidates,
    has: int,
    days: DailyDeposits | None = None,
    view: Terminal = out,
) -> None:
    """Nodes, sum, and what it buys."""
    for node, why in found.left_out.items():
        err.print(f"left out  {named(node)}: {shown(why)}", highlight=False, soft_wrap=True)
    if days is not None and not deposits:
        view.print(f"nothing to top up; {format_credits(days.today)} of today's budget is used", highlight=False)
        return
    for node, wei in deposits.items():
        ask = found.ask(node)
        asks = "" if ask is None else f"asks {format_credits(ask, 9)} a token and block"
        asks = asks and f" (blocks {found.spans(node)}, {asks})"
        view.print(
            f"the account at {named(node)}\n  gets {format_credits(wei, 9)}{asks}", highlight=False, soft_wrap=True
        )
    total = sum(deposits.values())
    view.print(f"in all  {format_credits(total, 9)} of the wallet's {format_credits(has, 9)}", highlight=False)
    costs = found.costs()
    for model, count in found.buys(deposits).items():
        some = f"about {count:,} answer{'s'[: count != 1]} of {POSITIONS} tokens each"
        buys = some if count else "not one paid answer yet"
        cost = f"; one costs {format_credits(costs[model], 9)} over all nodes" if model in costs else ""
        line = f"buys    {buys} from {shown(model)}, with what is in the accounts already{cost}"
        view.print(line, highlight=False, soft_wrap=True)


def _consent(ask: bool, view: Terminal = out) -> None:
    """Raises BadInput for a no: nothing was done."""
    # A question of typer's leaves a blank on stdout even with `err=True`.
    with redirect_stdout(sys.stderr) if view is err else nullcontext():
        consents = not ask or typer.confirm("Deposit?", default=False)
    if not consents:
        raise HivemintError("Nothing was deposited", why="you said no")


def _tell(done: _Done, as_json: bool) -> None:
    more = {
        "deposits": {node: int(wei) for node, wei in done.deposits.items()},
        "total_wei": sum(done.deposits.values()),
        "left_out": done.found.left_out,
        "answers": done.found.buys(done.deposits),
        "answer_tokens": POSITIONS,
        "answer_wei": done.found.costs(),
    }
    if done.mined is None:
        if as_json:
            from hivemint.cli.console import emit

            emit({"transaction": None, **more})
        return
    text = f"{format_credits(sum(done.deposits.values()), 9)} deposited in {_counted(len(done.deposits), 'account')}"
    tell_mined(done.mined, text, as_json, **more)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
