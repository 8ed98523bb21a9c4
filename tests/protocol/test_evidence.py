"""Evidence of two signed answers to one step: what proves it, and files that prove nothing."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemint.protocol import evidence
from hivemint.protocol.errors import BadInput, HivemintError, ProofError
from hivemint.protocol.evidence import Equivocation
from hivemint.protocol.receipt import SignedReceipt, sign_receipt
from hivemint.protocol.signing import Signer
from support.promises import DOMAIN, Work, signer

NODE = signer(2)


def pair(by: Signer = NODE, **changes: Any) -> tuple[SignedReceipt, SignedReceipt]:
    """A receipt, and the same with `changes`, signed by `by`."""
    first = Work(signer(1), NODE).step()
    other = msgspec.structs.replace(first.body, **{"head": b"\1" * 32, **changes})
    return first.signed, sign_receipt(DOMAIN, other, by).signed


def proof() -> Equivocation:
    return evidence.prove(DOMAIN, *pair())


def test_two_signed_answers_to_one_step_prove_it() -> None:
    assert proof().node == NODE.address


@pytest.mark.parametrize("changes", [{"step": 2}, {"session_id": b"\2" * 32}, {"node": signer(3).address}])
def test_receipts_of_different_steps_prove_nothing(changes: dict[str, Any]) -> None:
    with pytest.raises(ProofError, match="different steps"):
        evidence.prove(DOMAIN, *pair(**changes))


def test_the_same_answer_twice_proves_nothing() -> None:
    one, _ = pair()
    with pytest.raises(ProofError, match="say the same"):
        evidence.prove(DOMAIN, one, one)


def test_an_answer_that_another_signed_proves_nothing() -> None:
    one, other = pair(by=signer(3))
    for receipts in ((one, other), (other, one)):
        with pytest.raises(ProofError, match="forged"):
            evidence.prove(DOMAIN, *receipts)


def test_a_file_says_what_was_kept(tmp_path: Path) -> None:
    kept = proof()
    path = evidence.keep(tmp_path / "evidence", kept)
    assert path is not None
    assert evidence.read(path) == kept
    assert path.stat().st_mode & 0o77 == 0
    assert evidence.keep(tmp_path / "evidence", kept) is None, "once is enough"


def test_a_folder_keeps_a_bounded_number(tmp_path: Path) -> None:
    kept = [evidence.keep(tmp_path, proof()) for _ in range(evidence.MOST + 3)]
    assert sum(path is not None for path in kept) == evidence.MOST == len(list(tmp_path.iterdir()))


def changed(**changes: Any) -> bytes:
    document = json.loads(evidence.to_json(proof()))
    for name, value in changes.items():
        place = document if name in document else document["receipts"][1]
        place[name] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"chain_id": -1},
        {"chain_id": 2**64},
        {"chain_id": "1"},
        {"settlement": "0x00"},
        {"settlement": NODE.address.lower()},
        {"receipts": []},
        {"receipts": [{}, {}]},
        {"step": -1},
        {"tokens": 2**63},
        {"head": "0x12"},
        {"head": "0xzz"},
        {"signature": ""},
        {"node": "nobody"},
        {"surplus": 1},
    ],
)
def test_a_document_that_is_none_is_refused_in_words(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="no evidence"):
        evidence.from_json(changed(**changes))


@pytest.mark.parametrize("changes", [{"chain_id": 1}, {"tokens": 7}, {"signature": "0x" + "11" * 64}])
def test_a_changed_document_proves_nothing(changes: dict[str, Any]) -> None:
    with pytest.raises(ProofError):
        evidence.from_json(changed(**changes))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(HivemintError):
        evidence.from_json(data)


def test_a_file_that_is_missing_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        evidence.read(tmp_path / "none.json")
    (tmp_path / "large.json").write_bytes(evidence.to_json(proof()) + b" " * 20_000)
    with pytest.raises(BadInput, match="larger"):
        evidence.read(tmp_path / "large.json")
