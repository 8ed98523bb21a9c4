"""`network.toml`: the chain, the contracts, the bootstrap peers and the models that make one network.

Everything in the file is checked on loading; a bad field is a ConfigError that names the field and the cure.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import tomli_w

from hivemint.protocol.addresses import read_address
from hivemint.protocol.eip712 import Domain
from hivemint.protocol.errors import ConfigError
from hivemint.protocol.home import check_name, write_private
from hivemint.protocol.ids import Address, ModelId
from hivemint.protocol.keccak import keccak
from hivemint.protocol.text import did_you_mean

_HASH = re.compile(r"0x[0-9a-fA-F]{64}")
_KEY = re.compile(r"(?:[0-9a-fA-F]{2}){16,64}")
_MAX_BYTES = 1 << 20
_MAX_ENDPOINTS = 16
_CURES = {
    "name": 'give the network a short name, e.g. name = "dev"',
    "chain_id": "take the number that the chain's operator names, e.g. chain_id = 31337",
    "rpc_url": 'write the chain\'s JSON-RPC address, e.g. rpc_url = "http://127.0.0.1:8545", or a list of such',
    "second_rpc_url": "write all addresses of the chain as a list: rpc_url = [..., ...]",
    "deployed_block": "take the number that `hivemint contracts deploy` printed",
    "confirmations": "write how many blocks a deposit waits, e.g. confirmations = 1",
    "bootstrap": 'write a list of libp2p addresses, e.g. ["/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo..."]',
    "contracts": "take the addresses that `hivemint contracts deploy` recorded",
    "swarm_key": "write 32 to 128 hex digits, the same in the file of every member",
    "models": 'write [[models]] with name, model_id = "0x..." (32 bytes) and manifest = a file beside this one',
}


@dataclass(frozen=True, slots=True)
class Contracts:
    """Addresses of the deployed contracts."""

    token: Address
    registry: Address
    settlement: Address
    emission: Address
    parameters: Address
    disputes: Address


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the network serves: `manifest` is the name of a file beside `network.toml`.

    `files`: SHA-256 of what else a client reads from the model's folder (tokenizer, chat template, generation
    settings); empty = nothing is pinned. They stand here and not in the manifest, as they are no part of what nodes
    compute: a better chat template makes no other model.
    """

    name: str
    model_id: ModelId
    manifest: str
    files: Mapping[str, bytes] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Network:
    """One network. `confirmations` in blocks; `bootstrap` are libp2p multiaddresses; `path` is where it was read.

    `other_rpc_urls` are further endpoints of the same chain: asked when the first can't be, and together with it where
    money is looked at. URLs may hold secrets: tell people `shown_url` of them. Who lacks a network's `swarm_key` is
    refused by its peers, and finds none of its records.
    """

    name: str
    chain_id: int
    rpc_url: str = field(repr=False)
    contracts: Contracts
    deployed_block: int = 0
    confirmations: int = 1
    other_rpc_urls: tuple[str, ...] = field(default=(), repr=False)
    bootstrap: tuple[str, ...] = ()
    models: tuple[Model, ...] = ()
    swarm_key: bytes | None = field(default=None, repr=False)
    path: Path | None = None

    @property
    def rpc_urls(self) -> tuple[str, ...]:
        """All endpoints of the chain, in the order in which they are asked."""
        return (self.rpc_url, *self.other_rpc_urls)

    @property
    def domain(self) -> Domain:
        """Where this network's signatures count."""
        return Domain(self.chain_id, self.contracts.settlement)

    @classmethod
    def load(cls, path: Path) -> "Network":
        """Read and check `path`. Raises ConfigError."""
        return _load(path)

    @classmethod
    def of(cls, network: "str | Path | Network | None") -> "Network":
        """`network` itself, or that of a file; None: of the file that `$HIVEMINT_NETWORK` names. Raises ConfigError."""
        if isinstance(network, Network):
            return network
        path = network if network is not None else os.environ.get("HIVEMINT_NETWORK")
        if not path:
            raise ConfigError(
                "No network file",
                next_step="pass network=FILE or set HIVEMINT_NETWORK; `hivemint testnet env` prints a testnet's",
            )
        return cls.load(Path(path))

    def save(self, path: Path) -> "Network":
        """Write `network.toml`; `load` gives an equal network back. Returns it with `path` set.

        With a swarm key it is its owner's alone to read.
        """
        content = tomli_w.dumps(_fields(self)).encode()
        if self.swarm_key is not None:
            write_private(path, content, replace=True)
            return replace(self, path=path.absolute())
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(content)
        temporary.replace(path)
        return replace(self, path=path.absolute())

    def model(self, name: str) -> Model:
        """By name or by `0x` model id. Raises ConfigError that lists what there is."""
        for model in self.models:
            if name in (model.name, "0x" + model.model_id.hex()):
                return model
        raise ConfigError(
            f"The network {self.name} serves no model {name!r}",
            why=f"it names {', '.join(model.name for model in self.models) or 'none'}",
            next_step=did_you_mean(
                name,
                (model.name for model in self.models),
                "choose one of these, or add a [[models]] entry to network.toml",
            ),
        )

    def manifest(self, model: Model) -> bytes:
        """The manifest's bytes, checked against the model id. Raises ConfigError."""
        path = (self.path.parent if self.path else Path.cwd()) / model.manifest
        content = _read(path, limit=64 << 20)
        found = "0x" + keccak(content).hex()
        if found != "0x" + model.model_id.hex():
            raise ConfigError(
                f"{path} is not the manifest of {model.name}",
                why=f"its hash is {found}, the network file pins 0x{model.model_id.hex()}",
                next_step="get both files from the network's operator again",
            )
        return content


