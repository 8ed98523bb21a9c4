"""What a node measures of its machine and of its way to others."""

from pathlib import Path
from typing import Any

import pytest

from hivemint.model.local_models import LocalModel
from hivemint.node.kv import cache
from hivemint.node.placement.measure import rate, room, trip
from hivemint.node.settings import NodeSettings
from hivemint.protocol.errors import ConfigError
from support.node_pair import Pair

pytest_plugins = ["support.models", "support.node_pair"]


def test_a_real_block_runs(smollm2: LocalModel) -> None:
    assert 0.1 < rate(smollm2, NodeSettings.load(threads=1)) < 1e6


def test_the_operators_limit_bounds_what_fits(smollm2: LocalModel) -> None:
    assert room(smollm2, NodeSettings.load(max_blocks=3)).blocks == 3
    assert room(smollm2, NodeSettings.load()).blocks > 3


def test_a_machine_without_room_is_told_what_would_help(smollm2: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "free_memory", lambda: 1 << 20)
    with pytest.raises(ConfigError, match="Not one block") as told:
        room(smollm2, NodeSettings.load())
    assert "precision" in told.value.next_step


async def test_the_way_to_other_nodes_is_measured(pair: Pair, tmp_path: Path) -> None:
    records: list[Any] = [pair.first.node.record(), pair.second.node.record()]
    found = await trip(pair.client, records)
    assert found is not None
    assert 0 < found < 3
    await pair.second.host.close()
    assert await trip(pair.client, records[1:]) is None
    assert await trip(pair.client, []) is None
