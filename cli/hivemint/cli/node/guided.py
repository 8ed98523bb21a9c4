"""`hivemint node start MODEL` from nothing: what it lacks is asked for at a terminal, cheapest first.

    network file > model > wallet > password > coin > blocks > one question > registration

Nothing costs anything before that one question. Without a terminal nothing is asked: what is missing is named at once.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from hivemint.cli.console import out, run_async, show_error, shown
from hivemint.cli.node.operators import unlock, with_contracts
from hivemint.cli.node.placing import Around, ChosenPlace, at, find_place, look_around
from hivemint.cli.node.registering import GAS, Difference, Wanted, carry_out, coins, difference, question
from hivemint.cli.node.standing import last_seen, running
from hivemint.cli.transact import load_network
from hivemint.protocol.credits import in_words as credits_in_words
from hivemint.protocol.errors import ConfigError, HivemintError, WalletError
from hivemint.protocol.home import Home
from hivemint.protocol.keystore import PASSWORD_VARIABLE, Keystores, Wallet, read_password
from hivemint.protocol.network import Network
from hivemint.protocol.node_name import node_name
from hivemint.protocol.signing import Signer

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.ledger.settlement.outlook import Outlook
    from hivemint.model.local_models import LocalModel
    from hivemint.node.running import ServePlan
    from hivemint.node.settings import NodeSettings

T = TypeVar("T")
TRIES = 3
NEW = "new"
"""What is answered for a wallet that is not there yet."""
SPARE, ROUND = 2, 10**14
"""So many times the cost of GAS is asked for, as prices move and claims cost some too, in whole ten-thousandths of a
coin: what is shown is what must come."""
LOOK_EVERY = 2.0


@dataclass(frozen=True)
class StartWish:
    """What the command line said."""

    model: str
    blocks: str | None
    wallet: str | None
    network: Path | None
    password_file: Path | None
    name: str | None
    new_books: bool
    yes: bool


@dataclass(frozen=True)
class OnChain:
    """What the chain says before anything is sent. Coin in wei."""

    change: Difference
    owner: str
    leaving: int
    balance: int
    gas: int
    outlook: "Outlook"

    @property
    def needs(self) -> int:
        """What is asked for; it is enough from `enough` on."""
        spare = -(-SPARE * self.gas // ROUND) * ROUND
        return self.change.bond + spare if self.change else 0

    @property
    def enough(self) -> bool:
        return not self.change or self.balance >= self.change.bond + self.gas


def at_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def as_told(wish: StartWish, settings: "NodeSettings") -> "ServePlan":
    """Without questions. Raises ConfigError with all that is missing."""
    from hivemint.node.running import ServePlan
    from hivemint.node.start import find_model, parse_blocks

    missing = [
        flag
        for given, flag in (
            (wish.network, "--network FILE (or HIVEMINT_NETWORK)"),
            (wish.wallet, "--wallet NAME (or HIVEMINT_WALLET)"),
            (wish.password_file or os.environ.get(PASSWORD_VARIABLE), f"--password-file FILE (or {PASSWORD_VARIABLE})"),
        )
        if given is None
    ]
    if missing:
        raise ConfigError(
            f"`node start` lacks {', '.join(missing)}",
            why="there is no terminal to ask at",
            next_step="pass what is missing, or start it at a terminal: there it asks",
        )
    first, end = parse_blocks(wish.blocks) if wish.blocks else (0, 1)
    network, wallet, home = load_network(wish.network), str(wish.wallet), Home.open()
    found = find_model(network, wish.model, first, end, home)
    signer = unlock(home, wallet, wish.password_file)
    plan = ServePlan(network, found, first, end, wish.name or wallet, signer, settings, home, wish.new_books)
    if not wish.blocks:
        plan = _placed(plan)
    if wish.yes:
        _register(plan, run_async(_look(plan)))
    return plan


def _placed(plan: "ServePlan") -> "ServePlan":
    """Without questions: where it is placed and why is one machine-readable line."""
    place = find_place(plan, run_async(look_around(plan.network, plan.model, plan.signer.address)))
    first, end = place.choice.span
    told = {"event": "placed", "blocks": f"{first}:{end}", "why": place.why} | dict(place.lines(plan.settings))
    typer.echo(json.dumps(told))
    return at(plan, place)


def from_nothing(wish: StartWish, settings: "NodeSettings") -> "ServePlan":
    """At a terminal. Raises HivemintError for what no answer mends."""
    from hivemint.node.running import ServePlan
    from hivemint.node.start import parse_blocks

    home, network = Home.open(), _network(wish.network)
    out.print(f"[dim]network[/]   {shown(network.name)}, chain {network.chain_id}", highlight=False)
    model = _model(network, wish.model, home)
    span = parse_blocks(wish.blocks) if wish.blocks else (0, 1)
    model.anatomy.check_span(*span)  # type: ignore[arg-type]
    wallet, signer = _wallet(home, wish)
    plan = ServePlan(network, model, *span, wish.name or wallet, signer, settings, home, wish.new_books)
    chain = run_async(_look(plan))
    if not chain.enough:
        chain = _wait_for_coin(plan, chain)
    place, priced = None, settings.ask_auto or "ask" in settings.model_fields_set
    if not wish.blocks or (chain.change and not priced):
        with out.status("looking at who serves what ..."):
            around = run_async(look_around(plan.network, plan.model, plan.signer.address))
        if not wish.blocks:
            with out.status("measuring this machine ..."):
                place = find_place(plan, around)
            plan = at(plan, place)
        if not priced:
            plan = _price(plan, around, wish)
    _tell(plan, chain, place)
    asked = " and ".join(filter(None, (question(chain.change), "" if wish.blocks else "serve these blocks")))
    if asked and not wish.yes and not typer.confirm(f"{asked[0].upper()}{asked[1:]}?", default=True):
        raise ConfigError("Nothing was done", next_step="--blocks FIRST:END names other blocks")
    _register(plan, chain)
    return plan


def _network(path: Path | None) -> Network:
    """Asked for until it can be read."""
    if path is not None:
        return load_network(path)
    from hivemint.cli.testnet import default_folder

    mine = default_folder() / "network.toml"
    out.print(
        "Which network? Its file is made by who began it; there is no public network yet. "
        "`hivemint testnet up` makes one on this machine."
    )

    def asked() -> Network:
        told = typer.prompt("Network file", default=str(mine) if mine.is_file() else None)
        return Network.load(Path(told).expanduser())

    return _again(asked)


def _again(ask: Callable[[], T]) -> T:
    """An answer that can't be used is no reason to begin from the start: it is asked for again, TRIES times in all."""
    for _ in range(TRIES - 1):
        try:
            return ask()
        except HivemintError as error:
            show_error(error)
    return ask()