class _Contracts(msgspec.Struct, forbid_unknown_fields=True):
    token: str
    registry: str
    settlement: str
    emission: str
    parameters: str
    disputes: str


class _Model(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    model_id: str
    manifest: str
    files: dict[str, str] = {}


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The file's shape; its values are checked one by one after it."""

    name: str
    chain_id: int
    rpc_url: str | list[str]
    contracts: _Contracts
    deployed_block: int = 0
    confirmations: int = 1
    second_rpc_url: str | None = None  # how two endpoints were written before; a list is written now
    bootstrap: list[str] = []
    swarm_key: str | None = None
    models: list[_Model] = []


def _load(path: Path) -> Network:
    path = path.expanduser().absolute()
    try:
        table = tomllib.loads(_read(path, _MAX_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML", why=str(error), next_step="mend that line") from None
    try:
        file = msgspec.convert(table, _File)
    except msgspec.ValidationError as error:
        raise _bad_shape(path, error) from None
    check_name(file.name, "network")
    _bounded(path, "chain_id", file.chain_id, 1)
    _bounded(path, "deployed_block", file.deployed_block, 0)
    _bounded(path, "confirmations", file.confirmations, 0)
    for peer in file.bootstrap:
        if not peer.startswith("/") or "/p2p/" not in peer:
            raise _bad(path, "bootstrap", f"{peer!r} is no libp2p address with a peer id")
    first, *others = _urls(path, file)
    return Network(
        name=file.name,
        chain_id=file.chain_id,
        rpc_url=first,
        contracts=Contracts(**{name: _address(path, name, raw) for name, raw in _items(file.contracts)}),
        deployed_block=file.deployed_block,
        confirmations=file.confirmations,
        other_rpc_urls=tuple(others),
        bootstrap=tuple(file.bootstrap),
        models=_models(path, file.models),
        swarm_key=_swarm_key(path, file.swarm_key),
        path=path,
    )


def _fields(network: Network) -> dict[str, Any]:
    return {
        "name": network.name,
        "chain_id": network.chain_id,
        "rpc_url": list(network.rpc_urls) if network.other_rpc_urls else network.rpc_url,
        "deployed_block": network.deployed_block,
        "confirmations": network.confirmations,
        "bootstrap": list(network.bootstrap),
        **({"swarm_key": network.swarm_key.hex()} if network.swarm_key is not None else {}),
        "contracts": {name: getattr(network.contracts, name) for name in _Contracts.__struct_fields__},
        "models": [
            {"name": model.name, "model_id": "0x" + model.model_id.hex(), "manifest": model.manifest}
            | ({"files": {name: "0x" + digest.hex() for name, digest in model.files.items()}} if model.files else {})
            for model in network.models
        ],
    }


def _items(contracts: _Contracts) -> list[tuple[str, str]]:
    return [(name, getattr(contracts, name)) for name in _Contracts.__struct_fields__]


def _models(path: Path, models: list[_Model]) -> tuple[Model, ...]:
    names = [model.name for model in models]
    if len(set(names)) != len(names):
        raise _bad(path, "models", "two models have the same name")
    checked = []
    for model in models:
        if not _HASH.fullmatch(model.model_id):
            raise _bad(path, "models", f"the model_id of {model.name!r} is not 0x and 64 hex digits")
        check_name(model.manifest, "manifest file")
        for name, digest in model.files.items():
            if not _HASH.fullmatch(digest):
                raise _bad(path, "models", f"the digest of {name!r} of {model.name!r} is not 0x and 64 hex digits")
        files = {name: bytes.fromhex(digest[2:]) for name, digest in model.files.items()}
        checked.append(Model(model.name, ModelId(bytes.fromhex(model.model_id[2:])), model.manifest, files))
    return tuple(checked)


def _swarm_key(path: Path, raw: str | None) -> bytes | None:
    if raw is not None and not _KEY.fullmatch(raw):
        raise _bad(path, "swarm_key", f"it has {len(raw)} characters, or some that are no hex digits")
    return None if raw is None else bytes.fromhex(raw)


def _address(path: Path, name: str, raw: str) -> Address:
    found = read_address(raw)
    if found is None:
        raise _bad(path, "contracts", f"{name} = {raw!r} is no address, or its checksum is wrong")
    if int(found, 16) == 0:
        raise _bad(path, "contracts", f"{name} is the zero address")
    return found


def _urls(path: Path, file: _File) -> list[str]:
    """At least one, each once."""
    listed = [file.rpc_url] if isinstance(file.rpc_url, str) else file.rpc_url
    if not 1 <= len(listed) <= _MAX_ENDPOINTS:
        raise _bad(path, "rpc_url", f"it names {len(listed)} addresses, from 1 to {_MAX_ENDPOINTS} are possible")
    found = [_url(path, "rpc_url", one) for one in listed]
    if file.second_rpc_url:
        found.append(_url(path, "second_rpc_url", file.second_rpc_url))
    return list(dict.fromkeys(found))


def _url(path: Path, name: str, raw: str) -> str:
    try:
        parts = urlsplit(raw)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise _bad(path, name, "it is no http or https address")
    return raw


def _bounded(path: Path, name: str, value: int, low: int) -> None:
    if not low <= value < 2**63:
        raise _bad(path, name, f"{value} is below {low} or above 2^63-1")


def _bad(path: Path, name: str, why: str) -> ConfigError:
    return ConfigError(f"{path}: the field {name} is wrong", why=why, next_step=_CURES[name])


def _bad_shape(path: Path, error: msgspec.ValidationError) -> ConfigError:
    text = str(error)
    named = re.search(r"`\$\.?(\w+)", text) or re.search(r"field `(\w+)`", text)
    cure = _CURES.get(named.group(1), "") if named else ""
    return ConfigError(f"{path} is not a network file", why=text.replace("`$.", "`"), next_step=cure)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(
            f"The file {path} cannot be read",
            why=error.strerror or str(error),
            next_step="name a network file with --network, or start a local one with `hivemint testnet up`",
        ) from None
    if len(content) > limit:
        raise ConfigError(f"The file {path} is too large", why=f"it has more than {limit} bytes")
    return content
