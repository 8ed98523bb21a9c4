"""Wallets: v3 encrypted keystores (the format of geth and eth-account) in `$HIVEMINT_HOME/keystores/NAME.json`.

A password comes from a prompt, a file or an environment variable; never from a flag, which other users can read.
Decrypting at the usual cost takes about a second and 256 MB: do it once, before a node's models are loaded.
"""

import getpass
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_keyfile.exceptions import EthKeyfileException
from eth_keyfile.keyfile import create_keyfile_json, decode_keyfile_json
from eth_utils.address import is_address, to_checksum_address

from hivemint.protocol.errors import BadInput, ConfigError, WalletError
from hivemint.protocol.home import Home, check_name, write_private
from hivemint.protocol.ids import Address
from hivemint.protocol.signing import Signer
from hivemint.protocol.text import did_you_mean

SCRYPT_N = 1 << 18
"""The usual cost (geth's standard): about 1 s and 256 MB."""
CHEAP_SCRYPT_N = 1 << 10
"""For tests and for dev accounts whose keys are public anyway."""
PASSWORD_VARIABLE = "HIVEMINT_PASSWORD"  # noqa: S105 - the variable's name, no password
SHORTEST = 8
"""Characters of a password that somebody thinks up at a terminal."""
_MAX_BYTES = 64 << 10
_MAX_SCRYPT_BYTES = 1 << 30  # a hostile file may not ask for more; scrypt takes 128 * n * r bytes
_MAX_PBKDF2 = 10_000_000


@dataclass(frozen=True, slots=True)
class Wallet:
    """A keystore on disk, still locked."""

    name: str
    address: Address
    path: Path


