"""Settings of a node, and the numerics that it declares by them."""

from pathlib import Path

import pytest

from hivemint.node.server import numerics
from hivemint.node.settings import NodeSettings
from hivemint.node.span.precision import COMPUTE, Precision
from hivemint.node.span.span import Span
from hivemint.protocol.errors import ConfigError, ModelError
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
