"""`hivemint contracts compile | standard-json | deploy | verify | params`: the contracts, from source to numbers."""

import json
import secrets
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hivemint.cli.console import (
    JsonFlag,
    NetworkOption,
    PasswordFileOption,
    WalletOption,
    emit,
    out,
    run_async,
    shown,
    table,
)
from hivemint.cli.terminal.failures import fail_with
from hivemint.cli.transact import load_network, unlocked
from hivemint.protocol.credits import exact_credits, format_credits
from hivemint.protocol.errors import BadInput, ChainError, ConfigError
from hivemint.protocol.ids import ONE_CREDIT, Address
from hivemint.protocol.network import Model, Network
from hivemint.testnet.checkout import from_checkout

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.deploy import Deployment, Numbers
    from hivemint.model.local_models import LocalModel

app = typer.Typer(help="Compile, deploy, verify and inspect the contracts.")
NumbersOption = Annotated[
    Path | None,
    typer.Option("--numbers", help="TOML like contracts/networks/dev.toml: fee, times, caps.", metavar="FILE"),
]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="A model that the network serves: into its file, and the rate that donated work on it is paid by.",
    ),
]
MembersOption = Annotated[
    bool,
    typer.Option(
        "--members-only", help="Make a swarm key: who does not have the network file is refused by its peers."
    ),
]
_DEVELOPMENT = 31337


