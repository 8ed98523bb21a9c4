"""Addresses that people write: one wrong letter is found where the case carries a checksum."""

import pytest

from hivemint.protocol.addresses import read_address

ADDRESS = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"


@pytest.mark.parametrize("text", [ADDRESS, ADDRESS.lower(), "0x" + ADDRESS[2:].upper()])
def test_an_address_in_its_three_spellings(text: str) -> None:
    assert read_address(text) == ADDRESS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        ADDRESS[2:],
        ADDRESS[:-1],
        ADDRESS + "0",
        ADDRESS + "\n",
        " " + ADDRESS,
        ADDRESS[:-1] + "c",
        ADDRESS[:-1] + "D",
        "0X" + ADDRESS[2:],
        ADDRESS[:-1] + "\u0661",
    ],
)
def test_what_is_no_address(text: str) -> None:
    assert read_address(text) is None
