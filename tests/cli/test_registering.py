"""`hivemint node register` on a real chain, once and again: a stake is a target, and what changes is named first."""

import re

import pytest

from hivemint.cli.node import leaving, registering, verbs
from hivemint.cli.node.registering import Wanted, difference
from hivemint.contracts.bindings.registry import NodeInfo
from hivemint.protocol.errors import BadInput, ConfigError
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores
from hivemint.protocol.node_name import node_name
from support.chain import TestChain
from support.verbs import RUNNER, error_of, told

pytest_plugins = ["support.verbs", "support.chain"]
pytestmark = pytest.mark.usefixtures("home")
COIN = 10**18


class AtATerminal:
    """In place of `sys`: somebody is there to be asked."""

    class stdin:
        @staticmethod
        def isatty() -> bool:
            return True

    stdout = stdin


def test_a_second_registration_names_the_difference(testchain: TestChain) -> None:
    Keystores().add("op", testchain.signers[11], "correct horse", n=CHEAP_SCRYPT_N)
    Keystores().add("other", testchain.signers[12], "correct horse", n=CHEAP_SCRYPT_N)
    mine = ["--network", str(testchain.network.path), "--wallet", "op"]
    first = told(verbs.app, "register", *mine)
    assert first["bonded_wei"] == COIN, "the minimum"
    again = told(verbs.app, "register", *mine)
    assert (again["changed"], again["bonded_wei"]) == ([], COIN), "nothing is different, nothing is sent"

    refused = error_of(verbs.app, "register", *mine, "--stake", "5")
    assert "1 coin -> 5 coins, 4 coins more" in refused.why
    assert "--yes" in refused.next_step
    assert told(verbs.app, "register", *mine, "--stake", "5", "--yes")["bonded_wei"] == 5 * COIN
    assert told(verbs.app, "register", *mine, "--stake", "5")["bonded_wei"] == 5 * COIN, "a target, not a sum"
    assert told(verbs.app, "register", *mine, "--add", "0.5", "--yes")["bonded_wei"] == 5 * COIN + COIN // 2
    assert "less than what is bonded" in error_of(verbs.app, "register", *mine, "--stake", "2").what
    assert "exclude each other" in error_of(verbs.app, "register", *mine, "--stake", "9", "--add", "1").what

    moved = error_of(verbs.app, "register", *mine, "--name", "another-folder")
    assert "peer id: 0x" in moved.why
    payout = testchain.signers[13].address
    done = told(verbs.app, "register", *mine, "--name", "another-folder", "--payout", payout, "--yes")
    assert done["payout"] == payout
    assert done["peer_id_hash"] != first["peer_id_hash"]
    by_another = error_of(verbs.app, "register", *mine, "--owner", "other", "--add", "1")
    assert "Only the owner" in by_another.what
    assert "bonded" in RUNNER.invoke(verbs.app, ["register", *mine, "--name", "another-folder"]).stdout


def test_unbonding_says_what_it_means_and_wants_a_yes(testchain: TestChain, monkeypatch: pytest.MonkeyPatch) -> None:
    Keystores().add("op", testchain.signers[14], "correct horse", n=CHEAP_SCRYPT_N)
    mine = ["--network", str(testchain.network.path), "--wallet", "op"]
    absent = error_of(verbs.app, "unbond", *mine, "--yes")
    assert "is not registered" in absent.what
    assert "node register" in absent.next_step
    told(verbs.app, "register", *mine, "--stake", "2")

    for more in ([], ["--json"]):
        refused = error_of(verbs.app, "unbond", *mine, *more)
        assert "--yes" in refused.next_step
        for part in ("2 coins", "not paid from now on", "none can be bonded", node_name(testchain.signers[14].address)):
            assert part in refused.why
    monkeypatch.setattr(leaving, "sys", AtATerminal)
    no = RUNNER.invoke(verbs.app, ["unbond", *mine], input="\n")
    assert "Unbond it?" in no.stdout
    assert isinstance(no.exception, ConfigError), "a bare return is a no"
    assert told(verbs.app, "status", *mine)["unbonding_wei"] == 0, "nothing was sent"

    assert told(verbs.app, "unbond", *mine, "--yes")["unbonding_wei"] == 2 * COIN
    for verb in (["unbond", "--yes"], ["register", "--stake", "3", "--yes"], ["register", "--add", "3", "--yes"]):
        again = error_of(verbs.app, *verb, *mine)
        assert "is leaving: 2 coins" in again.what
        assert "hivemint node withdraw" in again.next_step


def test_the_first_registration_asks_at_a_terminal(testchain: TestChain, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = testchain.signers[15]
    Keystores().add("op", operator, "correct horse", n=CHEAP_SCRYPT_N)
    mine = ["--network", str(testchain.network.path), "--wallet", "op"]
    monkeypatch.setattr(registering, "sys", AtATerminal)
    no = RUNNER.invoke(verbs.app, ["register", *mine], input="n\n")
    for part in ("Register, bond?", "stake: 1 coin", node_name(operator.address), f"owner: {operator.address}"):
        assert part in no.stdout
    assert not told(verbs.app, "status", *mine)["registered"], "nothing was sent"
    yes = RUNNER.invoke(verbs.app, ["register", *mine], input="\n")
    assert yes.exit_code == 0
    assert told(verbs.app, "status", *mine)["bonded_wei"] == COIN


def test_stake_and_coin_are_looked_at_before_anything_is_sent(testchain: TestChain) -> None:
    Keystores().add("op", testchain.signers[16], "correct horse", n=CHEAP_SCRYPT_N)
    mine = ["--network", str(testchain.network.path), "--wallet", "op"]
    dear = error_of(verbs.app, "register", *mine, "--stake", "1000000")
    assert "1,000,000 coins is more than this wallet can pay" in dear.what
    assert re.search(r"holds (10,000|9,999\.\d+) coins", dear.why), "what others of this account have paid for gas"
    small = error_of(verbs.app, "register", *mine, "--stake", "0.5")
    assert ("0.5 coins is too small" in small.what, "1 coin at least" in small.why) == (True, True)
    assert not told(verbs.app, "status", *mine)["registered"]


def test_a_retired_key_is_not_registered_again() -> None:
    owner = Address("0x" + "11" * 20)
    known = NodeInfo(owner, owner, owner, b"\x01" * 32, True, 0, 0, 0, 0, 0)
    with pytest.raises(ConfigError, match="retired"):
        difference(known, Wanted(b"\x01" * 32), COIN, owner)
    with pytest.raises(BadInput, match="exclude"):
        difference(None, Wanted(b"\x01" * 32, stake=1, add=1), COIN, owner)
