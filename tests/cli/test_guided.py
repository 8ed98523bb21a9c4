"""`hivemint node start` without a terminal: everything that is missing is named at once, before anything is done."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from hivemint.cli.node import guided, verbs
from hivemint.cli.node.placing import Around
from hivemint.cli.wallet import wallets
from hivemint.node.market import Rival
from hivemint.node.running import ServePlan
from hivemint.node.settings import NodeSettings
from hivemint.protocol import keystore
from hivemint.protocol.errors import ConfigError, WalletError
from hivemint.protocol.home import Home
from hivemint.protocol.signing import Signer
from support.verbs import error_of

pytest_plugins = ["support.verbs"]


def test_all_that_is_missing_is_named_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HIVEMINT_PASSWORD")
    refused = error_of(verbs.app, "start", "a-model")
    assert isinstance(refused, ConfigError)
    for flag in ("--network FILE", "--wallet NAME", "--password-file FILE", "HIVEMINT_PASSWORD"):
        assert flag in refused.what
    assert "no terminal" in refused.why
    assert not list(home.glob("keystores/*")), "nothing was made"


def test_only_what_is_missing_is_named(home: Path) -> None:
    refused = error_of(verbs.app, "start", "a-model", "--wallet", "op", "--blocks", "0:1")
    assert refused.what == "`node start` lacks --network FILE (or HIVEMINT_NETWORK)"


def typed(monkeypatch: pytest.MonkeyPatch, answers: list[str], passwords: list[str]) -> None:
    """What somebody at a terminal would type, in this order."""
    monkeypatch.delenv("HIVEMINT_PASSWORD")
    monkeypatch.setattr("typer.prompt", lambda *_, **__: answers.pop(0))
    monkeypatch.setattr("os.isatty", lambda _: True)
    monkeypatch.setattr("getpass.getpass", lambda _: passwords.pop(0))


WISH = guided.StartWish("a-model", None, None, None, None, None, new_books=False, yes=False)


HORSES = ["correct horse", "another horse"]


def test_slips_with_a_new_wallet_are_asked_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, passwords = ["my node", "../x", "mine"], ["a word", *HORSES, HORSES[0], HORSES[0]]
    typed(monkeypatch, answers, passwords)
    name, signer = guided._wallet(Home.open(), WISH)
    assert (name, answers, passwords) == ("mine", [], [])
    assert keystore.Keystores().unlock("mine", HORSES[0]).address == signer.address


def test_a_slip_with_a_wallet_of_several_is_asked_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, byte in (("dave", b"\x01"), ("erin", b"\x02")):
        keystore.Keystores().add(name, Signer(byte * 32), "a word", n=keystore.CHEAP_SCRYPT_N)
    typed(monkeypatch, ["Erin", "erin"], ["a wrd", "a word"])
    assert guided._wallet(Home.open(), WISH)[0] == "erin"
    typed_out = ["Dave", "Dave", "Dave", "dave"]
    monkeypatch.setattr("typer.prompt", lambda *_, **__: typed_out.pop(0))
    with pytest.raises(WalletError, match="no wallet 'Dave'"):
        guided._wallet(Home.open(), WISH)
    assert typed_out == ["dave"], "three tries"


def test_a_wallet_s_name_is_looked_at_before_its_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HIVEMINT_PASSWORD")
    assert "cannot be the name" in error_of(wallets.app, "create", "../x").what, "no password was asked for"
    assert "cannot be the name" in error_of(wallets.app, "import", "../x").what


@pytest.mark.parametrize(("answer", "follows"), [(True, True), (False, False)])
def test_a_dear_default_ask_is_said_before_it_serves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: bool, follows: bool
) -> None:
    operator = Signer(b"\x03" * 32).address
    settings = NodeSettings.load()
    plan = ServePlan(Any, Any, 0, 10, "op", Any, settings, Any, False)  # type: ignore[arg-type]
    rival = Rival(operator, settings.ask // 5, 10**18)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: answer)
    priced = guided._price(plan, Around([1] * 20, [(range(5, 20), rival)]), WISH)
    assert priced.settings.ask_auto is follows
    assert "your ask is 5 times the cheapest" in " ".join(capsys.readouterr().out.split())
    elsewhere = guided._price(plan, Around([1] * 20, [(range(10, 20), rival)]), WISH)
    assert not elsewhere.settings.ask_auto, "these are other blocks"
    assert capsys.readouterr().out == ""


def test_a_wallet_that_a_node_serves_with_is_not_offered_and_a_new_one_can_be_had(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, byte in (("alice", b"\x01"), ("dave", b"\x02"), ("erin", b"\x03")):
        keystore.Keystores().add(name, Signer(byte * 32), "a word", n=keystore.CHEAP_SCRYPT_N)
    status = Home.open().node("alice") / "status.json"
    told = {"model": "m", "blocks": "0:1", "credits": {}, "reasons": {}, "pid": os.getpid(), "at": time.time()}
    status.write_text(json.dumps(told))
    asked: list[str] = []
    typed(monkeypatch, [], [HORSES[0], HORSES[0]])
    answers = ["new", "mine"]

    def prompt(text: str, **_: object) -> str:
        asked.append(text)
        return answers.pop(0)

    monkeypatch.setattr("typer.prompt", prompt)
    assert guided._wallet(Home.open(), WISH)[0] == "mine"
    assert asked[0] == "Which wallet (dave, erin, or new)?"
    status.write_text(json.dumps(told | {"stopped": time.time()}))
    assert not guided._serves(Home.open(), "alice"), "it has stopped since"
