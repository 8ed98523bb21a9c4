"""A TCP proxy that a node is announced by: it passes bytes on until it is told to spoil its links.

    slow       each chunk comes so much later, and so many bytes a second come through
    cut        links are reset, new ones too
    half_open  what comes is swallowed: both ends believe in a link that carries nothing; reset when it is over
    garbage    a byte of each chunk is changed

`Proxies` runs any number of them in a thread of its own; `Spoilt` says what to do, and each proxy counts what it did.
"""

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset."""


@dataclass(frozen=True)
class Spoilt:
    """What befalls the links of a proxy. `delay` in seconds, `rate` in bytes a second (0: as fast as it goes)."""

    kind: str = ""
    delay: float = 0.0
    rate: int = 0


WELL = Spoilt()


class Proxy:
    """Listens at `address`; each connection there is one to `target`, (host, port). Made and used in one event loop."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target, self.spoilt = target, WELL
        self.counts: Counter[str] = Counter()
        """Of each kind: chunks delayed, changed or swallowed, links reset. `links`, `bytes`: what passed at all."""
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()

    async def listen(self, host: str) -> None:
        self._server = await asyncio.start_server(self._serve, host, 0)

    @property
    def address(self) -> tuple[str, int]:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def spoil(self, spoilt: Spoilt) -> None:
        """From now on; `WELL` ends it. Links that have lost bytes cannot go on, and end."""
        before, self.spoilt = self.spoilt, spoilt
        for link in list(self._links):
            if spoilt.kind == "cut" or (before.kind == "half_open" and link.lost):
                self._reset(link)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.reset()

    def _reset(self, link: "_Link") -> None:
        if self.spoilt.kind == "cut":
            self.counts["cut"] += 1
        link.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        self._links.add(link)
        try:
            if self.spoilt.kind == "cut":
                self._reset(link)
                return
            there, back = await asyncio.open_connection(*self.target)
            link.writers.append(back)
            self.counts["links"] += 1
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(link, reader, back))
                group.create_task(self._pump(link, there, writer))
        except* OSError:
            pass
        finally:
            self._links.discard(link)
            link.reset()

    async def _pump(self, link: "_Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK):
            passed = await self._passed(link, chunk)
            if passed:
                self.counts["bytes"] += len(passed)
                writer.write(passed)
                await writer.drain()
        with suppress(OSError):
            writer.write_eof()

    async def _passed(self, link: "_Link", chunk: bytes) -> bytes:
        """What is left of a chunk that comes now."""
        spoilt = self.spoilt
        if spoilt.kind == "slow":
            self.counts["slow"] += 1
            await asyncio.sleep(spoilt.delay + (len(chunk) / spoilt.rate if spoilt.rate else 0.0))
            spoilt = self.spoilt  # it may be another one meanwhile
        if link.lost or spoilt.kind == "half_open":  # a stream with a hole in it is none
            self.counts["half_open"] += 1
            link.lost += len(chunk)
            return b""
        if spoilt.kind == "garbage":
            self.counts["garbage"] += 1
            middle = len(chunk) // 2
            return chunk[:middle] + bytes((chunk[middle] ^ 0x55,)) + chunk[middle + 1 :]
        return chunk


class _Link:
    """Both halves of one connection through a proxy. `lost`: bytes that were swallowed."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers, self.lost = [writer], 0

    def reset(self) -> None:
        for writer in self.writers:
            with suppress(OSError):
                found = writer.get_extra_info("socket")
                if found is not None and found.fileno() >= 0:
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Proxies:
    """Proxies by name, in a thread of their own. A context manager; its methods are for other threads."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._named: dict[str, Proxy] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._named.values():
            self._run(proxy.close())
        self._run(self._rest())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def put_before(self, name: str, target: tuple[str, int]) -> tuple[str, int]:
        """A new proxy before `target`; where it listens."""
        proxy = self._named[name] = Proxy(target)
        self._run(proxy.listen(self._host))
        return proxy.address

    def address(self, name: str) -> tuple[str, int]:
        return self._named[name].address

    def spoil(self, name: str, spoilt: Spoilt) -> None:
        self._run(self._named[name].spoil(spoilt))

    def count(self, name: str, kind: str) -> int:
        """See `Proxy.counts`."""
        return self._named[name].counts[kind]

    @staticmethod
    async def _rest() -> None:
        """Links that were reset end their tasks."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)
