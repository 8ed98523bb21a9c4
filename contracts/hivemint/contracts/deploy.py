"""Deployment of all contracts to an EVM network, resumable, with the numbers of a TOML file.

The contracts name each other, so their addresses are computed from the deployer's nonces before the first one is
sent. The plan is written to a record (TOML) first; after a crash the same call goes on where the chain stands.
"""

import asyncio
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from eth_utils.address import is_checksum_address
from web3.contract.async_contract import AsyncContractConstructor
from web3.types import Nonce
from web3.utils import get_create_address

from hivemint.contracts.artifacts import NAMES, load
from hivemint.contracts.bindings import Bindings, Fixed, Setting
from hivemint.contracts.chain import Chain
from hivemint.protocol.credits import parse_credits
from hivemint.protocol.errors import BadInput, ChainError, ConfigError
from hivemint.protocol.ids import Address, ModelId
from hivemint.protocol.keccak import keccak
from hivemint.protocol.network import Contracts
from hivemint.protocol.signing import Signer

_FIELDS = dict(
    zip(("parameters", "token", "registry", "settlement", "disputes", "emission"), NAMES, strict=True)
)  # name in `Contracts` -> contract, in the order of deployment
_MINED_WITHIN = 120.0
_COUNTS = ("fee", "epoch", "thaw", "thaw_blocks", "unbond", "delay", "halving")
DEVELOPMENT = 31337
"""The id of development chains, as the contracts know it."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a deployment is made with. `settings` by `Setting`; `rates` in mega-FLOP per token and block.

    ask: what nodes ask by default, wei of credits per token and block (not on the chain).
    """

    fixed: Fixed
    settings: Mapping[Setting, int]
    rates: Mapping[ModelId, int] = field(default_factory=dict)
    auditors: tuple[Address, ...] = ()
    owner: Address | None = None
    confirmations: int = 1
    ask: int = 0

    def arguments(self, deployer: Address) -> tuple[Any, ...]:
        """Of the constructor of `Parameters`. Owner and first auditor are the deployer unless others are named."""
        return (
            self.owner or deployer,
            self.fixed.arguments(),
            [self.settings[setting] for setting in Setting],
            list(self.rates),
            list(self.rates.values()),
            list(self.auditors) or [deployer],
        )


@dataclass(frozen=True, slots=True)
class Deployment:
    """What stands on the chain. `block`: the first one that can hold an event of these contracts."""

    chain_id: int
    deployer: Address
    contracts: Contracts
    block: int


@dataclass(frozen=True, slots=True)
class _Plan:
    chain_id: int
    deployer: Address
    first_nonce: int
    block: int
    numbers: str  # hash of the constructor's arguments: a resumed deployment must use the same ones

    @property
    def contracts(self) -> Contracts:
        addresses = {
            name: Address(get_create_address(self.deployer, Nonce(self.first_nonce + index)))  # type: ignore[arg-type]
            for index, name in enumerate(_FIELDS)
        }
        return Contracts(**addresses)


async def deploy(
    url: str,
    deployer: Signer,
    numbers: Numbers,
    record: Path,
    *,
    chain_id: int | None = None,
    progress: Callable[[str, Address], None] = lambda name, address: None,
) -> Deployment:
    """Deploy what is not yet there, check it, and keep the addresses in `record`.

    chain_id: refuse any other chain. progress: called with each contract that stands.
    Raises ChainError for an unreachable or wrong chain, ConfigError if `record` tells of something else.
    """
    async with await Chain.connect(url, chain_id) as chain:
        if not numbers.fixed.delay and chain.chain_id != DEVELOPMENT:
            raise ConfigError(
                "A deployment needs a timelock",
                why=f"the delay is 0 and chain {chain.chain_id} is no development chain: changes would count at once",
                next_step="choose a delay, e.g. two days, in the numbers",
            )
        plan = await _plan(chain, deployer, numbers, record)
        contracts = plan.contracts
        for index, (name, contract) in enumerate(_FIELDS.items()):
            address: Address = getattr(contracts, name)
            if not await chain.code(address):
                await _deploy_one(
                    chain, deployer, contract, _arguments(contract, contracts, numbers, deployer), plan, index
                )
            progress(contract, address)
        await check(Bindings.over(chain, contracts))
        _write(record, plan, complete=True)
        return Deployment(plan.chain_id, plan.deployer, contracts, plan.block)


