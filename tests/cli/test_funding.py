"""`hivemint account fund` on a real chain: what it pays, tops up within a budget, and leaves alone."""

import asyncio

import pytest
import typer

from hivemint.cli.wallet import account, funding
from hivemint.protocol.errors import BadInput, HivemintError, SwarmError
from hivemint.protocol.ids import ONE_CREDIT
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores
from hivemint.protocol.node_name import node_name
from hivemint.protocol.signing import Signer
from support.chain import TestChain
from support.credits import credits_for
from support.verbs import RUNNER, error_of, told

pytest_plugins = ["support.verbs"]
pytestmark = pytest.mark.usefixtures("home")


def test_accounts_are_topped_up_within_a_days_budget(testchain: TestChain) -> None:
    client = Signer(b"\xc2" * 32)
    nodes = [asyncio.run(credits_for(testchain, client, number)).address for number in (0xC4, 0xC6)]
    Keystores().add("ann", client, "correct horse", n=CHEAP_SCRYPT_N)
    common = ["--network", str(testchain.network.path), "--wallet", "ann"]
    named = [word for node in nodes for word in ("--node", node)]

    shown = RUNNER.invoke(account.app, ["fund", "2", "--node", nodes[0], "--yes", *common])
    assert shown.exit_code == 0, shown.output
    assert f"the account at {node_name(nodes[0])} ({nodes[0]})\n  gets 2 HMC" in shown.output
    assert "in all  2 HMC of the wallet's 200 HMC" in shown.output
    assert "2 HMC deposited in 1 account" in shown.output

    auto = ["fund", "--auto", "--keep", "3", "--budget", "3.5", "--yes", *named, *common]
    first = told(account.app, *auto)
    wanted = {nodes[1]: 3 * ONE_CREDIT, nodes[0]: ONE_CREDIT // 2}
    assert first["deposits"] == wanted, "the emptiest first, and never more than the budget"
    again = told(account.app, *auto)
    assert (again["transaction"], again["deposits"]) == (None, {}), "the day's budget is used, by another process too"
    more = told(account.app, *auto[:5], "4", "--yes", *named, *common)
    assert more["deposits"] == {nodes[0]: ONE_CREDIT // 2}
    testchain.devchain.mine()
    rows = {row["node"]: row["left"] for row in told(account.app, "list", *common)}
    assert rows == {nodes[0]: 3 * ONE_CREDIT, nodes[1]: 3 * ONE_CREDIT}

    told(account.app, "thaw", nodes[0], *common)
    left_out = told(account.app, "fund", "1", "--yes", *named, *common)
    assert list(left_out["deposits"]) == [nodes[1]]
    assert "account cancel" in left_out["left_out"][nodes[0]]
    alone = error_of(account.app, "fund", "1", "--yes", "--node", nodes[0], *common)
    assert isinstance(alone, SwarmError)
    assert "thaws" in alone.why
    (thawing,) = [row for row in told(account.app, "list", *common) if row["node"] == nodes[0]]
    assert (thawing["left"], thawing["state"][:12]) == (0, "thaws until ")

    poor = error_of(account.app, "fund", "500", "--yes", "--node", nodes[1], *common)
    assert "testnet faucet" in poor.next_step


def test_nothing_is_deposited_where_nobody_can_be_asked(testchain: TestChain) -> None:
    """As `wallet send`: a script says --yes. Before a password is asked for, and before the chain is."""
    words = ["fund", "2", "--network", str(testchain.network.path), "--wallet", "nobody"]
    for more in ([], ["--json"]):
        refused = error_of(account.app, *words, *more)
        assert isinstance(refused, BadInput)
        assert "add --yes" in refused.next_step


def test_a_no_deposits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: False)
    with pytest.raises(HivemintError, match="Nothing was deposited"):
        funding._consent(ask=True)
    funding._consent(ask=False)


def test_what_does_not_go_together_is_told(testchain: TestChain) -> None:
    common = ["--network", str(testchain.network.path), "--wallet", "ann"]
    refused = (
        (),
        ("1", "--keep", "2"),
        ("--auto",),
        ("--auto", "--keep", "1"),
        ("1", "--auto", "--keep", "1", "--budget", "1"),
        ("--auto", "--keep", "0", "--budget", "1"),
        ("--auto", "--keep", "1", "--budget", "1", "--client", testchain.signers[3].address),
    )
    for words in refused:
        assert isinstance(error_of(account.app, "fund", *words, *common), BadInput), words
