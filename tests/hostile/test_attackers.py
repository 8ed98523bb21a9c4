"""Each of the ten attackers against a real node, for some seconds: it did harm's work, and an honest client its own."""

import asyncio
import time
from pathlib import Path

import pytest
import torch

from hivemint.protocol.errors import ChainError
from support.attackers import ATTACKS, attack
from support.gang import Target, Told
from support.one_node import ASK, Served, one_node
from support.promises import DOMAIN, signer
from support.tiny import tiny_model

SECONDS = 5.0
WIDTH = 32
DONE = {
    "repeats": "repeats",
    "seats": "sessions",
    "tensors": "behind",
    "identities": "forged",
    "directory": "asked",
    "routes": "no such neighbour",
    "dust": "steps",
    "no_chain": "links",
    "half_frames": "bytes",
    "sybils": "ids",
}
"""What counts as having attacked."""


def target(at: Served) -> Target:
    expiry, model = int(time.time()) + 3600, bytes(at.node.offer.model_id)
    return Target(
        at.host.addresses,
        "test",
        at.host.addresses,
        DOMAIN,
        expiry,
        model,
        range(1),
        WIDTH,
        ASK,
        max_rows=16,
        wallets=[signer(number) for number in range(300, 308)],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
async def test_an_honest_client_goes_on_beside(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with one_node(tiny_model(tmp_path / "tiny"), tmp_path) as at:
        session = await at.open(signer(20), price=ASK, max_tokens=64)
        await session.step(torch.randn(4, WIDTH), 0)
        if name == "no_chain":
            away(at, monkeypatch)
        attacking = asyncio.create_task(attack(name, target(at), SECONDS))
        while not attacking.done():
            await session.step(torch.randn(1, WIDTH), 4)
            await asyncio.sleep(0.05)
        told = attacking.result()
        assert told[DONE[name]] > 0, told
        assert not told["secrets"]
        assert not told["reached"]
        await session.step(torch.randn(1, WIDTH), 4)
        async with asyncio.timeout(10):
            while len(at.host._links) > 1 or len(at.node.registry.occupants) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert len(at.node.engine.room.seats) == 1


def away(at: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain's answer from now on; its text names what no stranger may hear."""

    async def gone(*_: object) -> None:
        raise ChainError("http://127.0.0.1:8545/v2/secret does not answer")

    for method in ("account", "key", "time"):
        monkeypatch.setattr(at.chain, method, gone)


def test_every_attack_is_named_once() -> None:
    assert len(ATTACKS) == 10
    assert ATTACKS.keys() == DONE.keys()
    assert isinstance(Told(), dict)
