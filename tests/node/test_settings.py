"""Settings of a node, and the numerics that it declares by them."""

from pathlib import Path

import pytest

from hivemint.node.server import numerics
from hivemint.node.settings import NodeSettings
from hivemint.node.span.precision import COMPUTE, Precision
from hivemint.node.span.span import Span
from hivemint.protocol.errors import ConfigError, ModelError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import BlockIndex

pytest_plugins = ["support.tiny"]


def declared(folder: Path, settings: NodeSettings) -> str:
    span = Span.load(folder, BlockIndex(0), BlockIndex(1), precision=settings.precision, device=settings.device)
    return numerics(span, settings.wire)


def test_numerics_name_weights_computation_and_wire(tiny_folder: Path) -> None:
    assert declared(tiny_folder, NodeSettings.load()) == "fp32/fp32/fp32"
    assert declared(tiny_folder, NodeSettings.load(precision="bf16")) == "bf16/bf16/bf16"
    assert declared(tiny_folder, NodeSettings.load(precision="bf16/bf16", wire="fp32")) == "bf16/bf16/fp32"


def test_int8_is_declared_or_refused_with_the_figure(tiny_folder: Path) -> None:
    """Whether it pays is measured on the machine that loads it."""
    try:
        assert declared(tiny_folder, NodeSettings.load(precision="int8", wire="fp32")) == "int8/bf16/fp32"
    except ModelError as error:
        assert "of fp32's time" in error.why  # noqa: PT017 - either is right


def test_nf4_on_a_cpu_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"3\.4 times"):
        declared(tiny_folder, NodeSettings.load(precision="nf4/bf16"))


@pytest.mark.parametrize("name", [*COMPUTE, "bf16/bf16", "int8", "nf4", "int8/bf16", "nf4/fp16"])
def test_what_the_engine_knows_can_be_set(name: str) -> None:
    assert Precision.parse(NodeSettings.load(precision=name).precision)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("precision", "int4"),
        ("precision", "xfp32"),
        ("precision", "fp32/int8"),
        ("precision", "fp32/fp32/fp32"),
        ("precision", ""),
        ("wire", "int8"),
        ("device", "tpu"),
        ("device", "cuda:x"),
    ],
)
def test_other_words_are_refused_by_name(setting: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"The setting {setting}"):
        NodeSettings.load(None, **{setting: value})


UHMC = 10**12


@pytest.mark.parametrize(
    ("file", "variables", "flags", "auto", "ask"),
    [
        ("ask_auto = true", {}, {"ask": "5 uHMC"}, False, 5 * UHMC),
        ("", {"ASK_AUTO": "true"}, {"ask": "5 uHMC"}, False, 5 * UHMC),
        ('ask = "auto"', {"ASK": "5 uHMC"}, {}, False, 5 * UHMC),
        ('ask = "auto"', {"ASK_AUTO": "false"}, {}, False, 10**11),
        ('ask = "5 uHMC"', {"ASK_AUTO": "true"}, {}, True, UHMC),
        ('ask = "5 uHMC"', {"ASK": " Auto"}, {}, True, 10**11),
        ("", {"ASK": "5 uHMC"}, {"ask": "auto"}, True, 10**11),
        ("", {"ASK": "0.2 uHMC", "ASK_AUTO": "true"}, {}, True, UHMC // 5),
        ('ask_floor = "0.3 uHMC"', {}, {"ask": "auto"}, True, 3 * UHMC // 10),
        ('ask_ceiling = "50 nHMC"', {}, {"ask": "auto"}, True, UHMC // 20),
        ('ask_floor = "0.3 uHMC"', {}, {}, False, 10**11),
    ],
)
def test_an_ask_and_one_that_follows_the_higher_source_decides(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    variables: dict[str, str],
    flags: dict[str, str],
    auto: bool,
    ask: int,
) -> None:
    (tmp_path / "config.toml").write_text(f"[node]\n{file}\n")
    for name, value in variables.items():
        monkeypatch.setenv(f"HIVEMINT_{name}", value)
    found = NodeSettings.load(Home(tmp_path), **flags)
    assert (found.ask_auto, found.first_ask) == (auto, ask)


@pytest.mark.parametrize(
    ("setting", "given", "written"),
    [
        ("listen", "127.0.0.1:4001", "/ip4/127.0.0.1/tcp/4001"),
        ("listen", "[::1]:4001", "/ip6/::1/tcp/4001"),
        ("listen", "4001", "/ip4/127.0.0.1/tcp/4001"),
        ("listen", "", "/ip4/127.0.0.1/tcp/4001"),
        ("announce", "node.example.org:4001", "/dns/node.example.org/tcp/4001"),
        ("announce", "/ip4/node.example.org/tcp/4001", "/ip4/192.0.2.1/tcp/4001"),
        ("listen", "/ip4/127.0.0.1/tcp/70000", "/ip4/127.0.0.1/tcp/4001"),
        ("listen", "/ip4/127.0.0.1", "/ip4/127.0.0.1/tcp/4001"),
        ("bootstrap", "/ip4/192.0.2.1/tcp/4001", "/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo"),
    ],
)
def test_an_address_that_libp2p_would_not_take_is_refused_with_how_it_is_written(
    setting: str, given: str, written: str
) -> None:
    with pytest.raises(ConfigError, match=f"The setting {setting}") as refused:
        NodeSettings.load(None, **{setting: (given,)})
    assert f"write {written}" in refused.value.why or f"one such as {written}" in refused.value.why
    assert f"--{setting}" in refused.value.next_step


def test_addresses_of_every_kind_pass() -> None:
    for address in (
        "/ip4/0.0.0.0/tcp/0",
        "/ip6/::/udp/4001/quic-v1",
        "/dns4/a.example/tcp/4001/p2p/12D3KooW",
        "/unix/x",
    ):
        assert NodeSettings.load(listen=(address,)).listen == (address,)
    relayed = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW/p2p-circuit"
    assert NodeSettings.load(announce=(relayed,), bootstrap=(relayed,)).announce == (relayed,)
