"""A plugin: two real nodes of a tiny model and a client whose host a test may doctor."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from support.real_nodes import DoctoredHost, RealNodes, real_nodes

pytest_plugins = ["support.tiny"]


@pytest_asyncio.fixture
async def two_nodes(tiny_folder: Path, tmp_path: Path) -> AsyncIterator[RealNodes]:
    async with real_nodes(tiny_folder, tmp_path, wrap=DoctoredHost) as made:
        yield made
