"""`hivemint account close` with real node processes on a real chain: paid out at once, and no work under a release."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from hivemint.cli.wallet import account
from hivemint.protocol.credits import mintable
from hivemint.protocol.errors import HivemintError, SwarmError
from hivemint.protocol.ids import Credits
from hivemint.protocol.signing import Signer
from hivemint.testnet.localnet import PASSWORD, NodePlan
from support.localnet import GRANT, RealNet, exactly, prompt

pytest_plugins = ["support.localnet"]


@pytest.fixture(autouse=True)
def home(localnet: RealNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVEMINT_HOME", str(localnet.net.home.root))
    monkeypatch.setenv("HIVEMINT_PASSWORD", PASSWORD)
    monkeypatch.setenv("HIVEMINT_NETWORK", str(localnet.net.network_file))
    monkeypatch.delenv("HIVEMINT_WALLET", raising=False)


def told(*words: str) -> Any:
    result = CliRunner().invoke(account.app, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def error_of(*words: str) -> HivemintError:
    result = CliRunner().invoke(account.app, list(words))
    assert isinstance(result.exception, HivemintError), result.output
    return result.exception


def credits_of(net: RealNet, wallet: Signer) -> int:
    return int(net.chain(lambda bindings: bindings.token.balance(wallet.address)))


def worked(net: RealNet, wallet: Signer) -> None:
    with net.client(wallet) as model:
        model.generate(prompt(8), **exactly(3))


def closed_total(net: RealNet, plan: NodePlan, wallet: Signer) -> int:
    (event,) = net.events("Closed", client=wallet.address, node=net.operator(plan).address)
    return int(event.values["total"])


def test_a_client_leaves_and_comes_back(localnet: RealNet) -> None:
    """Settled and paid back in one transaction; kill -9 and a restart let no paid work in under the release."""
    wallet, plan = localnet.payer("leaver"), localnet.first
    node = localnet.operator(plan).address
    worked(localnet, wallet)
    owner = localnet.net.signer(plan.owner)
    done = told("close", node, "--wallet", "leaver", "--by", plan.owner)
    found = localnet.account(wallet, plan)
    assert (found.balance, found.thaw_end) == (0, 0)
    assert found.collected > 0
    assert 0 <= done["settled_wei"] <= found.collected, "the node may have settled before, all or a part"
    assert done["paid_back_wei"] == GRANT - found.collected == credits_of(localnet, wallet)
    settled = localnet.settlements(wallet, plan)
    assert sum(one["minted"] for one in settled) == mintable(Credits(found.collected))
    assert done["settled_wei"] in (0, settled[-1]["burned"])
    assert closed_total(localnet, plan, wallet) == found.collected

    (row,) = [one for one in told("list", "--wallet", "leaver") if one["node"] == node]
    assert row["collected"] == found.collected
    assert row["promised"] >= found.collected
    assert "nothing to get back" in error_of("close", node, "--wallet", "leaver").what

    localnet.kill(plan)
    localnet.start(plan)
    funded = localnet.chain(
        lambda bindings: bindings.settlement.fund(owner, {node: 1_000_000}, client=wallet.address)
    ).block
    localnet.until(
        lambda: (
            localnet.chain(lambda bindings: bindings.chain.block_number()) > funded + localnet.net.network.confirmations
        ),
        "confirmation",
    )
    with pytest.raises(HivemintError, match="released"), localnet.client(wallet, patience=1) as model:
        model.generate(prompt(8), **exactly(2))
    assert localnet.account(wallet, plan).balance == 1_000_000
    localnet.devchain.travel(1900)
    worked(localnet, wallet)
    localnet.collected(wallet, plan, int(found.collected) + 1)


def test_another_wallet_pays_for_it_and_an_absent_node_is_told(localnet: RealNet) -> None:
    wallet, plan = localnet.payer("poor"), localnet.last
    node = localnet.operator(plan).address
    owner = localnet.first.owner
    done = told("close", node, "--wallet", "poor", "--by", owner)
    assert (done["settled_wei"], done["paid_back_wei"]) == (0, GRANT)
    assert localnet.chain(lambda bindings: bindings.chain.balance(wallet.address)) == 0, "it never had a coin"

    first = localnet.operator(localnet.first).address
    localnet.kill(localnet.first)
    error = error_of("close", first, "--wallet", "poor", "--by", owner)
    assert isinstance(error, SwarmError)
    assert f"hivemint account thaw {first}" in error.next_step
    assert localnet.account(wallet, localnet.first).balance == GRANT
