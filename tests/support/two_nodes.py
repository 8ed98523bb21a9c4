"""A plugin: two real nodes of a tiny model and a client whose host a test may doctor."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from support.real_nodes import DoctoredHost, RealNodes, real_nodes
from support.tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest_asyncio.fixture
async def two_nodes(folder: Path, tmp_path: Path) -> AsyncIterator[RealNodes]:
    async with real_nodes(folder, tmp_path, wrap=DoctoredHost) as made:
        yield made
