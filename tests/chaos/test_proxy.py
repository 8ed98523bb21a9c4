"""What a proxy does to the links through it, and that it counts what it did."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from chaos.proxy import WELL, Proxies, Proxy, Spoilt


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    made = Proxy(server.sockets[0].getsockname()[:2])
    await made.listen("127.0.0.1")
    yield made
    await made.close()
    server.close()


@pytest_asyncio.fixture
async def link(proxy: Proxy) -> AsyncIterator[Streams]:
    streams = await asyncio.open_connection(*proxy.address)
    yield streams
    streams[1].close()


async def anew(address: tuple[str, int], data: bytes) -> bytes:
    """What a link of its own says to this."""
    link = await asyncio.open_connection(*address)
    try:
        return await said(link, data)
    finally:
        link[1].close()


async def said(link: Streams, data: bytes) -> bytes:
    link[1].write(data)
    async with asyncio.timeout(10):
        return await link[0].readexactly(len(data))


async def test_what_is_not_spoilt_passes_as_it_is(proxy: Proxy, link: Streams) -> None:
    data = bytes(range(256)) * 2000
    assert await said(link, data) == data
    assert proxy.counts["links"] == 1
    assert proxy.counts["bytes"] == 2 * len(data)


async def test_slow_links_carry_everything_later(proxy: Proxy, link: Streams) -> None:
    await proxy.spoil(Spoilt("slow", 0.05))
    before = asyncio.get_running_loop().time()
    assert await said(link, b"now") == b"now"
    assert asyncio.get_running_loop().time() - before >= 0.1
    assert proxy.counts["slow"] == 2


async def test_a_cut_resets_old_links_and_new_ones(proxy: Proxy, link: Streams) -> None:
    await said(link, b"before")
    await proxy.spoil(Spoilt("cut"))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await said(link, b"now")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await anew(proxy.address, b"now")
    assert proxy.counts["cut"] == 2
    await proxy.spoil(WELL)
    assert await anew(proxy.address, b"again") == b"again"


async def test_a_half_open_link_says_nothing_and_is_reset_in_the_end(proxy: Proxy, link: Streams) -> None:
    await said(link, b"before")
    await proxy.spoil(Spoilt("half_open"))
    link[1].write(b"into the void")
    async with asyncio.timeout(10):
        while not proxy.counts["half_open"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not link[0].at_eof()
    await proxy.spoil(WELL)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await said(link, b"now")


async def test_garbage_is_of_the_same_length(proxy: Proxy, link: Streams) -> None:
    await proxy.spoil(Spoilt("garbage"))
    data = b"0123456789"
    link[1].write(data)
    async with asyncio.timeout(10):
        got = await link[0].readexactly(len(data))
    assert len(got) == len(data)
    assert proxy.counts["garbage"] == 2


def test_proxies_have_a_thread_of_their_own() -> None:
    async def serve() -> bytes:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        address = await asyncio.to_thread(proxies.put_before, "node", server.sockets[0].getsockname()[:2])
        try:
            return await anew(address, b"hello")
        finally:
            server.close()

    with Proxies("127.0.0.1") as proxies:
        assert asyncio.run(serve()) == b"hello"
        assert proxies.count("node", "links") == 1