def read_record(record: Path) -> Deployment:
    """The deployment that a record tells of. Raises ConfigError if there is none or it was not completed."""
    plan, complete = _read(record)
    if not complete:
        raise ConfigError(f"The deployment in {record} is not complete", next_step="run the same deployment again")
    return Deployment(plan.chain_id, plan.deployer, plan.contracts, plan.block)


async def check(bindings: Bindings) -> None:
    """The contracts must name each other as planned. Raises ChainError."""
    named = {binding.NAME: binding.address for binding in bindings.by_address.values()}
    expected = [
        (bindings.token, "SETTLEMENT", "Settlement"),
        (bindings.token, "EMISSION", "Emission"),
        (bindings.registry, "SETTLEMENT", "Settlement"),
        (bindings.registry, "DISPUTES", "Disputes"),
        (bindings.settlement, "PARAMETERS", "Parameters"),
        (bindings.settlement, "TOKEN", "CreditToken"),
        (bindings.settlement, "REGISTRY", "NodeRegistry"),
        (bindings.disputes, "SETTLEMENT", "Settlement"),
        (bindings.disputes, "PARAMETERS", "Parameters"),
        (bindings.disputes, "REGISTRY", "NodeRegistry"),
        (bindings.emission, "SETTLEMENT", "Settlement"),
        (bindings.emission, "PARAMETERS", "Parameters"),
        (bindings.emission, "TOKEN", "CreditToken"),
        (bindings.emission, "REGISTRY", "NodeRegistry"),
        (bindings.emission, "DISPUTES", "Disputes"),
    ]
    for binding, getter, contract in expected:
        if (found := await binding.read(getter)) != named[contract]:
            raise ChainError(
                f"The {binding.NAME} at {binding.address} belongs to another deployment",
                why=f"its {getter} is {found}, expected {named[contract]}",
            )


def load_numbers(path: Path) -> Numbers:
    """Read a file like `contracts/networks/dev.toml`. Raises ConfigError that names the bad field."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The file {path} cannot be read", why=error.strerror or str(error)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML", why=str(error)) from None
    try:
        return _numbers(table)
    except KeyError as error:
        raise ConfigError(
            f"{path} lacks the field {error}", next_step="compare it with contracts/networks/dev.toml"
        ) from None
    except (BadInput, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} has a bad value", why=str(error)) from None


def _numbers(table: dict[str, Any]) -> Numbers:
    fixed, settings, deployment = table["fixed"], table["settings"], table.get("deployment", {})
    values: dict[Setting, int] = {
        setting: (parse_credits if setting is Setting.MAX_PER_UNIT else int)(str(settings[setting.name.lower()]))
        for setting in Setting
    }
    addresses = [*deployment.get("auditors", []), *filter(None, [deployment.get("owner")])]
    for address in addresses:
        if not is_checksum_address(address):
            raise ValueError(f"{address!r} is not a checksummed address")
    return Numbers(
        fixed=Fixed(
            **{name: int(fixed[name]) for name in _COUNTS},  # type: ignore[arg-type]
            **{name: parse_credits(str(fixed[name])) for name in ("min_stake", "cap", "bootstrap")},
        ),
        settings=values,
        rates={_model_id(name): int(rate) for name, rate in table.get("rates", {}).items()},
        auditors=tuple(Address(address) for address in deployment.get("auditors", [])),
        owner=deployment.get("owner"),
        confirmations=int(deployment.get("confirmations", 1)),
        ask=parse_credits(str(table.get("defaults", {}).get("ask", "0"))),
    )


def _model_id(text: str) -> ModelId:
    raw = bytes.fromhex(text.removeprefix("0x"))
    if len(raw) != 32:
        raise ValueError(f"the model id {text!r} is not 32 bytes")
    return ModelId(raw)


def _arguments(contract: str, at: Contracts, numbers: Numbers, deployer: Signer) -> tuple[Any, ...]:
    """Of a contract's constructor."""
    table: dict[str, tuple[Any, ...]] = {
        "CreditToken": (at.settlement, at.emission),
        "NodeRegistry": (at.parameters, at.settlement, at.disputes),
        "Settlement": (at.parameters, at.token, at.registry),
        "Disputes": (at.parameters, at.settlement, at.registry),
        "Emission": (at.parameters, at.settlement, at.token, at.registry, at.disputes),
    }
    return numbers.arguments(deployer.address) if contract == "Parameters" else table[contract]


