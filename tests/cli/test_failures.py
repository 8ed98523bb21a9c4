"""Each kind of error has one exit code, whoever made it."""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
import typer

from hivemint.cli.terminal.failures import EXIT_CODES, described, exit_code, fail_with, wants_json
from hivemint.protocol.errors import ChainError, HivemintError, LinkClosed, Refusal, WalletError, of_the_system

PORTIONS = ("protocol", "ledger", "node", "client", "swarm", "cli")
AGREED = {
    "input": 2,
    "settings": 2,
    "usage": 2,
    "wallet": 3,
    "model": 4,
    "chain": 5,
    "swarm": 6,
    "refused": 7,
    "proof": 8,
    "books": 9,
    "system": 10,
}
"""What programs rely on: a code is never given another meaning."""


def below(kind: type[HivemintError]) -> Iterator[type[HivemintError]]:
    yield kind
    for one in kind.__subclasses__():
        yield from below(one)


def test_every_error_is_of_a_kind_that_has_a_code() -> None:
    for portion in PORTIONS:
        package = importlib.import_module(f"hivemint.{portion}")
        for module in pkgutil.walk_packages(package.__path__, f"hivemint.{portion}."):
            if "migrations" not in module.name:
                importlib.import_module(module.name)
    kinds = {kind.__name__: kind.kind for kind in below(HivemintError) if kind.__module__.startswith("hivemint.")}
    assert {name: kind for name, kind in kinds.items() if kind not in EXIT_CODES and kind != "other"} == {}
    assert set(EXIT_CODES) == set(kinds.values()) - {"other"}, "a code of no error"
    assert EXIT_CODES == AGREED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HivemintError("x"), 1),
        (WalletError("x"), 3),
        (ChainError("x"), 5),
        (LinkClosed("x"), 6),
        (Refusal("busy", "x"), 7),
        (of_the_system(OSError(28, "No space left on device")), 10),
    ],
)
def test_the_code_follows_the_kind(error: HivemintError, code: int) -> None:
    assert exit_code(error) == code
    assert described(error)["error"]["code"] == code


def test_a_refusal_keeps_the_node_s_own_code() -> None:
    told = described(Refusal("busy", "The node is busy", why="w", next_step="n", retry_after=3.0))["error"]
    assert told == {
        "kind": "refused",
        "code": 7,
        "what": "The node is busy",
        "why": "w",
        "next_step": "n",
        "refusal": "busy",
        "retry_after": 3.0,
    }


def test_json_is_asked_for_by_an_option_and_not_by_an_argument() -> None:
    assert wants_json(["wallet", "list", "--json"])
    assert not wants_json(["generate", "--", "--json"])
    assert not wants_json(["wallet", "list"])


def test_a_report_that_is_an_error_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ChainError):
        fail_with({"ok": False}, ChainError("x"), as_json=False)
    with pytest.raises(typer.Exit) as ended:
        fail_with({"ok": False}, ChainError("x"), as_json=True)
    assert ended.value.exit_code == 5
    assert capsys.readouterr().out.startswith('{"ok": false, "error": {"kind": "chain", "code": 5')
