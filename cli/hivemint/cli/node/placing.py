"""Which blocks a new node is proposed: those that the fewest nodes serve, as many as fit its memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hivemint.model.footprint import fit, footprint
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import ConfigError
from hivemint.protocol.ids import Address
from hivemint.protocol.network import Network

if TYPE_CHECKING:
    from hivemint.node.market import Rival
    from hivemint.node.settings import NodeSettings

SESSION = 1024
"""Tokens of the session that must have room beside the weights."""


@dataclass(frozen=True, slots=True)
class Room:
    """The most blocks that fit, what one takes and what is free, in bytes."""

    blocks: int
    block_bytes: int
    free: int


def room(model: LocalModel, settings: "NodeSettings") -> Room:
    """By the free memory of the device that the settings name. Raises ConfigError if not one block fits."""
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
    return Room(fits, need.block, free)


def weakest(served: Sequence[int], most: int) -> tuple[int, int]:
    """The span of `most` blocks where help counts most. `served`: how many nodes there are for each block.

    A block that nobody serves counts 1, one more node each halves it; of equal spans the first.
    """
    length = min(most, len(served))
    worth = [2.0**-count for count in served]
    best = max(range(len(served) - length + 1), key=lambda first: (sum(worth[first : first + length]), -first))
    return best, best + length


@dataclass(frozen=True, slots=True)
class Around:
    """The other operators of a model: how many serve each block, and whose asks count for which blocks."""

    served: list[int]
    rivals: "list[tuple[range, Rival]]"

    def asking(self, first: int, end: int) -> "list[Rival]":
        """Those of the blocks from `first` to before `end`."""
        return [rival for blocks, rival in self.rivals if max(first, blocks.start) < min(end, blocks.stop)]


async def look_around(network: Network, model: LocalModel, own: Address) -> Around:
    """Without `own`; who isn't registered serves nothing. Raises SwarmError."""
    from hivemint.cli.swarm import visiting
    from hivemint.node.market import others

    blocks = model.anatomy.num_blocks
    operators: list[set[str]] = [set() for _ in range(blocks)]
    rivals: list[tuple[range, Rival]] = []
    if network.bootstrap:
        async with visiting(network) as host:
            for one in await host.find(model.model_id, range(blocks)):
                if one.record.operator == own or (host.ranks and not host.is_registered(one)):
                    continue
                rivals += [(one.record.blocks, rival) for rival in others([one], host.stake_of, own)]
                for block in set(one.record.blocks) & set(range(blocks)):
                    operators[block].add(one.record.operator)
    return Around([len(found) for found in operators], rivals)


def in_words(served: Sequence[int], first: int, end: int) -> str:
    """How many serve these blocks now."""
    counts = served[first:end]
    least, most = min(counts), max(counts)
    if not most:
        return "nobody serves them"
    nodes = f"{least} to {most}" if least != most else str(most)
    return f"{nodes} other node{'s' if most > 1 else ''} serve them" if most > 1 else f"{nodes} other node serves them"
