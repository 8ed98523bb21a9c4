"""Keystores: private, compatible, and unable to leave their folder."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from eth_account import Account

from hivemint.protocol.errors import BadInput, ConfigError, WalletError
from hivemint.protocol.home import Home, write_private
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores, read_password
from hivemint.protocol.signing import Signer

KEY = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
ADDRESS = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"


@pytest.fixture
def stores(tmp_path: Path) -> Keystores:
    return Keystores(Home.open(tmp_path / "home").keystores)


def test_create_find_unlock(stores: Keystores) -> None:
    wallet = stores.create("alice", "correct horse", n=CHEAP_SCRYPT_N)
    other = stores.create("bob.2", "x", n=CHEAP_SCRYPT_N)
    assert wallet.address != other.address
    assert stores.list() == [wallet, other]
    assert stores.find("alice") == wallet
    assert stores.unlock("alice", "correct horse").address == wallet.address
    assert stat.S_IMODE(wallet.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(stores.folder.stat().st_mode) == 0o700
    assert list(stores.folder.glob(".*")) == []


def test_an_imported_key_is_the_one_that_ethereum_tools_read(stores: Keystores) -> None:
    wallet = stores.import_key("dev", f"0x{KEY}\n", "pw", n=CHEAP_SCRYPT_N)
    assert wallet.address == ADDRESS
    assert bytes(Account.decrypt(json.loads(wallet.path.read_text()), "pw")).hex() == KEY
    assert KEY not in wallet.path.read_text()


def test_a_keystore_of_another_program_is_imported(stores: Keystores, tmp_path: Path) -> None:
    foreign = tmp_path / "UTC--2026"
    foreign.write_text(json.dumps(Account.encrypt(bytes.fromhex(KEY), "pw", kdf="pbkdf2", iterations=1000)))
    assert stores.import_file("dev", foreign, "pw", n=CHEAP_SCRYPT_N).address == ADDRESS
    with pytest.raises(WalletError, match="wrong"):
        stores.import_file("other", foreign, "no", n=CHEAP_SCRYPT_N)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "-flag", "x" * 65, "nul\0", "a b", "ü"])
def test_a_name_cannot_leave_the_folder(stores: Keystores, name: str) -> None:
    for use in (lambda: stores.create(name, "x", n=2), lambda: stores.find(name), lambda: stores.unlock(name, "x")):
        with pytest.raises(BadInput, match="cannot be the name"):
            use()


def test_refusals(stores: Keystores) -> None:
    stores.create("alice", "pw", n=CHEAP_SCRYPT_N)
    before = stores.find("alice").path.read_bytes()
    with pytest.raises(WalletError, match="exists already"):
        stores.create("alice", "pw", n=CHEAP_SCRYPT_N)
    assert stores.find("alice").path.read_bytes() == before
    with pytest.raises(WalletError, match="password of alice is wrong"):
        stores.unlock("alice", "PW")
    with pytest.raises(WalletError, match=r"no wallet 'bob'.*has: alice.*wallet create bob"):
        stores.find("bob")
    with pytest.raises(WalletError, match="password is empty"):
        stores.create("bob", "", n=CHEAP_SCRYPT_N)
    for bad in ("xyz", "00" * 32, "ff" * 32, "12"):
        with pytest.raises(WalletError, match="not a private key") as caught:
            stores.import_key("bob", bad, "pw", n=CHEAP_SCRYPT_N)
        assert bad * 2 not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d | {"version": 4}, "version 3"),
        (lambda d: d | {"address": "12"}, "no address"),
        (lambda d: d | {"address": "f39fd6e51aad88f6f4ce6ab8827279cfffb92266"}, "does not belong"),
        (lambda d: d | {"crypto": 5}, "kdfparams"),
        (lambda d: d | {"crypto": d["crypto"] | {"kdfparams": d["crypto"]["kdfparams"] | {"n": 2**40}}}, "too much"),
        (lambda d: d | {"crypto": d["crypto"] | {"kdfparams": d["crypto"]["kdfparams"] | {"p": "1"}}}, "positive"),
        (lambda d: d | {"crypto": d["crypto"] | {"kdf": "md5"}}, "Unsupported"),
        (lambda d: d | {"crypto": d["crypto"] | {"ciphertext": "zz"}}, "damaged"),
        (lambda d: {"version": 3, "address": d["address"]}, "kdfparams"),
        (lambda d: [d], "version 3"),
    ],
)
def test_a_damaged_file_is_told_and_not_trusted(stores: Keystores, change: object, why: str) -> None:
    wallet = stores.create("alice", "pw", n=CHEAP_SCRYPT_N)
    document = change(json.loads(wallet.path.read_text()))  # type: ignore[operator]
    write_private(wallet.path, json.dumps(document).encode(), replace=True)
    with pytest.raises(WalletError, match=why):
        stores.unlock("alice", "pw")


def test_a_torn_file_is_damaged(stores: Keystores) -> None:
    wallet = stores.create("alice", "pw", n=CHEAP_SCRYPT_N)
    wallet.path.write_bytes(wallet.path.read_bytes()[:40])
    with pytest.raises(WalletError, match="damaged"):
        stores.list()


def test_a_signer_shows_no_key() -> None:
    assert KEY not in repr(Signer(bytes.fromhex(KEY)))


def test_where_passwords_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_text("from file\nsecond line")
    monkeypatch.setenv("HIVEMINT_PASSWORD", "from environment")
    assert read_password("alice", file=file) == "from file"
    assert read_password("alice") == "from environment"
    monkeypatch.delenv("HIVEMINT_PASSWORD")
    monkeypatch.setattr("os.isatty", lambda _: False)
    with pytest.raises(BadInput, match="no terminal"):
        read_password("alice")
    monkeypatch.setattr("os.isatty", lambda _: True)
    answers = iter(["1234567", "correct horse", "another horse", "correct horse", "correct horse"])
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    with pytest.raises(BadInput, match="7 characters guards nothing"):
        read_password("alice", confirm=True)
    with pytest.raises(BadInput, match="differ"):
        read_password("alice", confirm=True)
    assert read_password("alice", confirm=True) == "correct horse"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_password("alice", file=tmp_path / "none")


def test_home_follows_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVEMINT_HOME", str(tmp_path / "h"))
    home = Home.open()
    assert home.root == tmp_path / "h"
    (tmp_path / "h" / "nodes").mkdir(mode=0o755)
    assert home.node("one") == tmp_path / "h" / "nodes" / "one"
    for folder in (home.root, home.root / "nodes", home.node("one"), home.client, home.models):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="name of a node"):
        home.node("../x")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set HIVEMINT_HOME"):
        Home.open(tmp_path / "file")


def test_importing_these_modules_imports_no_web3() -> None:
    code = (
        "import sys, hivemint.protocol.home, hivemint.protocol.network, hivemint.protocol.keystore, "
        "hivemint.protocol.credits, hivemint.protocol.receipt, hivemint.contracts.artifacts; "
        "sys.exit('web3' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
