"""What this machine can do for a model: how many blocks fit, how fast one of them runs, how far other nodes are.

Heavy libraries are imported where they are used: the command imports this before it knows whether it needs them.
"""

import asyncio
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hivemint.model.footprint import fit, footprint
from hivemint.model.local_models import LocalModel
from hivemint.node.settings import NodeSettings, free_cores
from hivemint.protocol.errors import ConfigError, HivemintError
from hivemint.protocol.ids import BlockIndex, PeerId
from hivemint.swarm.records import NodeRecord

if TYPE_CHECKING:
    from hivemint.swarm.link import Link

SESSION = 1024
"""Tokens of the session that must have room beside the weights."""
STEPS, WARM = 16, 4
"""Steps that are timed; and before them, those that choose kernels and fill caches."""
NEIGHBOURS = 8
"""Nodes whose distance is measured, at most."""
DIAL_LIMIT = 3.0


@dataclass(frozen=True, slots=True)
class Room:
    """The most blocks that fit, what one takes and what is free, in bytes."""

    blocks: int
    block_bytes: int
    free: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One machine and one model. `blocks`: as many as fit. `rate`: rows a second through one block, decoding one at a
    time, as records tell it too. `trip`: seconds to the nearer half of the other nodes and back; None: there are none.
    """

    blocks: int
    rate: float
    trip: float | None = None


class Dialler(Protocol):
    """The host, as far as distances are measured with it."""

    async def dial(self, peer: PeerId, addresses: Sequence[str], protocol: str, *, timeout: float = ...) -> "Link": ...


def room(model: LocalModel, settings: NodeSettings) -> Room:
    """By the free memory of the device that the settings name, and their `max_blocks`. Raises ConfigError if not one
    block fits."""
    import torch

    from hivemint.node.kv.cache import CPU_SHARE, GPU_SHARE, free_memory
    from hivemint.node.span.linear import can_pack

    kind, _, index = settings.device.partition(":")
    if kind == "cuda" and torch.cuda.is_available():
        free, share = torch.cuda.mem_get_info(int(index or 0))[0], GPU_SHARE
    else:
        free, share = free_memory(), CPU_SHARE
    weights = settings.precision.partition("/")[0]
    need = footprint(model.anatomy, weights, kind, wide=kind == "cpu" and can_pack(torch.bfloat16))
    fits = fit(model.anatomy, need, free, share, min(model.anatomy.max_positions, SESSION)).blocks
    if not fits:
        raise ConfigError(
            f"Not one block of {model.name} fits on {settings.device}",
            why=f"{need.block / 1e6:,.0f} MB a block in {weights}, and {free / 1e6:,.0f} MB are free",
            next_step="close other programs, or choose a smaller --precision (see `hivemint model info`)",
        )
    return Room(min(fits, settings.max_blocks or fits), need.block, free)


def rate(model: LocalModel, settings: NodeSettings) -> float:
    """Rows a second through one block: real steps of one row through the model's middle block on the device that the
    settings name, the median of STEPS. Loads that block, and lets it go again. Raises ConfigError, ModelError."""
    from hivemint.node.span import memory

    memory.spare()
    import torch

    from hivemint.node.span.precision import Precision
    from hivemint.node.span.span import Span, Work

    precision, device = Precision.parse(settings.precision), torch.device(settings.device)
    precision.check_device(device)
    torch.set_num_threads(settings.threads or free_cores())
    block = model.anatomy.num_blocks // 2
    span = Span.load(
        model.folder, BlockIndex(block), BlockIndex(block + 1), precision=precision, device=settings.device
    )
    store = span.new_store(4 * (STEPS + WARM) * model.anatomy.kv_bytes_per_token(1, 4) + (1 << 22))
    cache = store.open(STEPS + WARM)
    seconds = []
    for start in range(WARM + STEPS):
        began = time.perf_counter()
        (out,) = span.run([Work(cache, start, torch.zeros(1, span.hidden_size, dtype=span.dtype))])
        out.cpu()  # until the device has done it
        seconds.append(time.perf_counter() - began)
    cache.close()
    return 1 / max(statistics.median(seconds[WARM:]), 1e-6)


async def trip(host: Dialler, records: Iterable[NodeRecord]) -> float | None:
    """Seconds for a word to the nearer half of NEIGHBOURS nodes and back, a connection being there; None where none
    answers. Takes DIAL_LIMIT at most twice over."""
    found = await asyncio.gather(*(_trip(host, record) for record in list(records)[:NEIGHBOURS]))
    answered = [seconds for seconds in found if seconds is not None]
    return statistics.quantiles(answered, n=4)[0] if len(answered) > 1 else next(iter(answered), None)


async def _trip(host: Dialler, record: NodeRecord) -> float | None:
    """The second dial's: the first one makes the connection."""
    from hivemint.swarm.host import CONTROL

    seconds = None
    try:
        for _ in range(2):
            began = time.perf_counter()
            link = await host.dial(PeerId(record.peer), record.addresses, CONTROL, timeout=DIAL_LIMIT)
            seconds = time.perf_counter() - began
            await link.close("measured the way here")
    except HivemintError:
        return None
    return seconds
