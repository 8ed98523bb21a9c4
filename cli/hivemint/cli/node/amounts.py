"""Amounts of credits in a view: one unit for all that stand together, chosen so that each shows digits."""

from collections.abc import Mapping

from hivemint.protocol.credits import in_unit, in_words, unit_of

__all__ = ["in_unit", "in_words", "shown_together", "unit_of"]


def shown_together(amounts: Mapping[str, int]) -> dict[str, str]:
    """Each amount with its unit, all in one: figures that people compare."""
    unit = unit_of(amounts.values())
    return {name: f"{in_unit(amount, unit)} {unit}" for name, amount in amounts.items()}