class Keystores:
    """The folder of keystores. Names are plain file names and can't leave it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Home.open().keystores

    def create(self, name: str, password: str, *, n: int = SCRYPT_N) -> Wallet:
        """A new random key. Raises WalletError if the name is taken."""
        return self.add(name, Signer(secrets.token_bytes(32)), password, n=n)

    def add(self, name: str, signer: Signer, password: str, *, n: int = SCRYPT_N) -> Wallet:
        """Encrypt a key that exists. Raises WalletError if the name is taken or the password empty."""
        path = self.vacant(name)
        if not password:
            raise WalletError("The password is empty", next_step="choose one that others can't guess")
        document = create_keyfile_json(signer.secret(), password.encode(), kdf="scrypt", iterations=n)
        try:
            write_private(path, json.dumps(document).encode())
        except FileExistsError:
            raise _taken(name, path) from None
        except OSError as error:
            raise WalletError(f"{path} cannot be written", why=error.strerror or str(error)) from None
        return Wallet(name, signer.address, path)

    def import_key(self, name: str, key: str, password: str, *, n: int = SCRYPT_N) -> Wallet:
        """A private key as 64 hex digits, `0x` allowed. Raises WalletError; the key never shows in the error."""
        try:
            secret = bytes.fromhex(key.strip().removeprefix("0x"))
        except ValueError:
            raise WalletError("This is not a private key", why="it must be 64 hex digits") from None
        return self.add(name, Signer(secret), password, n=n)

    def import_file(self, name: str, path: Path, password: str, *, n: int = SCRYPT_N) -> Wallet:
        """A v3 keystore of another program, same password. Raises WalletError."""
        return self.add(name, _decrypt(path, _document(path), password), password, n=n)

    def list(self) -> list[Wallet]:
        """All wallets by name. A damaged file raises WalletError, it is never left out in silence."""
        return [self.find(path.stem) for path in sorted(self.folder.glob("*.json")) if not path.name.startswith(".")]

    def find(self, name: str) -> Wallet:
        """By name. Raises WalletError with the names that exist."""
        path = self._path(name)
        if not path.is_file():
            names = sorted(other.stem for other in self.folder.glob("*.json"))
            raise WalletError(
                f"There is no wallet {name!r}",
                why=f"{self.folder} has: {', '.join(names) or 'none'}",
                next_step=did_you_mean(name, names, f"make it with `hivemint wallet create {name}`"),
            )
        return Wallet(name, _address(path, _document(path)), path)

    def vacant(self, name: str) -> Path:
        """Where a wallet of that name would lie: to be asked before a password is.

        Raises ConfigError for what can't be a name, WalletError if it is taken.
        """
        path = self._path(name)
        if path.exists():
            raise _taken(name, path)
        return path

    def unlock(self, name: str, password: str) -> Signer:
        """Decrypt. Raises WalletError for a wrong password or a damaged file."""
        wallet = self.find(name)
        signer = _decrypt(wallet.path, _document(wallet.path), password)
        if signer.address != wallet.address:
            raise WalletError(f"{wallet.path} is damaged", why="its key does not belong to its address")
        return signer

    def _path(self, name: str) -> Path:
        return self.folder / f"{check_name(name, 'wallet')}.json"


def read_password(
    wallet: str, *, file: Path | None = None, variable: str = PASSWORD_VARIABLE, confirm: bool = False
) -> str:
    """From `file` (its first line), else from the environment, else asked at the terminal. Raises BadInput.

    `confirm` asks twice, for a new wallet, and takes none below SHORTEST characters.
    """
    if file is not None:
        try:
            with file.open(encoding="utf-8") as lines:
                return lines.readline(4096).rstrip("\r\n")
        except OSError as error:
            raise ConfigError(f"The password file {file} cannot be read", why=error.strerror or str(error)) from None
        except UnicodeDecodeError:
            raise ConfigError(f"The password file {file} cannot be read", why="it is no UTF-8 text") from None
    if (from_environment := os.environ.get(variable)) is not None:
        if not _is_text(from_environment):
            raise ConfigError(f"The password in {variable} cannot be used", why="it is no UTF-8 text")
        return from_environment
    if not os.isatty(0):
        raise BadInput(
            f"No password for the wallet {wallet!r}",
            why="there is no terminal to ask at",
            next_step=f"use --password-file, or set {variable}",
        )
    password = getpass.getpass(f"Password of {wallet}: ")
    if confirm and len(password) < SHORTEST:
        raise BadInput(
            f"A password of {len(password)} characters guards nothing",
            why="who gets the file tries them all",
            next_step=f"choose one of {SHORTEST} or more",
        )
    if confirm and getpass.getpass("Once more: ") != password:
        raise BadInput("The two passwords differ", next_step="try again")
    return password


def _is_text(given: str) -> bool:
    """False for bytes of the environment that are no UTF-8: they come as lone surrogates, which nobody can encode."""
    return not any("\ud800" <= one <= "\udfff" for one in given)


def _document(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(document, dict) or document.get("version") != 3:
        raise _damaged(path, "it is not a version 3 keystore")
    return document


def _address(path: Path, document: dict[str, Any]) -> Address:
    raw = document.get("address")
    if not isinstance(raw, str) or not is_address(raw):
        raise _damaged(path, "it names no address")
    return Address(to_checksum_address(raw))


def _decrypt(path: Path, document: dict[str, Any], password: str) -> Signer:
    _check_cost(path, document)
    try:
        return Signer(bytes(decode_keyfile_json(document, password.encode())))
    except EthKeyfileException as error:
        if "MAC" not in str(error):
            raise _damaged(path, str(error)) from None
        raise WalletError(
            f"The password of {path.stem} is wrong", next_step="try again, or name another wallet"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None


def _check_cost(path: Path, document: dict[str, Any]) -> None:
    """A keystore from elsewhere must not make this process eat all memory or hang."""
    crypto = document.get("crypto") or document.get("Crypto")
    numbers = crypto.get("kdfparams") if isinstance(crypto, dict) else None
    if not isinstance(numbers, dict):
        raise _damaged(path, "it has no kdfparams")
    cost = [numbers.get(name, 1) for name in ("n", "r", "p", "c")]
    if not all(isinstance(value, int) and value > 0 for value in cost):
        raise _damaged(path, "its kdfparams are no positive numbers")
    n, r, p, c = cost
    if 128 * n * r > _MAX_SCRYPT_BYTES or p > 16 or c > _MAX_PBKDF2:
        raise _damaged(path, "its key derivation asks for too much memory or time")


def _taken(name: str, path: Path) -> WalletError:
    return WalletError(
        f"A wallet {name!r} exists already", why=f"{path} is never overwritten", next_step="choose another name"
    )


def _damaged(path: Path, why: str) -> WalletError:
    return WalletError(f"{path} is damaged", why=why, next_step="restore it from a backup, or make a new wallet")
