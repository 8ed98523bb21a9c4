"""What a lying node may change in a message to a client, and what a node on the route may do beside lying.

(PYTEST_DONT_REWRITE: tests import from here before pytest does, and nothing is asserted here.)
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch

from hivemint.node.server import Node
from hivemint.protocol.ids import PeerId
from hivemint.swarm.frames import pack
from hivemint.swarm.link import Link
from hivemint.swarm.messages import AnyMessage, Peer, StepReceipt, Tensor
from hivemint.swarm.rows import to_wire


def _flip(data: bytes | memoryview) -> bytes:
    return bytes(data[:-1]) + bytes([data[-1] ^ 1])


def changed_output(message: AnyMessage) -> AnyMessage:
    return Tensor(message.head, _flip(message.data)) if isinstance(message, Tensor) else message


def changed_rows(message: AnyMessage) -> AnyMessage:
    if isinstance(message, StepReceipt):
        return msgspec.structs.replace(message, rows=_flip(message.rows))
    return message


def changed_signature(message: AnyMessage) -> AnyMessage:
    if isinstance(message, StepReceipt):
        signed = msgspec.structs.replace(message.receipt, signature=_flip(message.receipt.signature))
        return msgspec.structs.replace(message, receipt=signed)
    return message


def more_tokens(message: AnyMessage) -> AnyMessage:
    if isinstance(message, StepReceipt):
        receipt = msgspec.structs.replace(message.receipt.body, tokens=message.receipt.tokens + 1)
        return msgspec.structs.replace(message, receipt=msgspec.structs.replace(message.receipt, body=receipt))
    return message


# --- what a real node of this process is made to do


def sends_no_numbers(node: Node) -> None:
    """Its outputs are NaN, and it signs for them like for any other."""
    meter: Any = node._services.meter
    encode = meter.encode

    async def nan(output: torch.Tensor, wire: str) -> bytes:
        await encode(output, wire)
        return to_wire(torch.full(output.shape, torch.nan), wire)

    meter.encode = nan


def stalls(node: Node) -> Callable[[], None]:
    """It answers pings, takes requests, and computes nothing until it is let go."""
    return waits(node, asyncio.Event())


def waits(node: Node, until: asyncio.Event | float) -> Callable[[], None]:
    """Each step ends so many seconds late, or once `until` is set."""
    engine: Any = node.engine
    finish = engine.finish

    async def late(job: Any) -> torch.Tensor:
        if isinstance(until, float):
            await asyncio.sleep(until)
        else:
            await until.wait()
        output: torch.Tensor = await finish(job)
        return output

    def let_go() -> None:
        engine.finish = finish
        if isinstance(until, asyncio.Event):
            until.set()

    engine.finish = late
    return let_go


def keeps_outputs(node: Node) -> None:
    """The client gets its receipts, the next node gets nothing."""
    outlets: Any = node._services.outlets

    def nothing(to: Peer, *messages: AnyMessage) -> bool:
        return True

    outlets.put = nothing


def drips(monkeypatch: pytest.MonkeyPatch, to: PeerId, pause: float) -> None:
    """Every tensor for the peer `to` goes a byte at a time."""
    send, put = Link.send, Link.put

    def dripping(link: Link, messages: tuple[AnyMessage, ...]) -> bool:
        return link.peer == to and any(isinstance(message, Tensor) for message in messages)

    def full(link: Link, *messages: AnyMessage) -> bool:
        return not dripping(link, messages) and put(link, *messages)

    async def bytewise(link: Link, *messages: AnyMessage) -> None:
        if not dripping(link, messages):
            await send(link, *messages)
            return
        for byte in b"".join(pack(messages)):
            link._check_open()
            link._transport.write(bytes((byte,)))
            link._sent_at = asyncio.get_running_loop().time()  # no ping in the middle of a frame
            await asyncio.sleep(pause)

    monkeypatch.setattr(Link, "send", bytewise)
    monkeypatch.setattr(Link, "put", full)