def _model(network: Network, name: str, home: Home) -> "LocalModel":
    """The demo model is fetched if one says so; of others it is said where they come from."""
    from hivemint.model import local_models
    from hivemint.node.start import of_network

    pulled = {model.name.lower() for model in local_models.installed(home)}
    if name.lower() == local_models.DEMO.lower() and name.lower() not in pulled:
        if not typer.confirm(f"{local_models.DEMO} is not on this machine yet. Fetch it?", default=True):
            raise ConfigError("No model, no node", next_step="`hivemint model pull` fetches it")
        with out.status("fetching ..."):
            local_models.pull(home=home)
    return of_network(network, name, local_models.resolve(name, home=home))


def _wallet(home: Home, wish: StartWish) -> tuple[str, Signer]:
    """The operator's key: the one that was named, the only one, one of several, or a new one.

    Those that nodes on this machine serve with now are not offered: two nodes of one key would end each other.
    """
    keystores, name = Keystores(home.keystores), wish.wallet
    if name is None:
        there = [wallet.name for wallet in keystores.list() if not _serves(home, wallet.name)]
        if not there:
            out.print("There is no wallet without a node yet: a new one is made for this node.")
            return _new_wallet(keystores, wish)
        name = there[0]
        if len(there) > 1:
            choice = f"Which wallet ({', '.join(there)}, or {NEW})?"

            def chosen() -> str:
                told = str(typer.prompt(choice, default=there[0]))
                return NEW if told == NEW and NEW not in there else keystores.find(told).name

            name = _again(chosen)
            if name == NEW and NEW not in there:
                return _new_wallet(keystores, wish)
    wallet = keystores.find(str(name))
    out.print(f"[dim]wallet[/]    {wallet.name} {wallet.address}", highlight=False, soft_wrap=True)
    left = TRIES if _asks(wish) else 1
    while True:
        left -= 1
        try:
            return wallet.name, unlock(home, wallet.name, wish.password_file)
        except WalletError as error:
            if not left or "password" not in error.what:
                raise
            show_error(error)


