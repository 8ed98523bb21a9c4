"""In which event loop the tests of the swarm run."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Links in the loop that nodes and clients run in, all else in asyncio's own."""
    return {"uvloop": uvloop.new_event_loop} if item.path.stem == "test_link" else {"asyncio": asyncio.new_event_loop}
