"""P9: how likely strikes are to slash an honest node, as a binomial tail (docs/protocol.md, sections 5, 7 and 9)."""

from math import ceil, comb, log

import pytest

from hivemint.contracts.bindings import Setting
from support.chain import numbers

PROMISED = 1e-5


def tail(strikes: int, epochs: int, rate: float) -> float:
    """P(at least so many strikes in so many epochs), each epoch struck with probability `rate`."""
    return sum(comb(epochs, k) * rate**k * (1 - rate) ** (epochs - k) for k in range(strikes, epochs + 1))


def upper_bound(false: int, audits: int, confidence: float = 0.95) -> float:
    """Clopper and Pearson: the largest rate at which so few false positives still have probability 1 - confidence."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        at_most = sum(comb(audits, k) * middle**k * (1 - middle) ** (audits - k) for k in range(false + 1))
        low, high = (middle, high) if at_most > 1 - confidence else (low, middle)
    return high


def highest_rate(strikes: int, epochs: int) -> float:
    """Up to which rate per epoch the promise holds."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(strikes, epochs, middle) <= PROMISED else (low, middle)
    return low


def per_year(strikes: int, epochs: int, rate: float, days: int = 365) -> float:
    """Union bound over a year of daily epochs: each strike may be the first of `strikes` within `epochs`."""
    return days * rate * tail(strikes - 1, epochs - 1, rate)


@pytest.mark.parametrize(("strikes", "rate", "expected"), [(4, 0.005, 2.85e-6), (5, 0.01, 1.37e-6)])
def test_p9_holds_at_the_rates_that_the_protocol_names(strikes: int, rate: float, expected: float) -> None:
    found = tail(strikes, 20, rate)
    assert found == pytest.approx(expected, rel=0.02)
    assert found <= PROMISED


def test_p9_fails_at_the_rates_where_the_protocol_does_not_claim_it() -> None:
    assert tail(4, 20, 0.01) > PROMISED
    assert tail(3, 20, 0.005) > PROMISED
    assert highest_rate(4, 20) == pytest.approx(0.0069, abs=0.0001)
    assert highest_rate(5, 20) == pytest.approx(0.0152, abs=0.0002)


def test_the_shipped_numbers_keep_p9() -> None:
    settings = numbers().settings
    assert tail(settings[Setting.STRIKE_LIMIT], settings[Setting.STRIKE_WINDOW], 0.005) <= PROMISED


def test_how_many_clean_audits_bound_the_rate() -> None:
    """No measurement, no strike: 598 comparisons of honest nodes without a false alarm bound the rate at 0.5 %."""
    needed = ceil(log(0.05) / log(1 - 0.005))
    assert needed == 598
    assert upper_bound(0, needed) <= 0.005 < upper_bound(0, needed - 1)
    assert upper_bound(1, needed) > 0.005


def test_over_a_year_the_bound_is_looser_than_over_one_window() -> None:
    assert per_year(4, 20, 0.005) == pytest.approx(2.1e-4, rel=0.1)
    assert per_year(5, 20, 0.005) < 5e-6