async def _deploy_one(
    chain: Chain, deployer: Signer, contract: str, arguments: tuple[Any, ...], plan: _Plan, index: int
) -> None:
    if await _arrives(chain, plan, index):
        return
    nonce = await chain.nonce(deployer.address)
    if nonce != plan.first_nonce + index:
        raise ChainError(
            f"{contract} cannot be deployed at its planned address",
            why=f"the next nonce of {deployer.address} is {nonce}, the plan needs {plan.first_nonce + index}: "
            "the account was used for something else, or that deployment failed",
            next_step="remove the record and deploy everything anew",
        )
    artifact = load(contract)
    factory = chain.w3.eth.contract(abi=artifact.abi, bytecode=artifact.bytecode)
    constructor: AsyncContractConstructor = factory.constructor(*arguments)
    await chain.send(deployer, constructor, doing=f"Deploying {contract}")


async def _arrives(chain: Chain, plan: _Plan, index: int) -> bool:
    """An earlier run may have sent this contract and died before a block held it: wait for that."""
    deadline = time.monotonic() + _MINED_WITHIN
    while await chain.nonce(plan.deployer, "latest") <= plan.first_nonce + index < await chain.nonce(plan.deployer):
        if time.monotonic() > deadline:
            raise ChainError(
                "A deployment that was sent earlier is still in no block",
                why=f"nonce {plan.first_nonce + index} of {plan.deployer}",
                next_step="run the same deployment again later",
            )
        await asyncio.sleep(0.5)
    return bool(await chain.code(getattr(plan.contracts, list(_FIELDS)[index])))


async def _plan(chain: Chain, deployer: Signer, numbers: Numbers, record: Path) -> _Plan:
    """The recorded plan, if it is of this chain, deployer and numbers; else a new one, recorded before it begins."""
    digest = keccak(repr(numbers.arguments(deployer.address)).encode()).hex()
    if (recorded := _read_if_there(record)) is not None:
        plan, _ = recorded
        wrong = [
            f"{what} {told}, now {now}"
            for what, told, now in (
                ("chain id", plan.chain_id, chain.chain_id),
                ("deployer", plan.deployer, deployer.address),
                ("numbers", plan.numbers[:12], digest[:12]),
            )
            if told != now
        ]
        if wrong:
            raise ConfigError(
                f"{record} tells of another deployment",
                why="it has " + "; ".join(wrong),
                next_step="name another record, or remove this one to deploy anew",
            )
        return plan
    nonce = await chain.nonce(deployer.address)
    plan = _Plan(chain.chain_id, deployer.address, nonce, await chain.block_number(), digest)
    _write(record, plan, complete=False)
    return plan


def _write(record: Path, plan: _Plan, *, complete: bool) -> None:
    table = {
        "chain_id": plan.chain_id,
        "deployer": plan.deployer,
        "first_nonce": plan.first_nonce,
        "deployed_block": plan.block,
        "numbers": plan.numbers,
        "complete": complete,
        "contracts": {name: getattr(plan.contracts, name) for name in _FIELDS},
    }
    temporary = record.with_name(f".{record.name}.new")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(tomli_w.dumps(table))
        temporary.replace(record)
    except OSError as error:
        raise ConfigError(f"{record} cannot be written", why=error.strerror or str(error)) from None


def _read_if_there(record: Path) -> tuple[_Plan, bool] | None:
    return _read(record) if record.exists() else None


def _read(record: Path) -> tuple[_Plan, bool]:
    try:
        table = tomllib.loads(record.read_text())
        plan = _Plan(
            int(table["chain_id"]),
            Address(table["deployer"]),
            int(table["first_nonce"]),
            int(table["deployed_block"]),
            str(table["numbers"]),
        )
        recorded = table["contracts"]
        if recorded != {name: getattr(plan.contracts, name) for name in _FIELDS}:
            raise ValueError("its addresses do not follow from its deployer and nonce")
        return plan, bool(table["complete"])
    except OSError as error:
        raise ConfigError(f"The record {record} cannot be read", why=error.strerror or str(error)) from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The record {record} is damaged", why=str(error), next_step="restore it from a backup"
        ) from None
