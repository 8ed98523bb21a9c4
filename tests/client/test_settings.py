"""The client's settings: where they come from, what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemint.client.settings import Bid, ClientSettings
from hivemint.protocol.errors import BadInput, ConfigError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Credits


def test_flags_before_environment_before_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home.open(tmp_path)
    assert ClientSettings.load(home).bid == Bid()
    (tmp_path / "config.toml").write_text('[client]\nbid = "free"\nmax_price = "0.5"\npatience = 3\n')
    assert ClientSettings.load(home).bid == Bid("free")
    monkeypatch.setenv("HIVEMINT_BID", "2x")
    assert ClientSettings.load(home).bid == Bid("times", 2_000_000)
    loaded = ClientSettings.load(home, bid="ask", max_price=None)
    assert (loaded.bid, loaded.max_price, loaded.patience) == (Bid("times"), 5 * 10**17, 3.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("bid", "lots"), ("bid", "17x"), ("bid", "0.5x"), ("max_price", "-1"), ("margin", 0), ("nonsense", 1)],
)
def test_bad_settings_are_named(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        ClientSettings.load(Home.open(tmp_path), **{name: value})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[client\n")
    with pytest.raises(ConfigError, match=r"config\.toml"):
        ClientSettings.load(Home.open(tmp_path))


@given(st.integers(0, 2**90), st.integers(1_000_000, 16_000_000))
def test_a_multiple_of_the_ask_never_falls_below_it(ask: int, millionths: int) -> None:
    bid = Bid("times", millionths).at(ask)
    assert bid is not None
    assert ask <= bid <= 16 * ask


@given(st.integers(1, 2**90), st.integers(0, 2**90))
def test_a_fixed_bid_is_offered_only_where_it_reaches(amount: int, ask: int) -> None:
    assert Bid("amount", amount=Credits(amount)).at(ask) == (amount if amount >= ask else None)


@pytest.mark.parametrize("text", ["auto", "free", "ask", "2.5x", "0.002 HMC"])
def test_a_bid_reads_back_what_it_prints(text: str) -> None:
    assert str(Bid.parse(text)) == text
    assert Bid.parse(str(Bid.parse(text))) == Bid.parse(text)


def test_a_bid_counts_capitals_and_commas_as_an_amount_does() -> None:
    assert Bid.parse("5 mHMC") == Bid("amount", amount=Credits(5 * 10**15))
    for text, meant in (("5 MHMC", "mHMC"), ("0,0001", "write 0.0001;")):
        with pytest.raises(BadInput, match="is not a bid") as caught:
            Bid.parse(text)
        assert meant in caught.value.next_step


def test_zero_is_free() -> None:
    assert Bid.parse("0") == Bid("free")
    with pytest.raises(BadInput):
        Bid.parse("1e999")
