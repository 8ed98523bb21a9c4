"""NODE of a verb: an address, a name, or the beginning of one that is no other's."""

import pytest

from hivemint.cli.node_argument import one_of, operator_of
from hivemint.protocol.errors import BadInput
from hivemint.protocol.ids import Address
from hivemint.protocol.network import Contracts, Network
from hivemint.protocol.node_name import node_name

KNOWN = [Address(f"0x{number:040x}") for number in range(1, 40)]
NOBODY = Network("nowhere", 1, "http://127.0.0.1:9", Contracts(*[KNOWN[0]] * 6))


def test_an_address_needs_no_chain() -> None:
    assert operator_of(KNOWN[3], NOBODY) == KNOWN[3]


@pytest.mark.parametrize("text", ["0x12", "bob", "all", ""])
def test_what_is_neither_is_told_without_a_chain(text: str) -> None:
    with pytest.raises(BadInput, match="not an address"):
        operator_of(text, NOBODY)


def test_a_name_or_its_beginning_names_one() -> None:
    name = node_name(KNOWN[5])
    assert one_of(name, KNOWN, "nodes") == KNOWN[5]
    assert one_of(name[:-2].upper(), KNOWN, "nodes") == KNOWN[5]


def test_what_names_several_is_refused_with_the_candidates() -> None:
    alike = [Address(f"0x{number:040x}") for number in range(1, 3000) if node_name(f"0x{number:040x}")[:5] == "quick"]
    assert len(alike) > 8
    with pytest.raises(BadInput) as error:
        one_of("quick", alike, "accounts of bob")
    assert error.value.what == f"'quick' names {len(alike)} of the accounts of bob"
    assert f"{node_name(alike[0])} ({alike[0]})" in error.value.why
    assert error.value.why.endswith(", ...")


def test_what_names_nobody_is_refused_with_who_there_is() -> None:
    with pytest.raises(BadInput, match="names none of the nodes") as error:
        one_of("zzz", KNOWN[:2], "nodes")
    assert node_name(KNOWN[1]) in error.value.why
    with pytest.raises(BadInput, match="there are none"):
        one_of("zzz", [], "nodes")
