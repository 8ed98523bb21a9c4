"""Amounts of credits: what a settlement mints, and how people read and write amounts.

All amounts are integers in wei (1 HMC = 10^18 wei).
"""

import re
from collections.abc import Iterable, Mapping

from hivemint.protocol.errors import BadInput
from hivemint.protocol.ids import ONE_CREDIT, Credits

FEE = 500
"""1/10,000 of what is burned, the protocol's fee (`docs/protocol.md`, section 7)."""
WHOLE_FEE = 10_000
SYMBOL = "HMC"
UNITS: Mapping[str, int] = {
    SYMBOL: ONE_CREDIT,
    "mHMC": 10**15,
    "uHMC": 10**12,
    "nHMC": 10**9,
    "pHMC": 10**6,
    "fHMC": 10**3,
    "wei": 1,
}
"""Name -> wei, the largest first: parts of a credit as SI has them, with `u` for micro as terminals differ."""
_ROUGH, _WIDE = 1000, 10**7
_LONGEST = 100
"""Characters of an amount, and powers of ten: 2^96 wei are 29 digits, so nothing that can exist is near it."""
_TOO_FINE = "it is finer than one wei, a 10^-18th"
# No group of thousands begins with a zero: `0,001` is somebody's thousandth, and must not be read as one.
_NUMBER = re.compile(
    r"(?=\.?[0-9])(?P<whole>[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]{0,2}(?:_[0-9]{3})+|[0-9]*)"
    r"(?:\.(?P<decimals>[0-9]*))?(?:[eE](?P<exponent>[+-]?[0-9]{1,12}))?"
)


def mintable(collected: int, fee: int = FEE) -> Credits:
    """m(c) = c - ceil(c * FEE / 10000): what an account that has ever collected `collected` wei has minted in all."""
    return Credits(collected - -(-collected * fee // WHOLE_FEE))


def format_credits(amount: int, digits: int = 6, *, symbol: bool = True) -> str:
    """For people: thousands in groups, rounded towards zero to `digits` decimals; smaller amounts show 3 digits."""
    whole, rest = divmod(abs(amount), ONE_CREDIT)
    places = digits if whole else max(digits, 18 - len(str(rest)) + 3)
    decimals = f"{rest:018d}"[:places].rstrip("0")
    text = ("-" if amount < 0 else "") + f"{whole:,}" + (f".{decimals}" if decimals else "")
    return f"{text} {SYMBOL}" if symbol else text


def unit_of(amounts: Iterable[int]) -> str:
    """One unit for amounts that stand in one view: the largest one shows a digit before its point, and the smallest
    one at least its first digit, where that makes the largest not too wide.
    """
    sizes = [abs(amount) for amount in amounts if amount]
    if not sizes:
        return SYMBOL
    names = list(UNITS)
    at = next(index for index, name in enumerate(names) if max(sizes) >= UNITS[name])
    while at + 1 < len(names) and min(sizes) * _ROUGH < UNITS[names[at]] and max(sizes) < _WIDE * UNITS[names[at + 1]]:
        at += 1
    return names[at]


def in_unit(amount: int, unit: str, decimals: int = 3) -> str:
    """Without the unit's name, rounded towards zero, always so many decimals: such figures line up. An amount that
    would show as zero says so.
    """
    size = UNITS[unit]
    decimals = min(decimals, len(str(size)) - 1)
    parts = abs(amount) * 10**decimals // size
    if amount and not parts:
        return f"<{1 / 10**decimals:.{decimals}f}"
    whole, rest = divmod(parts, 10**decimals)
    return ("-" if amount < 0 else "") + f"{whole:,}" + (f".{rest:0{decimals}d}" if decimals else "")


def in_words(amount: int) -> str:
    """One amount by itself, in the unit that suits it: `107 uHMC`."""
    unit = unit_of([amount])
    number = in_unit(amount, unit)
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


def exact_credits(amount: int) -> str:
    """Every digit, nothing rounded: what `parse_credits` reads back to the same wei."""
    whole, rest = divmod(abs(amount), ONE_CREDIT)
    decimals = f"{rest:018d}".rstrip("0")
    return ("-" if amount < 0 else "") + str(whole) + (f".{decimals}" if decimals else "")


def parse_credits(text: str) -> Credits:
    """`1.5`, `1,000 HMC`, `20 nHMC`, `12 wei`. A comma stands between thousands alone, never before decimals.

    Raises BadInput for anything else, and for what is negative, finer than a wei or above 2^96-1 wei.
    """
    return Credits(_wei(text, "credits", UNITS))


def parse_coins(text: str) -> int:
    """The same for the chain's own coin, which has as many decimals: `10`, `0.5`, `12 wei`."""
    return _wei(text, "coins", {"wei": 1})


def _wei(text: str, of: str, units: Mapping[str, int]) -> int:
    plain = text.strip()
    if len(plain) > _LONGEST:
        raise _bad(text, of, f"it is longer than {_LONGEST} characters")
    number, named = _split(text, plain, of, units)
    if number.startswith("-") or number.lower() in ("nan", "inf", "infinity"):
        raise _bad(text, of, "an amount is finite and not negative")
    match = _NUMBER.fullmatch(number)
    if match is None and (meant := _with_point(number)):
        why = "a comma stands between thousands, and a point before decimals"
        raise _bad(text, of, why, f"write {meant}" + (f" {named}" if named else ""))
    if match is None:
        raise _bad(text, of, "it is not a number")
    whole, decimals = (match["whole"] or "").replace(",", "").replace("_", ""), (match["decimals"] or "").rstrip("0")
    digits, exponent = int(f"{whole}{decimals}" or "0"), int(match["exponent"] or 0) - len(decimals)
    if not digits:
        return 0
    if abs(exponent) > _LONGEST:  # before any power of ten is taken
        raise _bad(text, of, "it is more than can exist" if exponent > 0 else _TOO_FINE)
    wei, rest = divmod(digits * units.get(named, ONE_CREDIT) * 10 ** max(0, exponent), 10 ** max(0, -exponent))
    if rest:
        raise _bad(text, of, _TOO_FINE)
    if wei >= 2**96:
        raise _bad(text, of, "it is more than can exist")
    return int(wei)


def _split(text: str, plain: str, of: str, units: Mapping[str, int]) -> tuple[str, str]:
    """Number and unit; "" for none. The letter before HMC counts as it is written: a million is no thousandth."""
    lower = plain.lower() if plain.isascii() else ""
    # The longest name first: `mhmc` ends with `hmc` too.
    named = next((name for name in sorted(units, key=len, reverse=True) if lower.endswith(name.lower())), "")
    number, written = (plain[: -len(named)].strip(), plain[-len(named) :]) if named else (plain, "")
    if named.endswith(SYMBOL) and named != SYMBOL and written[0] != named[0]:
        raise _bad(text, of, f"{written} is no unit", f"write the unit as one of {', '.join(units)}")
    return number, named


def _with_point(number: str) -> str:
    """What a number with a decimal comma means in our way of writing; "" where that cannot be told."""
    whole, comma, decimals = number.rpartition(",")
    if not comma or not re.fullmatch(r"[0-9]*([.,][0-9]{3})*", whole) or not re.fullmatch(r"[0-9]+", decimals):
        return ""
    return f"{whole.replace('.', '').replace(',', '') or '0'}.{decimals}"


def _bad(text: str, of: str, why: str, next_step: str = "write e.g. 2.5, or 10 wei") -> BadInput:
    short = text if len(text) <= _LONGEST else text[:20] + "..."
    return BadInput(f"{short!r} is not an amount of {of}", why=why, next_step=next_step)
