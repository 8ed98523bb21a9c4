"""`hivemint node report | pull-reward | offer | accept` on a real chain."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hivemint.cli.node import verbs
from hivemint.contracts.bindings import Bindings
from hivemint.protocol import evidence
from hivemint.protocol.eip712 import Domain
from hivemint.protocol.errors import BadInput, ProofError
from hivemint.protocol.ids import PeerId
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores
from hivemint.protocol.receipt import sign_receipt
from hivemint.protocol.signing import Signer
from support.chain import TestChain
from support.promises import Work
from support.verbs import RUNNER, error_of, told

pytest_plugins = ["support.verbs"]
pytestmark = pytest.mark.usefixtures("home")
COIN = 10**18


def kept(folder: Path, domain: Domain, operator: Signer, client: Signer) -> Path:
    """What a client or a node writes when it has seen two answers to one step."""
    work = Work(client, operator, domain=domain)
    first = work.step()
    other = msgspec.structs.replace(first.body, head=b"\1" * 32)
    proof = evidence.prove(domain, first.signed, sign_receipt(domain, other, operator).signed)
    path = evidence.keep(folder, proof)
    assert path is not None
    return path


async def registered(testchain: TestChain, owner: Signer, operator: Signer, stake: int) -> None:
    async with await Bindings.connect(testchain.network) as contracts:
        domain = testchain.network.domain
        await contracts.registry.register(owner, operator, PeerId(b"a peer"), domain, stake=stake)


async def coins(testchain: TestChain, address: Any) -> int:
    async with await Bindings.connect(testchain.network) as contracts:
        return await contracts.chain.balance(address)


def test_two_signed_answers_cost_the_node_half_of_its_stake(tmp_path: Path, testchain: TestChain) -> None:
    operator, reporter, place = Signer(b"\x91" * 32), testchain.signers[7], testchain.network
    Keystores().add("ann", reporter, "correct horse", n=CHEAP_SCRYPT_N)
    file = str(kept(tmp_path / "evidence", place.domain, operator, reporter))
    network = ["--network", str(place.path)]
    assert "not registered" in error_of(verbs.app, "report", file, *network, "--dry-run").why
    asyncio.run(registered(testchain, testchain.signers[6], operator, 40 * COIN))

    dry = told(verbs.app, "report", file, *network, "--dry-run")
    assert (dry["sent"], dry["lost_wei"], dry["reward_wei"]) == (False, 20 * COIN, 2 * COIN)
    assert "2.000000 coins of it to you" in RUNNER.invoke(verbs.app, ["report", file, *network, "--dry-run"]).stdout
    assert "no reward" in error_of(verbs.app, "pull-reward", *network, "--wallet", "ann").what
    done = told(verbs.app, "report", file, *network, "--wallet", "ann")
    assert {name: done[name] for name in ("node", "lost_wei", "reward_wei")} == {
        "node": operator.address,
        "lost_wei": 20 * COIN,
        "reward_wei": 2 * COIN,
    }
    assert "slashed already" in error_of(verbs.app, "report", file, *network, "--wallet", "ann").what

    before = asyncio.run(coins(testchain, reporter.address))
    assert told(verbs.app, "pull-reward", *network, "--wallet", "ann")["reward_wei"] == 2 * COIN
    assert asyncio.run(coins(testchain, reporter.address)) > before + COIN


def test_odd_files_are_told(tmp_path: Path, testchain: TestChain) -> None:
    place, operator = testchain.network, Signer(b"\x92" * 32)
    network = ["--network", str(place.path), "--dry-run"]
    foreign = kept(tmp_path / "foreign", Domain(1, place.domain.settlement), operator, testchain.signers[7])
    assert "chain 1" in error_of(verbs.app, "report", str(foreign), *network).why
    good = json.loads(kept(tmp_path / "good", place.domain, operator, testchain.signers[7]).read_text())
    file = tmp_path / "file.json"
    for text in ("", "[]", "{", json.dumps(good | {"more": 1}), json.dumps(good | {"settlement": "0x12"})):
        file.write_text(text)
        assert isinstance(error_of(verbs.app, "report", str(file), *network), BadInput)
    file.write_text(json.dumps(good | {"receipts": [good["receipts"][0]] * 2}))
    assert isinstance(error_of(verbs.app, "report", str(file), *network), ProofError)
    file.write_text(json.dumps(good | {"receipts": [good["receipts"][0], good["receipts"][1] | {"tokens": 99}]}))
    assert "forged" in error_of(verbs.app, "report", str(file), *network).what
    assert "cannot be read" in error_of(verbs.app, "report", str(tmp_path / "none"), *network).what


def test_a_node_goes_to_another_owner_in_two_steps(testchain: TestChain) -> None:
    operator, owner, heir = Signer(b"\x93" * 32), testchain.signers[6], testchain.signers[8]
    for name, key in (("op", operator), ("cold", owner), ("heir", heir)):
        Keystores().add(name, key, "correct horse", n=CHEAP_SCRYPT_N)
    asyncio.run(registered(testchain, owner, operator, 10 * COIN))
    network = ["--network", str(testchain.network.path)]
    mine = [*network, "--wallet", "op", "--owner", "cold"]
    assert "offered to nobody" in error_of(verbs.app, "accept", operator.address, *network, "--wallet", "heir").why
    assert isinstance(error_of(verbs.app, "offer", *mine), BadInput)
    assert isinstance(error_of(verbs.app, "offer", heir.address, "--take-back", *mine), BadInput)
    assert told(verbs.app, "offer", heir.address, *mine)["offered_to"] == heir.address
    assert "offered_to" not in told(verbs.app, "offer", "--take-back", *mine)
    told(verbs.app, "offer", heir.address, *mine)
    assert told(verbs.app, "status", *network, "--wallet", "op")["owner"] == owner.address
    assert told(verbs.app, "accept", operator.address, *network, "--wallet", "heir")["owner"] == heir.address
    assert "Only the owner" in error_of(verbs.app, "unbond", *mine, "--yes").what
