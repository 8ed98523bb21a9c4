"""`hivemint config show`: value, unit, meaning, origin, variable; what nobody reads is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from hivemint.cli import config
from hivemint.cli.setting_units import UNITS
from hivemint.client.settings import ClientSettings
from hivemint.node.settings import NodeSettings
from support.verbs import RUNNER, error_of, told

pytest_plugins = ["support.verbs"]
pytestmark = pytest.mark.usefixtures("home")


def shown() -> Any:
    return told(config.app, "show")


@pytest.mark.parametrize("kind", [ClientSettings, NodeSettings])
def test_every_setting_has_its_unit(kind: type[ClientSettings | NodeSettings]) -> None:
    assert set(UNITS[kind.TABLE]) == set(kind.model_fields), "name the unit in cli/setting_units.py; '' for none"


def test_each_value_says_where_it_comes_from(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    (home / "config.toml").write_text('[node]\nask = "0.5"\nidle = 7\n[client]\npatience = 3\n')
    monkeypatch.setenv("HIVEMINT_IDLE", "8")
    report = shown()
    assert report["file"] == str(home / "config.toml")
    node = report["node"]
    assert node["ask"] == {
        "value": 5 * 10**17,
        "unit": "wei: HMC a token and block",
        "shown": "0.5 HMC a token and block",
        "default": 10**11,
        "origin": "config.toml",
        "variable": "HIVEMINT_ASK",
        "flag": "--ask",
        "meaning": "Price per token and block; `auto` follows the other nodes of these blocks (`market.py`).",
    }
    assert (node["idle"]["value"], node["idle"]["origin"], node["idle"]["unit"]) == (8.0, "environment", "seconds")
    assert (node["drain"]["value"], node["drain"]["origin"]) == (20.0, "default")
    assert (report["client"]["patience"]["value"], report["client"]["bid"]["value"]) == (3.0, "auto")
    assert node["listen"]["value"] == ["/ip4/127.0.0.1/tcp/0"]


def test_the_variables_of_all_verbs_are_told_and_the_password_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVEMINT_WALLET", "bob")
    report = shown()
    assert report["environment"]["HIVEMINT_WALLET"]["value"] == "bob"
    assert report["environment"]["HIVEMINT_NETWORK"] == {
        "value": None,
        "origin": "default",
        "meaning": "The network file that verbs take without --network.",
    }
    assert "correct horse" not in json.dumps(report)
    assert "correct horse" not in RUNNER.invoke(config.app, ["show"]).output


def test_a_variable_that_nothing_reads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVEMINT_PATIENC", "3")
    assert shown()["unread"] == {"HIVEMINT_PATIENC": "did you mean $HIVEMINT_PATIENCE?"}
    assert "nothing reads $HIVEMINT_PATIENC" in RUNNER.invoke(config.app, ["show"]).output


def test_for_people_it_has_the_same(home: Path) -> None:
    text = RUNNER.invoke(config.app, ["show"]).output
    assert "ask = 0.0000001 HMC a token and block  default  --ask  $HIVEMINT_ASK" in text
    assert "coin_a_day = 0.1 coin  default  --coin-a-day  $HIVEMINT_COIN_A_DAY" in text
    assert "Price per token and block; " in text
    assert f"file  {home / 'config.toml'}  (there is none)" in text


@pytest.mark.parametrize(
    ("text", "what", "step"),
    [
        ("[nodes]\nask = 1\n", "nothing reads [nodes]", "did you mean [node]?"),
        ("[node]\nasc = 1\n", "There is no setting asc", "did you mean ask?"),
        ("[client]\npatienc = 1\n", "There is no setting patienc", "did you mean patience?"),
    ],
)
def test_a_file_with_what_nobody_reads_is_refused(home: Path, text: str, what: str, step: str) -> None:
    home.mkdir()
    (home / "config.toml").write_text(text)
    error = error_of(config.app, "show")
    assert what in error.what
    assert step in error.next_step
