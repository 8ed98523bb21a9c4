"""The file of a talk: for its owner alone, whole or not at all, for one process at a time, and looked at before use."""

import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hivemint.client.kept import KeptHop, KeptTalk, TextMark
from hivemint.protocol.errors import BadInput
from hivemint.protocol.ids import SessionId
from hivemint.protocol.receipt import opening, sign_receipt
from support.promises import DOMAIN, signer

MODEL = b"\x07" * 32


def mark() -> TextMark:
    node = signer(5)
    receipt = sign_receipt(DOMAIN, opening(node.address, signer(6).address, SessionId(b"\x01" * 32)), node)
    return TextMark(7, (KeptHop(b"peer", 0, 15, receipt.signed), KeptHop(b"other", 15, 30, receipt.signed)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "talk"


def test_what_was_written_is_found_again(path: Path) -> None:
    first = KeptTalk(path, MODEL)
    assert (first.ids, first.mark, first.note) == ([], None, {})
    first.remember({"said": [["user", [1, 2]]]})
    first.write([1, 2, 70_000], mark())
    first.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = KeptTalk(path, MODEL)
    assert (again.ids, again.mark, again.note) == ([1, 2, 70_000], mark(), {"said": [["user", [1, 2]]]})
    again.remove()
    again.close()
    assert not path.exists()


def test_one_process_has_it_at_a_time(path: Path) -> None:
    first = KeptTalk(path, MODEL)
    with pytest.raises(BadInput, match="another process"):
        KeptTalk(path, MODEL)
    first.close()
    first.close()
    KeptTalk(path, MODEL).close()


def test_a_talk_with_another_model_cannot_go_on(path: Path) -> None:
    first = KeptTalk(path, MODEL)
    first.write([1], None)
    first.close()
    with pytest.raises(BadInput, match="another model"):
        KeptTalk(path, b"\x08" * 32)


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_what_is_no_talk_is_refused_in_words(path: Path, cut: int) -> None:
    first = KeptTalk(path, MODEL)
    first.write([1, 2, 3], mark())
    first.close()
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadInput, match="is no talk"):
        KeptTalk(path, MODEL)


@pytest.mark.parametrize(
    "changes",
    [{"ids": b"123"}, {"version": 2}, {"mark": {"position": -1, "hops": []}}, {"more": 1}, {"note": []}, {"ids": "x"}],
)
def test_hostile_documents_are_refused(path: Path, changes: dict[str, Any]) -> None:
    plain = {"version": 1, "model": MODEL, "ids": b"", "mark": None, "note": {}}
    path.write_bytes(msgspec.msgpack.encode(plain | changes))
    with pytest.raises(BadInput):
        KeptTalk(path, MODEL)
    path.write_bytes(msgspec.msgpack.encode(plain))
    KeptTalk(path, MODEL).close()


def test_no_file_is_written_through_a_link_that_somebody_laid(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path.with_name(".talk.new").symlink_to(victim)
    talk = KeptTalk(path, MODEL)
    with pytest.raises(BadInput, match="cannot keep"):
        talk.write([1], None)
    assert victim.read_text() == "mine"
    talk.close()
