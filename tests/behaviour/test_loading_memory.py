"""Loading takes hardly more memory than the span that stays: measured from outside, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hivemint.model.anatomy import Anatomy
from hivemint.model.footprint import PEAK, footprint
from hivemint.node.span.linear import can_pack
from support.families import TINY, Whole
from support.tiny import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]

WIDE: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 10},
    "mixtral": {"num_hidden_layers": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.fixture(scope="module", params=sorted(WIDE), ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of several shards, 400 MB or more in fp32, and a tiny one of the same family."""
    family: str = request.param
    folder = tiny_model(
        tmp_path_factory.mktemp(family),
        family,
        shard_size="100MB",
        hidden_size=1024,
        intermediate_size=2816,
        num_attention_heads=16,
        num_key_value_heads=4,
        **WIDE[family],
    )
    assert len(list(folder.glob("*.safetensors"))) >= 4
    return folder, Whole(*TINY[family], tmp_path_factory.mktemp("small")).folder


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_loading_peaks_below_what_is_promised(model: tuple[Path, Path], precision: str) -> None:
    """Stored in fp32: kept, converted to half of it, and to 8 bits."""
    folder, small = model
    anatomy = Anatomy.read(folder)
    need = footprint(anatomy, precision, "cpu", wide=can_pack(torch.bfloat16))
    if need.refused:
        pytest.skip(need.refused)
    words = ["-m", "support.loading_peak", str(folder), precision, str(anatomy.num_blocks), str(small)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    span = need.block * anatomy.num_blocks
    assert 0.9 * span < int(done.stdout.split()[-1]) < PEAK * span
