"""Addresses that people and files write."""

import re

from eth_utils.address import is_checksum_address, to_checksum_address

from hivemint.protocol.ids import Address

_FORM = re.compile(r"0x[0-9a-fA-F]{40}")


def read_address(text: str) -> Address | None:
    """0x and 40 hex digits: all of one case, or with the checksum of EIP-55. None for anything else."""
    if not _FORM.fullmatch(text):
        return None
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and not is_checksum_address(text):
        return None
    return Address(to_checksum_address(text))
