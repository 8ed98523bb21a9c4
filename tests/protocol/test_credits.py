"""Amounts as people write and read them."""

import re
from decimal import Decimal, localcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemint.protocol.credits import (
    exact_credits,
    format_credits,
    in_unit,
    in_words,
    parse_coins,
    parse_credits,
    unit_of,
)
from hivemint.protocol.errors import BadInput
from hivemint.protocol.ids import ONE_CREDIT


@given(st.integers(0, 2**96 - 1))
def test_exact_amounts_read_back(wei: int) -> None:
    assert parse_credits(exact_credits(wei)) == wei
    assert parse_credits(f"{wei} wei") == wei
    assert parse_coins(exact_credits(wei)) == parse_coins(f"{wei} wei") == wei


@given(st.integers(0, 2**96 - 1), st.integers(0, 18))
def test_shown_amounts_never_promise_more(wei: int, digits: int) -> None:
    shown = parse_credits(format_credits(wei, digits))
    assert shown <= wei
    assert wei == 0 or shown > 0.98 * wei or wei >= ONE_CREDIT


@pytest.mark.parametrize(
    ("wei", "text"),
    [
        (0, "0 HMC"),
        (1, "0.000000000000000001 HMC"),
        (ONE_CREDIT, "1 HMC"),
        (ONE_CREDIT + 1, "1 HMC"),
        (1_234_567 * ONE_CREDIT + ONE_CREDIT // 2, "1,234,567.5 HMC"),
        (5_251_234 * 10**9, "0.005251 HMC"),
        (1_234 * 10**8, "0.000000123 HMC"),
        (-15 * ONE_CREDIT // 10, "-1.5 HMC"),
    ],
)
def test_shown_amounts(wei: int, text: str) -> None:
    assert format_credits(wei) == text


@pytest.mark.parametrize(
    ("text", "wei"),
    [
        ("1", ONE_CREDIT),
        ("1,000 HMC", 1000 * ONE_CREDIT),
        (" 2.5hmc", 25 * ONE_CREDIT // 10),
        ("12 wei", 12),
        ("1e3", 1000 * ONE_CREDIT),
        ("1,234,567.5", 1_234_567 * ONE_CREDIT + ONE_CREDIT // 2),
        ("1_000", 1000 * ONE_CREDIT),
        (".5", ONE_CREDIT // 2),
        ("2.", 2 * ONE_CREDIT),
        ("1e-05", ONE_CREDIT // 100_000),
        ("0e999999", 0),
    ],
)
def test_read_amounts(text: str, wei: int) -> None:
    assert parse_credits(text) == wei


@pytest.mark.parametrize(
    "text",
    ["", "HMC", "-1", "-0", "nan", "inf", "1.0000000000000000001", "0.5 wei", "1e11", "1e999999", "0x10", "1.2.3"],
)
def test_refused_amounts(text: str) -> None:
    with pytest.raises(BadInput, match="not an amount of credits"):
        parse_credits(text)
    with pytest.raises(BadInput, match="not an amount of coins"):
        parse_coins(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0,0001", "write 0.0001"),
        ("0,05", "write 0.05"),
        ("0,001", "write 0.001"),
        ("1,5", "write 1.5"),
        ("1.000,50", "write 1000.50"),
        ("1,5 mHMC", "write 1.5 mHMC"),
        ("1,00,000.5", "write e.g. 2.5"),
    ],
)
def test_a_decimal_comma_multiplies_nothing(text: str, meant: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_credits(text)
    assert caught.value.next_step.startswith(meant)


@pytest.mark.parametrize("text", ["0." + "1" * 5000, "1" * 5000, "1e-999999999", "1e999999999", "1e-" + "9" * 50])
def test_no_amount_is_computed_that_is_too_long_to_be_one(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_credits(text)
    assert len(caught.value.what) < 200


@settings(max_examples=1000)
@given(st.text() | st.from_regex(r"[0-9.,_eE+\- ]{0,30}( ?[muMUn]?[hH]MC| wei)?", fullmatch=True))
def test_any_text_is_refused_or_reads_back(text: str) -> None:
    try:
        wei = parse_credits(text)
    except BadInput:
        return
    assert 0 <= wei < 2**96
    assert parse_credits(exact_credits(wei)) == wei
    if re.search(r"[HhWw]", text) is None:
        with localcontext(prec=100):
            assert wei == Decimal(text.strip().replace(",", "")).scaleb(18)


def test_credits_are_no_coins() -> None:
    with pytest.raises(BadInput, match="not an amount of coins"):
        parse_coins("2 HMC")


@pytest.mark.parametrize(
    ("amounts", "unit", "texts"),
    [
        ([], "HMC", []),
        ([0, 0], "HMC", ["0.000", "0.000"]),
        ([107 * 10**12, 0], "uHMC", ["107.000", "0.000"]),
        ([ONE_CREDIT, 2 * ONE_CREDIT], "HMC", ["1.000", "2.000"]),
        ([3 * ONE_CREDIT, 107 * 10**12], "mHMC", ["3,000.000", "0.107"]),
        ([10**6 * ONE_CREDIT, 1], "HMC", ["1,000,000.000", "<0.001"]),
        ([20 * 10**9], "nHMC", ["20.000"]),
        ([5], "wei", ["5"]),
        ([-(10**15)], "mHMC", ["-1.000"]),
    ],
)
def test_a_view_chooses_a_unit_in_which_its_amounts_show_digits(
    amounts: list[int], unit: str, texts: list[str]
) -> None:
    assert unit_of(amounts) == unit
    assert [in_unit(amount, unit) for amount in amounts] == texts


@given(st.lists(st.integers(0, 2**96 - 1), max_size=8))
def test_no_amount_of_a_view_shows_as_nothing(amounts: list[int]) -> None:
    unit = unit_of(amounts)
    for amount in amounts:
        text = in_unit(amount, unit)
        assert (amount == 0) == (not set(text) & set("123456789<"))


@given(st.integers(0, 2**96 - 1))
def test_an_amount_in_words_reads_back_and_promises_no_more(wei: int) -> None:
    read = parse_credits(in_words(wei))
    assert read <= wei
    assert wei == 0 or read > 0.998 * wei


def test_units_are_read() -> None:
    assert parse_credits("20 nHMC") == 20 * 10**9
    assert parse_credits("1.5mhmc") == 1_500_000 * 10**9
    assert parse_credits("2 HMC") == 2 * ONE_CREDIT
    with pytest.raises(BadInput):
        parse_coins("20 nHMC")


@pytest.mark.parametrize("text", ["5 MHMC", "5MHMC", "1 PHMC", "1 Nhmc"])
def test_a_capital_letter_is_no_smaller_unit(text: str) -> None:
    with pytest.raises(BadInput, match="is no unit") as caught:
        parse_credits(text)
    assert "mHMC" in caught.value.next_step
