"""Does the device still answer? A batch that does not end can't be waited for, and nobody else would ever say so.

What is too long follows from what was measured: a batch may take `times` of what its rows usually cost. `least_s` is
the floor below which a busy machine, swapping or a kernel's first compilation would look like a hang.
"""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from hivemint.protocol.errors import HivemintError

LOOK = 0.25
"""Seconds between looks. A batch's age is counted in looks that found it, so a process that slept is not to blame."""


class DeviceHung(HivemintError):
    """A batch does not end. Its thread can't be joined: the process has to go."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceLoad:
    """A batch that the device computes now. `usual_s`: what that takes by what was measured so far."""

    rows: int
    sessions: int
    usual_s: float


class Works(Protocol):
    """`device.Device`, as far as it is watched."""

    @property
    def on_device(self) -> DeviceLoad | None: ...


@dataclass(frozen=True, slots=True)
class HangLimit:
    """When a batch counts as hung: after `times` its usual time, and not before `least_s` seconds."""

    times: float = 100.0
    least_s: float = 30.0

    def of(self, load: DeviceLoad) -> float:
        return max(self.least_s, self.times * load.usual_s)


async def watch(device: Works, limit: HangLimit) -> None:
    """Until the device hangs. Raises DeviceHung."""
    seen: DeviceLoad | None = None
    age = 0.0
    while True:
        await asyncio.sleep(LOOK)
        load = device.on_device
        age = age + LOOK if load is seen else 0.0
        seen = load
        if load is not None and age >= limit.of(load):
            raise DeviceHung(
                "The device hangs",
                why=f"a batch of {load.rows} tokens of {load.sessions} sessions has not ended after {age:.1f} s, where "
                f"{load.usual_s:.3g} s are usual",
                next_step="check the device (on a GPU: dmesg, nvidia-smi), then start the node again; what was signed "
                "is kept. If it was only slow, raise HIVEMINT_HUNG_LEAST or HIVEMINT_HUNG_TIMES",
            )
