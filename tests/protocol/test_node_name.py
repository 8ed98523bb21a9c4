"""Readable names of nodes: the same for everybody, and never taken for more than they are."""

import pytest

from hivemint.protocol import node_name as names
from hivemint.protocol.ids import Address
from hivemint.protocol.node_name import matching, named, node_name, reads_as_name

ONE = Address("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266")


def test_a_name_is_of_the_address_however_it_is_written() -> None:
    name = node_name(ONE)
    assert name == node_name(ONE.lower()) == node_name("0x" + ONE[2:].upper()) == node_name(ONE[2:])
    adjective, noun, digits = name.split("-")
    assert adjective in names._ADJECTIVES
    assert noun in names._NOUNS
    assert len(bytes.fromhex(digits)) == 2
    assert named(ONE) == f"{name} ({ONE})"


def test_a_name_is_the_same_in_every_version() -> None:
    """People have written it down: no list may change its order."""
    assert node_name(ONE) == "firm-lynx-7602"


def test_words_are_64_of_each_and_short() -> None:
    for words in (names._ADJECTIVES, names._NOUNS):
        assert len(set(words)) == len(words) == 64
        assert all(word.isascii() and word.isalpha() and word.islower() and 2 < len(word) < 10 for word in words)


def test_names_spread_over_all_words() -> None:
    every = [node_name(f"0x{number:040x}").split("-") for number in range(4000)]
    assert {one[0] for one in every} == set(names._ADJECTIVES)
    assert {one[1] for one in every} == set(names._NOUNS)
    assert len({"-".join(one) for one in every}) == len(every)


@pytest.mark.parametrize(
    "text", ["candid-quail-52d6", "Candid-Quail-52D6", "candid-quail-5", "candid-qu", "cand", "can"]
)
def test_what_reads_as_a_name(text: str) -> None:
    assert reads_as_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "c",
        "bob",
        ONE,
        ONE[2:],
        "candid-duck-52d6",
        "candid-quail-52d6a",
        "quail-candid-52d6",
        "candid-quail-xyz",
        "candid quail",
        "all",
    ],
)
def test_what_does_not(text: str) -> None:
    assert not reads_as_name(text)


def test_the_beginning_of_a_name_is_enough_where_it_is_no_others() -> None:
    every = [Address(f"0x{number:040x}") for number in range(1, 3000)]
    name = node_name(every[7])
    assert matching(name, every) == [every[7]]
    assert matching(name.upper(), every) == [every[7]]
    assert matching("0", every) == []
    alike = matching(name.split("-")[0], every)
    assert every[7] in alike
    assert len(alike) > 1
    assert alike == sorted(alike)