def _serves(home: Home, name: str) -> bool:
    """Whether a node of this wallet runs here, by what it wrote of itself."""
    with suppress(HivemintError):  # a damaged file is looked at where the node's key is locked
        return bool(running(last_seen(home.root / "nodes" / name / "status.json"))["running"])
    return False


def _new_wallet(keystores: Keystores, wish: StartWish) -> tuple[str, Signer]:
    """Its name is looked at before a password is asked for."""

    def named() -> str:
        told = str(typer.prompt("Its name", default="node"))
        keystores.vacant(told)
        return told

    name = _again(named)

    def make() -> tuple[Wallet, Signer]:
        password = read_password(name, file=wish.password_file, confirm=True)
        return keystores.create(name, password), keystores.unlock(name, password)

    made, signer = _again(make) if _asks(wish) else make()
    out.print(f"[dim]wallet[/]    {made.name} {made.address}", highlight=False, soft_wrap=True)
    out.print(f"  {shown(str(made.path))}", highlight=False, soft_wrap=True)
    out.print("  [dim]Keep this file and its password: nobody can restore either.[/]")
    return made.name, signer


def _asks(wish: StartWish) -> bool:
    """Whether a password comes from the keyboard."""
    return wish.password_file is None and os.environ.get(PASSWORD_VARIABLE) is None


async def _look(plan: "ServePlan") -> OnChain:
    """Raises ChainError; ConfigError, BadInput for a registration that this wallet can't use."""
    from hivemint.protocol.eip712 import peer_id_hash
    from hivemint.swarm.identity import PeerKey

    peer = PeerKey.load(plan.folder / "peer.key").peer_id

    async def ask(contracts: "Bindings") -> dict[str, Any]:
        from hivemint.ledger.settlement.outlook import PayOutlook

        operator, chain = plan.signer.address, contracts.chain
        known, minimum = await contracts.registry.node(operator), await contracts.registry.minimum_stake()
        leaving = known.unbonding if known else 0
        stake = minimum if known and not known.bonded and not leaving and known.owner == operator else None
        wanted = Wanted(peer_id_hash(peer), stake=stake)
        change = difference(known, wanted, minimum, operator)
        async with chain.explained("Reading the gas price"):
            price = await chain.fees.price(chain.w3)
        outlook = await PayOutlook(contracts, operator, plan.model.model_id).look()
        if change.bond and not outlook.counting:
            outlook = replace(outlook, registered=True, bonded=outlook.bonded + change.bond)
        balance = await chain.balance(operator)
        owner = str(known.owner) if known else str(operator)
        return {"found": OnChain(change, owner, leaving, balance, GAS * price, outlook)}

    found: OnChain = (await with_contracts(plan.network.path, ask))["found"]
    return found


