"""Where a new node is placed, and what it can expect there: measured here, read from the directory, decided by the rule
that it looks again by (`hivemint.node.placement`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hivemint.model.local_models import LocalModel
from hivemint.protocol.credits import in_words as credits_in_words
from hivemint.protocol.ids import Address, Credits
from hivemint.protocol.network import Network

if TYPE_CHECKING:
    from hivemint.node.market import Rival
    from hivemint.node.placement.measure import Measured, Room
    from hivemint.node.placement.rule import Choice, Placed
    from hivemint.node.running import ServePlan
    from hivemint.node.settings import NodeSettings

DAY = 86_400
NO_QUEUE = 0.001
"""Seconds below which a published wait is none."""


@dataclass(frozen=True, slots=True)
class Around:
    """The other operators of a model: how many serve each block, whose asks count for which blocks; their places with
    their rates, how long paid work waits in which blocks, and how far they are (`measure.Measured`).
    """

    served: list[int]
    rivals: "list[tuple[range, Rival]]"
    placed: "list[Placed]" = field(default_factory=list)
    waits: list[tuple[range, float]] = field(default_factory=list)
    trip: float | None = None

    def asking(self, first: int, end: int) -> "list[Rival]":
        """Those of the blocks from `first` to before `end`."""
        return [rival for blocks, rival in self.rivals if _meet(blocks, first, end)]

    def wait(self, first: int, end: int) -> float | None:
        """The shortest of the paid lane's waits there, in seconds; None where nobody else serves these blocks."""
        return min((wait for blocks, wait in self.waits if _meet(blocks, first, end)), default=None)


def _meet(blocks: range, first: int, end: int) -> bool:
    return max(first, blocks.start) < min(end, blocks.stop)


async def look_around(network: Network, model: LocalModel, own: Address) -> Around:
    """Without `own`; who isn't registered serves nothing. Raises SwarmError."""
    from hivemint.cli.swarm import visiting
    from hivemint.node.market import others
    from hivemint.node.placement.measure import trip
    from hivemint.node.placement.watch import placed

    blocks = model.anatomy.num_blocks
    operators: list[set[str]] = [set() for _ in range(blocks)]
    around = Around([0] * blocks, [])
    if network.bootstrap:
        async with visiting(network) as host:
            every = await host.find(model.model_id, range(blocks))
            found = [one for one in every if one.record.operator != own and (not host.ranks or host.is_registered(one))]
            for one in found:
                around.rivals.extend((one.record.blocks, rival) for rival in others([one], host.stake_of, own))
                around.waits.append((one.record.blocks, one.record.wait_paid_s))
                for block in set(one.record.blocks) & set(range(blocks)):
                    operators[block].add(one.record.operator)
            around.placed.extend(placed(found, host, own, blocks))
            away = await trip(host, [one.record for one in found])
            around = replace(around, served=[len(ones) for ones in operators], trip=away)
    return around


@dataclass(frozen=True)
class ChosenPlace:
    """The span that was chosen, what it was chosen by, and what others serve and ask there."""

    choice: "Choice"
    measured: "Measured"
    room: "Room"
    around: Around

    @property
    def why(self) -> str:
        """For people: who serves these blocks, and the memory that they take."""
        first, end = self.choice.span
        took = (end - first) * self.room.block_bytes / 1e9
        return f"{in_words(self.around.served, first, end)}; {took:.1f} GB of {self.room.free / 1e9:.1f} GB free"

    def lines(self, settings: "NodeSettings") -> list[tuple[str, str]]:
        """What was measured, what it does for the swarm, and what it may earn: name and text."""
        measured, choice = self.measured, self.choice
        found = f"{measured.rate:,.0f} rows/s through one block, {measured.blocks} blocks fit"
        if measured.trip is not None:
            found += f", {measured.trip * 1000:,.1f} ms to other nodes and back"
        return [("measured", found), ("helps", helps(choice)), ("earns", earns(self, settings))]


def helps(choice: "Choice") -> str:
    """What the swarm's weakest block can do without the node and with it."""
    if choice.before <= 0:
        gained = f"{choice.after:,.1f} tokens/s" if choice.after > 0 else "some blocks still have no node"
        return f"blocks had no node; with it: {gained}"
    return f"the swarm's weakest block goes from {choice.before:,.1f} to {choice.after:,.1f} tokens/s"


def earns(place: ChosenPlace, settings: "NodeSettings") -> str:
    """What the node takes if paid work keeps it busy, one row at a time, at its ask; and whether there is such work."""
    first, end = place.choice.span
    ask = expected_ask(settings, place.around.asking(first, end))
    day = Credits(round(place.measured.rate * ask * DAY))
    wait = place.around.wait(first, end)
    if wait is None:
        demand = "nobody else serves these blocks, so their demand is not known"
    elif wait < NO_QUEUE:
        demand = "paid work does not wait there now, so it may be far less"
    else:
        demand = f"paid work waits {wait * 1000:,.0f} ms there now"
    return (
        f"{credits_in_words(day)} a day at {credits_in_words(ask)} a token and block if one paid session at a time "
        f"keeps it busy, more if several share its batches, nothing while nobody asks; {demand}"
    )


def expected_ask(settings: "NodeSettings", rivals: "list[Rival]") -> Credits:
    """The ask that the node begins with: its own, or with `auto` what it will follow."""
    from hivemint.node.market import AskRule

    if not settings.ask_auto:
        return Credits(settings.ask)
    rule = AskRule(settings.ask_floor, settings.ask_ceiling)
    return Credits(rule.next(settings.first_ask, rivals, at_once=True))


def find_place(plan: "ServePlan", around: Around) -> ChosenPlace:
    """Measure this machine, and choose. Takes seconds: a block of the model is loaded and run. Raises ConfigError."""
    from hivemint.node.placement.measure import Measured, rate, room
    from hivemint.node.placement.rule import believed, choose

    fits = room(plan.model, plan.settings)
    measured = Measured(fits.blocks, rate(plan.model, plan.settings), around.trip)
    others = believed(around.placed, measured.rate)
    choice = choose(plan.model.anatomy.num_blocks, others, measured.blocks, measured.rate)
    return ChosenPlace(choice, measured, fits, around)


def at(plan: "ServePlan", place: ChosenPlace) -> "ServePlan":
    """The plan at that place. The node looks again later, as nobody has named its blocks."""
    return replace(plan, first=place.choice.first, end=place.choice.end, measured=place.measured)


def in_words(served: Sequence[int], first: int, end: int) -> str:
    """How many serve these blocks now."""
    counts = served[first:end]
    least, most = min(counts), max(counts)
    if not most:
        return "nobody serves them"
    nodes = f"{least} to {most}" if least != most else str(most)
    return f"{nodes} other node{'s' if most > 1 else ''} serve them" if most > 1 else f"{nodes} other node serves them"
