"""A node's settlements wait: its status says why, in the file that it writes and in the command."""

from pathlib import Path

import pytest

from hivemint.cli.node.standing import last_seen, running, show
from hivemint.node.status import Snapshot, _told, write_status
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import ONE_CREDIT
from support.two_endpoints import Scene


async def test_gas_above_the_ceiling_is_told_in_the_nodes_status(
    scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await scene.promise(2 * ONE_CREDIT)
    for endpoint in scene.each():
        endpoint.lie("eth_getBlockByNumber", lambda params, result: result | {"baseFeePerGas": hex(10**13)})
    with pytest.raises(ChainError):
        await scene.settler.round()
    snapshot = Snapshot(
        at=0,
        peer="",
        addresses=[],
        operator=scene.node.address,
        model="a model",
        blocks="0:1",
        numerics="",
        sessions={},
        tokens={},
        tokens_per_s=0,
        wait_s={},
        kv_free=0,
        kv_total=0,
        refusals={},
        receipts={},
        credits={"settled": 0},
        reasons=_told(scene.settler.reasons),
        trouble={},
    )
    write_status(tmp_path, snapshot)
    seen = last_seen(tmp_path / "status.json")
    show({"operator": scene.node.address, "chain": "it is away", "last_seen": seen, **running(seen)})
    told = " ".join(capsys.readouterr().out.split())
    assert "why settled" in told
    assert "10,000 gwei now" in told
    assert "HIVEMINT_MAX_FEE" in told.replace(" ", "")