def _wait_for_coin(plan: "ServePlan", chain: OnChain) -> OnChain:
    """Says how much is needed, where to, and where from; goes on by itself when it is there."""
    address = plan.signer.address
    out.print(
        f"\nThis wallet holds {coins(chain.balance)}; a node needs {coins(chain.needs)}: "
        f"{coins(chain.change.bond)} of stake, which stay yours, and {coins(chain.needs - chain.change.bond)} for gas. "
        "Stake comes back after `hivemint node unbond` and a wait (14 days, unless this network says otherwise), less "
        "what a proven lie costs.",
        highlight=False,
    )
    missing = -(-(chain.needs - chain.balance) // ROUND) * ROUND
    out.print(f"  send {coins(missing)} to", highlight=False)
    out.print(f"  {address}  on chain {plan.network.chain_id}", highlight=False, soft_wrap=True)
    if is_testnet(plan.network):
        out.print(f"  from its faucet: hivemint testnet faucet {address}", highlight=False, soft_wrap=True)
    else:
        out.print("  from a wallet of yours, an exchange, or who runs this network", highlight=False)

    async def wait() -> OnChain:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            found = await _look(plan)
            if found.enough:
                return found

    with out.status("waiting for the coin; Ctrl-C ends this, and the same command goes on from here"):
        return run_async(wait())  # type: ignore[no-any-return]


def is_testnet(network: Network) -> bool:
    """One that `hivemint testnet up` has made."""
    from hivemint.testnet.devchain import CHAIN_ID
    from hivemint.testnet.localnet import NETWORK_NAME

    return (network.chain_id, network.name) == (CHAIN_ID, NETWORK_NAME)


def _price(plan: "ServePlan", around: Around, wish: StartWish) -> "ServePlan":
    """An ask that nobody has named is no reason to be dearer than all others: it is said, and `auto` is proposed."""
    from hivemint.node.market import beside

    settings = plan.settings
    note = beside(settings.ask, around.asking(plan.first, plan.end))
    if not note:
        return plan
    usual = credits_in_words(settings.ask)
    out.print(f"[yellow]{shown(note)}[/]: {usual}, as no --ask is named", highlight=False, soft_wrap=True)
    if wish.yes or not typer.confirm("Follow the other nodes instead (--ask auto)?", default=True):
        return plan
    return replace(plan, settings=settings.model_copy(update={"ask_auto": True}))


def _tell(plan: "ServePlan", chain: OnChain, place: ChosenPlace | None) -> None:
    """All that the question is about."""
    from hivemint.node.reach import best_fix, reaches

    settings = plan.settings
    rows = [("name", f"{node_name(plan.signer.address)}, as others see this node")]
    rows.append(("operator", plan.signer.address))
    why = f" ({place.why})" if place else ""
    rows += [("serves", f"{plan.model.name} blocks {plan.first}:{plan.end}{why}")]
    rows += place.lines(settings) if place else []
    price = "as the other nodes of these blocks ask" if settings.ask_auto else credits_in_words(settings.ask)
    rows.append(("ask", f"{price} a token and block" if not settings.ask_auto else price))
    rows += [("change", line) for line in chain.change.lines]
    if chain.change.bond:
        stake = f"{coins(chain.change.bond)} of {coins(chain.balance)} become stake"
        rows.append(("pays", f"{stake}, of owner {chain.owner}"))
    if chain.leaving:
        rows.append(("stake", f"{coins(chain.leaving)} are leaving; none can be bonded before they have"))
    rows.append(("donated", chain.outlook.text()))
    found = reaches(settings.announce or settings.listen)
    rows += [("reach", f"{one.address}: {one.text}") for one in found]
    rows += [("", f"for more: {fix}")] if (fix := best_fix(found)) else []
    for name, text in rows:
        out.print(f"[dim]{name:<9}[/] {shown(text)}", highlight=False, soft_wrap=True)


def _register(plan: "ServePlan", chain: OnChain) -> None:
    if not chain.change:
        return
    from hivemint.swarm.identity import PeerKey

    peer = PeerKey.load(plan.folder / "peer.key").peer_id

    async def act(contracts: "Bindings") -> dict[str, Any]:
        await carry_out(contracts, plan.network, plan.signer, plan.signer, peer, chain.change)
        return {}

    if at_a_terminal():
        with out.status("registering ..."):
            run_async(with_contracts(plan.network.path, act))
        out.print(f"[green]registered[/], {coins(chain.change.bond)} bonded", highlight=False)
    else:
        run_async(with_contracts(plan.network.path, act))
