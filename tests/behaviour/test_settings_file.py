"""`config.toml`: both tables are read, and what nobody would read is refused with what was probably meant."""

from pathlib import Path

import pytest

from hivemint.client.settings import ClientSettings
from hivemint.node.settings import NodeSettings
from hivemint.protocol.errors import ConfigError
from hivemint.protocol.home import Home
from hivemint.protocol.settings import read_table


def test_each_kind_reads_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text('[client]\npatience = 3\n[node]\nask = "0.5"\nidle = 7\n')
    home = Home.open(tmp_path)
    assert ClientSettings.load(home).patience == 3
    assert (NodeSettings.load(home).ask, NodeSettings.load(home).idle) == (5 * 10**17, 7)
    monkeypatch.setenv("HIVEMINT_IDLE", "8")
    assert NodeSettings.load(home).idle == 8
    assert NodeSettings.load(home, idle=9).idle == 9


@pytest.mark.parametrize(
    ("text", "what", "step"),
    [
        ("[nodes]\nask = 1\n", r"nothing reads \[nodes\]", r"did you mean \[node\]\?"),
        ("[weather]\nsun = 1\n", r"nothing reads \[weather\]", "move its lines"),
        ("patience = 3\n", "nothing reads patience", "move its lines"),
        ("node = 3\n", "node is no table", r"below a line \[node\]"),
        ("[node]\nmax_row = 3\n", "There is no setting max_row", r"did you mean max_rows\?"),
        ("[node]\nask = -1\n", "The setting ask cannot be used", r"HIVEMINT_ASK or \[node\] of config.toml"),
        ("[node]\nask = 1\n", "The setting ask cannot be used", 'ask = "1" for credits or ask = "1 wei"'),
        ("[node]\ndust = 5\n", "could mean credits or wei", 'dust = "5"'),
        ("[node]\nask = true\n", "The setting ask cannot be used", "HIVEMINT_ASK"),
        ("[node]\nask = [1]\n", "The setting ask cannot be used", "HIVEMINT_ASK"),
        ("[node]\nask = inf\n", "The setting ask cannot be used", "HIVEMINT_ASK"),
        (f"[node]\nask = {'1' * 5000}\n", "cannot be read", "mend that line"),
        ("[node\n", "cannot be read", "mend that line"),
    ],
)
def test_what_nobody_would_read_is_refused(tmp_path: Path, text: str, what: str, step: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=what) as refused:
        NodeSettings.load(Home.open(tmp_path))
    refused.match(step)
    if "[node]" not in text:
        with pytest.raises(ConfigError, match=what):
            read_table(Home.open(tmp_path), "client")


@pytest.mark.parametrize("written", ["0.5", '"0.5"', '"500000000000000000 wei"'])
def test_an_amount_with_a_point_is_in_credits(tmp_path: Path, written: str) -> None:
    (tmp_path / "config.toml").write_text(f"[node]\nask = {written}\n")
    assert NodeSettings.load(Home.open(tmp_path)).ask == 5 * 10**17


def test_a_variable_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVEMINT_LISTEN", "/ip4/0.0.0.0/tcp/1")
    with pytest.raises(ConfigError, match="lists as JSON"):
        NodeSettings.load(Home.open(tmp_path))


@pytest.mark.parametrize("kind", [ClientSettings, NodeSettings])
def test_every_setting_says_what_it_means(kind: type[ClientSettings | NodeSettings]) -> None:
    assert [name for name, field in kind.model_fields.items() if not field.description] == []
