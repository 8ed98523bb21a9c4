"""One node whose messages to the client are changed, or lost, from some moment on."""

from collections.abc import Callable
from typing import Any

from hivemint.protocol.ids import PeerId
from hivemint.swarm.host import Host
from hivemint.swarm.link import Link
from hivemint.swarm.messages import AnyMessage


class Patient:
    """One node whose messages to the client are changed, or lost, from a step on."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.peer: PeerId | None = None
        self.treat: Callable[[AnyMessage], AnyMessage | None] = lambda message: message

    async def dial(self, *args: Any, **named: Any) -> Any:
        link = await self._host.dial(*args, **named)
        return _Treated(link, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)


class _Treated:
    def __init__(self, link: Link, patient: Patient) -> None:
        self._link, self._patient = link, patient

    async def receive(self) -> AnyMessage:
        while True:
            message = await self._link.receive()
            if self._link.peer != self._patient.peer:
                return message
            if (treated := self._patient.treat(message)) is not None:
                return treated

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)
