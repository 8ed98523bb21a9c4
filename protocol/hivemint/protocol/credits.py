"""Amounts of credits: what a settlement mints, and how people read and write amounts.

All amounts are integers in wei (1 HMC = 10^18 wei).
"""

from decimal import Decimal, InvalidOperation

from hivemint.protocol.errors import BadInput
from hivemint.protocol.ids import ONE_CREDIT, Credits

FEE = 500
"""1/10,000 of what is burned, the protocol's fee (`docs/protocol.md`, section 7)."""
WHOLE_FEE = 10_000
SYMBOL = "HMC"


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


def exact_credits(amount: int) -> str:
    """Every digit, nothing rounded: what `parse_credits` reads back to the same wei."""
    whole, rest = divmod(abs(amount), ONE_CREDIT)
    decimals = f"{rest:018d}".rstrip("0")
    return ("-" if amount < 0 else "") + str(whole) + (f".{decimals}" if decimals else "")


def parse_credits(text: str) -> Credits:
    """`1.5`, `1,000 HMC`, `12 wei`. Raises BadInput for anything negative, finer than a wei or above 2^96-1 wei."""
    return Credits(_wei(text, "credits", SYMBOL.lower()))


def parse_coins(text: str) -> int:
    """The same for the chain's own coin, which has as many decimals: `10`, `0.5`, `12 wei`."""
    return _wei(text, "coins", "")


def _wei(text: str, of: str, symbol: str) -> int:
    plain = text.strip().lower()
    unit = 1 if plain.endswith("wei") else ONE_CREDIT
    number = plain.removesuffix("wei").removesuffix(symbol).strip().replace(",", "").replace("_", "")
    try:
        value = Decimal(number)
    except InvalidOperation:
        raise _bad(text, of, "it is not a number") from None
    if not value.is_finite() or value.is_signed():
        raise _bad(text, of, "an amount is finite and not negative")
    if value.adjusted() > 30:  # 2^96 wei are 29 digits; also keeps a 1e999999 from being written out
        raise _bad(text, of, "it is more than can exist")
    _, digits, exponent = value.as_tuple()
    wei, rest = divmod(int("".join(map(str, digits))) * unit, 10 ** max(0, -int(exponent)))
    wei *= 10 ** max(0, int(exponent))
    if rest:
        raise _bad(text, of, "it is finer than one wei, a 10^-18th")
    if wei >= 2**96:
        raise _bad(text, of, "it is more than can exist")
    return int(wei)


def _bad(text: str, of: str, why: str) -> BadInput:
    return BadInput(f"{text!r} is not an amount of {of}", why=why, next_step="write e.g. 2.5, or 10 wei")