@app.command("compile")
def compile_(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if an artifact is stale.")] = False,
    solc: Annotated[
        Path | None, typer.Option(help="A Solidity compiler to use instead of the found one.", metavar="FILE")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compile the sources of a checkout and compare with the committed artifacts, byte for byte; write what differs."""
    from hivemint.contracts.compile import SOLC_VERSION, compile_contracts, stale, write_artifacts

    with out.status("compiling ..."):
        compiled = compile_contracts(solc)
        differ = stale(compiled) if check else write_artifacts(compiled)
    document = {"solc": SOLC_VERSION, "contracts": list(compiled), "differ": differ, "written": not check}
    if differ and check:
        stale_ones = ConfigError(
            "The committed artifacts are stale",
            why=f"the sources of {', '.join(differ)} compile to other bytes",
            next_step="`hivemint contracts compile` writes them anew; commit them with the sources",
        )
        fail_with(document, stale_ones, as_json)
    if as_json:
        emit(document)
    elif differ:
        out.print(f"{', '.join(differ)}: the artifact was not that of the sources")
    else:
        out.print(f"[green]{len(compiled)} contracts[/] compile to the committed artifacts, byte for byte")


@app.command("standard-json")
def standard_json_(
    file: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE")],
    as_json: JsonFlag = False,
) -> None:
    """Write the compiler's input, with which a block explorer verifies each contract."""
    from hivemint.contracts.artifacts import NAMES
    from hivemint.contracts.compile import SOLC_VERSION, qualified, standard_json

    try:
        file.write_text(json.dumps(standard_json()), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written", why=error.strerror or str(error)) from None
    names = [qualified(name) for name in NAMES]
    if as_json:
        emit({"solc": SOLC_VERSION, "file": file, "contracts": names})
        return
    out.print(f"[green]wrote[/] {shown(str(file))}, for solc {SOLC_VERSION}", highlight=False, soft_wrap=True)
    for name in names:
        out.print(f"  {name}", highlight=False, soft_wrap=True)


@app.command()
def deploy(
    url: Annotated[str, typer.Option("--url", help="JSON-RPC address of the chain.", metavar="URL")],
    chain_id: Annotated[int, typer.Option("--chain-id", help="Refuse any other chain.", min=1)],
    network: Annotated[
        Path, typer.Option("--network", help="The network file to write; the record of the deployment lies beside it.")
    ] = Path("network.toml"),
    name: Annotated[str, typer.Option("--name", help="The new network's name.")] = "hivemint",
    model: ModelsOption = None,
    members_only: MembersOption = False,
    numbers: NumbersOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Deploy all six contracts to an EVM chain. If it dies half-way, the same command goes on where it stopped."""
    from hivemint.contracts import deploy as deployment
    from hivemint.model import local_models
    from hivemint.protocol.home import check_name
    from hivemint.testnet.localnet import mega_flop

    check_name(name, "network")
    chosen = deployment.load_numbers(_numbers_file(numbers, chain_id))
    models = [local_models.resolve(one) for one in model or []]
    manifests = _manifest_names(models)
    rates = {one.model_id: mega_flop(one) for one in models}
    chosen = replace(chosen, rates=rates | dict(chosen.rates))
    record = network.with_name(f"{network.stem}.deployed.toml")
    _check_free(network, record, members_only)
    signer = unlocked(wallet, password_file)

    def tell(contract: str, address: Address) -> None:
        if not as_json:
            out.print(f"  {contract:<13} {address}", highlight=False)

    done: Deployment = run_async(deployment.deploy(url, signer, chosen, record, chain_id=chain_id, progress=tell))
    kept = network.exists()
    _write_network(network, name, url, done, chosen, list(zip(models, manifests, strict=True)), members_only)
    if as_json:
        emit(_deployed(done, network, record))
        return
    out.print(f"[green]deployed[/] on chain {done.chain_id}, first block {done.block}", highlight=False)
    as_it_was = "  (it was here already, and stays as it is)" if kept else ""
    out.print(f"  network file  {shown(str(network))}{as_it_was}", highlight=False, soft_wrap=True)
    out.print(f"  record        {shown(str(record))}", highlight=False, soft_wrap=True)
    words = shlex.join(("hivemint", "contracts", "verify", "--network", str(network)))
    out.print(f"  [dim]next[/]  {shown(words)}", highlight=False, soft_wrap=True)


@app.command()
def verify(network: NetworkOption = None, numbers: NumbersOption = None, as_json: JsonFlag = False) -> None:
    """Compare the code on the chain, what created it and wrote into it, and (with --numbers) all numbers."""
    from hivemint.contracts.deploy import load_numbers

    place = load_network(network)
    differences: list[str] = run_async(_verified(place, load_numbers(numbers) if numbers else None))
    document = {"network": place.name, "chain_id": place.chain_id, "ok": not differences, "differences": differences}
    if differences:
        others = ChainError(
            f"The contracts of {place.name} are not what they should be",
            why="; ".join(differences),
            next_step="fund nothing there before you know why",
        )
        fail_with(document, others, as_json)
    if as_json:
        emit(document)
    else:
        out.print(f"[green]verified[/] all six contracts of {place.name} are those of this package", highlight=False)


@app.command()
def params(network: NetworkOption = None, as_json: JsonFlag = False) -> None:
    """All numbers of a network: the fixed ones, the changeable ones today and as scheduled, who may change them."""
    place = load_network(network)
    document = run_async(_params(place))
    if as_json:
        emit(document)
        return
    _show_params(place, document)


# --- deploy


def _numbers_file(numbers: Path | None, chain_id: int) -> Path:
    if numbers is not None:
        return numbers
    if chain_id != _DEVELOPMENT:
        raise ConfigError(
            f"Chain {chain_id} needs numbers of its own",
            why="those of contracts/networks/dev.toml have one auditor, the deployer, and no model",
            next_step="copy that file, choose each value, and pass --numbers FILE",
        )
    return from_checkout() / "contracts" / "networks" / "dev.toml"


def _manifest_names(models: "Sequence[LocalModel]") -> list[str]:
    """What the manifests beside the network file are called. Raises BadInput for a name that it could not have."""
    from hivemint.protocol.home import check_name

    names = [f"{one.name}.manifest" for one in models]
    for one, name in zip(models, names, strict=True):
        try:
            check_name(name, "manifest file")
        except ConfigError as error:
            raise BadInput(
                f"The model {one.name!r} cannot stand in a network file",
                why=f"its manifest would be called {name!r}: {error.why}",
                next_step="give its folder another name and pass that folder with --model",
            ) from None
    if len({name.lower() for name in names}) < len(names):
        raise BadInput(
            "Two models have the same name",
            why=", ".join(one.name for one in models),
            next_step="name each once, or give one folder another name",
        )
    return names


def _check_free(network: Path, record: Path, members_only: bool) -> None:
    """A network file that no record of ours explains is somebody's own; one that is here gets no swarm key."""
    if network.exists() and record.exists() and members_only and Network.load(network).swarm_key is None:
        raise BadInput(
            f"{network} is here already, and has no swarm key",
            why="--members-only counts when the file is first written: who has this one is let in as it is",
            next_step="name another --network, or leave --members-only out",
        )
    if network.exists() and not record.exists():
        raise ConfigError(
            f"{network} exists already", why=f"there is no {record.name} beside it", next_step="name another --network"
        )


def _write_network(
    path: Path,
    name: str,
    url: str,
    done: "Deployment",
    numbers: "Numbers",
    models: "Sequence[tuple[LocalModel, str]]",
    members_only: bool,
) -> None:
    """`models`: each with the name of its manifest's file."""
    if path.exists():
        if Network.load(path).contracts != done.contracts:
            raise ConfigError(
                f"{path} names other contracts than those just deployed", next_step="name another --network"
            )
        return
    from hivemint.model import companions

    new = Network(
        name,
        done.chain_id,
        url,
        done.contracts,
        deployed_block=done.block,
        confirmations=numbers.confirmations,
        models=tuple(
            Model(one.name, one.model_id, manifest, companions.digests(one.folder)) for one, manifest in models
        ),
        swarm_key=secrets.token_bytes(32) if members_only else None,
    )
    for one, manifest in models:
        path.with_name(manifest).write_bytes(one.manifest.to_bytes())
    new.save(path)


def _deployed(done: "Deployment", network: Path, record: Path) -> dict[str, Any]:
    return {
        "chain_id": done.chain_id,
        "deployer": done.deployer,
        "block": done.block,
        "contracts": asdict(done.contracts),
        "network": network,
        "record": record,
    }


# --- verify and params


async def _verified(network: Network, numbers: "Numbers | None") -> list[str]:
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.verify import verify as compare

    async with await Bindings.connect(network) as contracts:
        return await compare(contracts, numbers, first_block=network.deployed_block)


async def _params(network: Network) -> dict[str, Any]:
    from hivemint.contracts.bindings import Bindings, Setting

    async with await Bindings.connect(network) as contracts:
        parameters = contracts.parameters
        epoch = await contracts.settlement.current_epoch()
        next_change = int(await parameters.read("nextChange"))
        settings = {setting.name.lower(): await parameters.value(setting, epoch) for setting in Setting}
        return {
            "network": network.name,
            "chain_id": network.chain_id,
            "contracts": asdict(network.contracts),
            "epoch": epoch,
            "genesis": await parameters.genesis(),
            "budget": await contracts.emission.budget(epoch),
            "fixed": asdict(await parameters.fixed()),
            "settings": settings,
            "rates": await _rates(contracts, epoch, network),
            "auditors": await _auditors(contracts, epoch, network),
            "scheduled": await _scheduled(contracts, epoch, network),
            "owner": await parameters.owner(),
            "pending_owner": await parameters.read("pendingOwner"),
            "paused": await parameters.paused(),
            "paused_until": await parameters.paused_until(),
            "next_change": next_change,
        }


async def _events(contracts: "Bindings", name: str, network: Network) -> list[dict[str, Any]]:
    return await contracts.parameters.read_events(name, network.deployed_block)


async def _scheduled(contracts: "Bindings", epoch: int, network: Network) -> list[dict[str, Any]]:
    """Changes that are made and don't count yet."""
    from hivemint.contracts.bindings import Setting

    found = [
        (Setting(event["setting"]).name.lower(), event["value"], event["epoch"])
        for event in await _events(contracts, "Scheduled", network)
    ]
    for event in await _events(contracts, "RateScheduled", network):
        found.append((f"rate of 0x{bytes(event['modelId']).hex()}", event["rate"], event["epoch"]))
    for event in await _events(contracts, "AuditorScheduled", network):
        found.append((f"auditor {event['auditor']}", event["active"], event["epoch"]))
    return [{"what": what, "value": value, "epoch": when} for what, value, when in found if when > epoch]


async def _rates(contracts: "Bindings", epoch: int, network: Network) -> dict[str, int]:
    """Model id -> mega-FLOP per token and block, by its name where the network file has one."""
    names = {model.model_id: model.name for model in network.models}
    ids = _once(bytes(event["modelId"]) for event in await _events(contracts, "RateScheduled", network))
    known = _once([*ids, *names])
    return {"0x" + one.hex(): await contracts.parameters.rate(one, epoch) for one in known}


async def _auditors(contracts: "Bindings", epoch: int, network: Network) -> list[str]:
    addresses = _once(Address(event["auditor"]) for event in await _events(contracts, "AuditorScheduled", network))
    return [one for one in addresses if await contracts.parameters.is_auditor(one, epoch)]


def _once(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _show_params(network: Network, told: dict[str, Any]) -> None:
    fixed, settings = told["fixed"], told["settings"]
    names = {"0x" + model.model_id.hex(): model.name for model in network.models}
    rows = [
        ("fee", f"{fixed['fee'] / 100:g} %", "of what a settlement burns, never minted again"),
        *((name, _duration(fixed[name]), why) for name, why in _TIMES.items()),
        ("thaw blocks", str(fixed["thaw_blocks"]), "that a thaw lasts too, however long its time"),
        ("halving", _count(fixed["halving"], "epoch"), "after which the bootstrap is half as large"),
        ("minimum stake", f"{exact_credits(fixed['min_stake'])} of the coin", "of a node that bonds"),
        ("cap", format_credits(fixed["cap"]), "most that one epoch of donated work mints"),
        ("bootstrap", format_credits(fixed["bootstrap"]), f"a first epoch's, from epoch {told['genesis']} on"),
    ]
    table(f"{network.name}: fixed for ever", "number", ">value", "meaning", rows=rows)
    rows = [
        ("units per coin", f"{settings['units_per_coin']:,}", "mega-FLOP an epoch that one coin of stake carries"),
        ("max per unit", _per_unit(settings["max_per_unit"]), "most that a mega-FLOP of donated work mints"),
        ("quorum", str(settings["quorum"]), "auditors' signatures for a strike"),
        ("strikes", f"{settings['strike_limit']} in {settings['strike_window']}", "epochs: a fifth of the stake"),
        ("appeal", _count(settings["appeal"], "epoch"), "in which a strike can be pardoned"),
        *(
            (f"rate of {names.get(model, model[:12] + '...')}", str(rate), "mega-FLOP per token and block")
            for model, rate in told["rates"].items()
        ),
    ]
    out.print()
    table(f"In epoch {told['epoch']}", "number", ">value", "meaning", rows=rows)
    for change in told["scheduled"]:
        out.print(f"  from epoch {change['epoch']}: {change['what']} = {change['value']}", highlight=False)
    out.print(f"\nowner      {_owner(told)}", highlight=False, soft_wrap=True)
    out.print(f"auditors   {', '.join(told['auditors']) or 'none'}", highlight=False, soft_wrap=True)
    out.print(f"changes    made now count from epoch {told['next_change']} on", highlight=False)
    out.print(f"paused     {'[red]yes: no deposits, no mints[/]' if told['paused'] else 'no'}", highlight=False)
    out.print(f"budget     {format_credits(told['budget'])} so far for this epoch's donated work", highlight=False)


_TIMES = {
    "epoch": "the period over which donated work shares the emission",
    "thaw": "from closing an account to withdrawing; how long vouchers outlive their key",
    "unbond": "in which leaving stake can still be slashed",
    "delay": "the timelock of every change",
}


def _owner(told: dict[str, Any]) -> str:
    nobody = "0x" + "00" * 20
    owner = "nobody: renounced, nothing changes any more" if told["owner"] == nobody else told["owner"]
    return owner if told["pending_owner"] == nobody else f"{owner} (offered to {told['pending_owner']})"


def _per_unit(max_per_unit: int) -> str:
    return format_credits(max_per_unit // ONE_CREDIT)


def _duration(seconds: int) -> str:
    for unit, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds % unit == 0 and seconds:
            return _count(seconds // unit, name)
    return _count(seconds, "second")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
