"""Which blocks an earlier run has published, and its farewell there."""

from pathlib import Path

import msgspec
import pytest

from hivemint.node.last_record import LastRecord
from hivemint.protocol.ids import ModelId
from support.node_records import KEY, MODEL, OTHER_KEY, record

OLD = record(blocks=(0, 15))


def again(folder: Path) -> LastRecord:
    """As a new run reads it."""
    return LastRecord(folder / "record.json")


def test_other_blocks_get_a_farewell_that_the_new_record_outlives(tmp_path: Path) -> None:
    again(tmp_path).remember(OLD)
    new = record(blocks=(10, 20), life=90)
    farewell = again(tmp_path).farewell(new)
    assert farewell is not None
    assert farewell.leaving
    assert farewell.blocks == range(15)
    assert OLD.expires < farewell.expires < new.expires


def test_another_model_gets_one_too(tmp_path: Path) -> None:
    again(tmp_path).remember(OLD)
    new = record(blocks=(0, 15), model=ModelId(b"n" * 32))
    farewell = again(tmp_path).farewell(new)
    assert farewell is not None
    assert farewell.model_id == MODEL


@pytest.mark.parametrize("blocks", [(0, 15), (0, 20)])
def test_a_record_that_replaces_the_old_one_everywhere_needs_none(tmp_path: Path, blocks: tuple[int, int]) -> None:
    again(tmp_path).remember(OLD)
    assert again(tmp_path).farewell(record(blocks=blocks)) is None


def test_another_peers_record_is_not_taken_back(tmp_path: Path) -> None:
    again(tmp_path).remember(OLD)
    assert again(tmp_path).farewell(record(key=OTHER_KEY, blocks=(20, 30))) is None


def test_what_was_published_last_counts(tmp_path: Path) -> None:
    last = again(tmp_path)
    last.remember(OLD)
    last.remember(record(blocks=(20, 30)))
    assert last.farewell(record(blocks=(20, 30))) is None
    assert again(tmp_path).farewell(record(blocks=(20, 30))) is None
    assert again(tmp_path).farewell(OLD) is not None


@pytest.mark.parametrize(
    "change", [{"first_block": 9, "end_block": 3}, {"end_block": 10**6}, {"model_id": "AAAA"}, {"peer": 5}]
)
def test_a_damaged_file_counts_as_none(tmp_path: Path, change: dict[str, object]) -> None:
    again(tmp_path).remember(OLD)
    path = tmp_path / "record.json"
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | change))
    assert again(tmp_path).farewell(record(blocks=(20, 30))) is None
    path.write_bytes(b"{")
    assert again(tmp_path).farewell(record(blocks=(20, 30))) is None


def test_a_disk_that_is_full_costs_nothing_but_the_memory(tmp_path: Path) -> None:
    last = LastRecord(tmp_path / "nowhere" / "record.json")
    last.remember(OLD)
    assert last.farewell(record(blocks=(20, 30))) is not None
    assert OLD.peer == KEY.peer_id
