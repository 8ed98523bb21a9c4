"""What `hivemint model info` says of memory, against spans that are really loaded."""

from pathlib import Path

import pytest
import torch

from hivemint.model.anatomy import Anatomy
from hivemint.model.footprint import PEAK, PRECISIONS, TOKENS, Footprint, fit, footprint
from hivemint.node.span import int8
from hivemint.node.span.linear import can_pack
from hivemint.node.span.precision import COMPUTE, QUANTISED
from hivemint.node.span.span import Span
from hivemint.protocol.errors import ModelError
from hivemint.protocol.ids import BlockIndex
from support.families import BLOCKS, TINY, Whole

SHORT = 2**20


@pytest.fixture(scope="module", params=sorted(TINY), ids=str)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(*TINY[request.param], tmp_path_factory.mktemp(request.param))


def held(span: Span) -> int:
    """Bytes of all tensors that a span's modules hold."""
    values = [
        value
        for module in span._decoder.modules()
        for value in (*vars(module).values(), *module._parameters.values(), *module._buffers.values())
    ]
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return sum({id(item): item.nbytes for item in flat if isinstance(item, torch.Tensor)}.values())


def test_all_precisions_are_told() -> None:
    assert set(PRECISIONS) == {*COMPUTE, *QUANTISED}
    assert all(PRECISIONS[name] == dtype.itemsize for name, dtype in COMPUTE.items())


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_a_span_holds_what_was_told(whole: Whole, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "prove", lambda _: None)  # tiny layers are no measure of speed
    need = footprint(Anatomy.read(whole.folder), weights, "cpu", wide=can_pack(torch.bfloat16))
    if need.refused:
        with pytest.raises(ModelError, match="would stay as they are"):
            Span.load(whole.folder, BlockIndex(0), BlockIndex(BLOCKS), precision=weights)
        return
    largest = BlockIndex(BLOCKS - 1)  # where blocks differ, the last has the experts
    span = Span.load(whole.folder, largest, BlockIndex(BLOCKS), precision=weights)
    assert held(span) == pytest.approx(need.block, rel=0.03)
    assert span.new_store(SHORT).bytes_per_token * TOKENS == need.kv


def test_nf4_is_half_a_byte_and_a_scale_for_64(tmp_path: Path) -> None:
    anatomy = Anatomy.read(Whole(*TINY["llama"], tmp_path).folder)
    linears = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96
    assert footprint(anatomy, "nf4", "cuda").block == linears / 2 + 4 * linears / 64 + 2 * 2 * 64
    assert footprint(anatomy, "int8", "cuda").block == linears + 4 * (64 + 32 + 32 + 64 + 2 * 96 + 64) + 2 * 2 * 64
    assert "slower" in footprint(anatomy, "nf4", "cpu").refused


def test_what_fits_leaves_room_for_a_session_and_for_loading(tmp_path: Path) -> None:
    anatomy = Anatomy.read(Whole(*TINY["llama"], tmp_path).folder)
    need = Footprint(block=1000, kv=TOKENS * 10)
    for free in range(0, 20_000, 50):
        found = fit(anatomy, need, free, 0.5, context=30)
        most = [n for n in range(1, 5) if (free - 1000 * n) / 2 >= 30 * 10 * n and n * 1000 * PEAK <= free]
        assert found.blocks == max(most, default=0)
        if found.blocks:
            assert found.kv_tokens == (free - 1000 * found.blocks) // (2 * 10 * found.blocks)
