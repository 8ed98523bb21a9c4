"""The client's settings: flags > `HIVEMINT_*` > `[client]` of `$HIVEMINT_HOME/config.toml` > defaults.

A bid is a price per token and block. Amounts are read by `protocol.credits.parse_credits`.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import NoDecode, SettingsConfigDict

from hivemint.protocol.credits import exact_credits, parse_credits
from hivemint.protocol.errors import BadInput
from hivemint.protocol.ids import Credits
from hivemint.protocol.settings import Settings

MAX_TIMES = 16
"""A node's weight for a bid ends at 16 times its ask (`docs/protocol.md`, section 6): more buys nothing."""
NOTHING = Credits(0)
_TIMES = re.compile(r"(\d{1,4}(?:\.\d{1,6})?)x")


@dataclass(frozen=True, slots=True)
class Bid:
    """What to offer a node: `auto` (the ask where the account is funded, else the donated lane), `free`, a multiple of
    the node's ask, or a fixed amount per token and block."""

    kind: Literal["auto", "free", "times", "amount"] = "auto"
    millionths: int = 1_000_000
    amount: Credits = NOTHING

    @classmethod
    def parse(cls, text: str) -> "Bid":
        """`auto`, `free`, `ask`, `2.5x`, or an amount such as `0.002` (0 = free). Raises BadInput."""
        plain = text.strip().lower()
        if plain in ("auto", ""):
            return cls()
        if plain == "ask":
            return cls("times")
        if found := _TIMES.fullmatch(plain):
            millionths = round(float(found[1]) * 1_000_000)
            if not 1_000_000 <= millionths <= MAX_TIMES * 1_000_000:
                raise BadInput(f"A bid of {text} is no use", why=f"nodes weigh bids from 1x to {MAX_TIMES}x their ask")
            return cls("times", millionths)
        if plain == "free":
            return cls("free")
        try:
            amount = parse_credits(text)  # as it is written: a capital M is no thousandth
        except BadInput as error:
            next_step = f"{error.next_step}; or auto, free, ask, 2x"
            raise BadInput(f"{text[:100]!r} is not a bid", why=error.why, next_step=next_step) from None
        return cls("amount", amount=amount) if amount else cls("free")

    @property
    def paid(self) -> bool:
        return self.kind != "free"

    def at(self, ask: int) -> Credits | None:
        """Credits (wei) per token and block for a node that asks `ask`; None if this bid does not reach it."""
        if self.kind == "free":
            return Credits(0)
        if self.kind == "amount":
            return self.amount if self.amount >= ask else None
        return Credits(-(-ask * self.millionths // 1_000_000))

    def __str__(self) -> str:
        if self.kind == "amount":
            return f"{exact_credits(self.amount)} HMC"
        if self.kind == "times":
            return "ask" if self.millionths == 1_000_000 else f"{self.millionths / 1_000_000:g}x"
        return self.kind


def _bid(value: object) -> object:
    return _or_value_error(Bid.parse, value)


def _credits(value: object) -> object:
    return _or_value_error(parse_credits, value)


def _or_value_error(parse: Any, value: object) -> object:
    if not isinstance(value, str | int | float) or isinstance(value, Credits):
        return value
    try:
        return parse(str(value))
    except BadInput as error:
        raise ValueError(str(error)) from None


def _names(value: object) -> object:
    """`a, b` as it stands in an environment's variable or on a command line, or a list."""
    if not isinstance(value, str):
        return value
    return tuple(name for one in value.split(",") if (name := one.strip()))


NodeNames = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]


class ClientSettings(Settings):
    """What a client may choose. Times in seconds."""

    model_config = SettingsConfigDict(arbitrary_types_allowed=True)
    TABLE: ClassVar[str] = "client"

    bid: Annotated[Bid, NoDecode, BeforeValidator(_bid)] = Bid()
    """`auto`, `free`, `ask`, `2x`, or credits per token and block."""
    max_price: Annotated[Credits | None, NoDecode, BeforeValidator(_credits)] = None
    """Ceiling: credits per token through all blocks. None: `max_times_median` and what the accounts hold."""
    max_times_median: Annotated[float, Field(ge=1, le=1e6)] = 3.0
    """Without `max_price`: nodes that ask more than this many times the swarm's median ask are left out."""
    seconds_per_credit: Annotated[float, Field(ge=0)] = 10.0
    """How much time a saved credit is worth when routes are compared: the lambda of the routing cost."""
    margin: Annotated[float, Field(ge=1, le=10)] = 1.25
    """A session's `maxAmount` is this many times its expected price (`docs/protocol.md`, section 1)."""
    replay_margin: Annotated[float, Field(ge=1, le=100)] = 2.0
    """A text may cost this many times its plan, where nodes lose its room and it is computed again; then it ends."""
    session_time: Annotated[float, Field(ge=60, le=86_400)] = 3600.0
    """How long a session may last."""
    prefill_chunks: Annotated[int, Field(ge=1, le=64)] = 4
    """A prompt is cut into about this many chunks a node, so that all nodes of a route work at once."""
    min_chunk: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows of the smallest chunk, and of the first one at a node that has not served this client before."""
    open_timeout: Annotated[float, Field(gt=0)] = 10.0
    """For dialling a node and its handshake."""
    step_timeout: Annotated[float, Field(gt=0)] = 60.0
    """For one step through the whole route, all that comes of it included. Nodes wait 30 s for each other."""
    step_times: Annotated[float, Field(ge=2)] = 30.0
    """A step at nodes that have delivered before may take this many times what they publish, or what was measured."""
    step_floor: Annotated[float, Field(gt=0)] = 10.0
    """Seconds on top of that; `step_timeout` is the most."""
    slow_times: Annotated[float, Field(ge=1)] = 10.0
    """A node whose steps take this many times what it publishes is replaced, where another can take its blocks."""
    slow_floor: Annotated[float, Field(ge=0)] = 2.0
    """Seconds that a step at a node may always take before it counts as slow."""
    repairs: Annotated[int, Field(ge=0, le=100)] = 4
    """Failures of nodes in a row, without an output in between, that a text gets over by others in their places."""
    patience: Annotated[float, Field(ge=0)] = 60.0
    """How long to wait for a place when all nodes are busy."""
    wait_for_blocks: Annotated[float, Field(ge=0)] = 0.0
    """How long to wait for nodes to come where blocks are missing."""
    wait_for_return: Annotated[float, Field(ge=0)] = 20.0
    """How long a text that has begun waits where nobody serves some of its blocks any more: a node that is started anew
    is back within seconds, and the text goes on."""
    set_aside: Annotated[float, Field(ge=0)] = 120.0
    """How long a node that failed or lied is left out of routes: twice as long each time, until it has delivered."""
    spread: Annotated[float, Field(ge=0, le=10)] = 0.25
    """By up to this share of its time each node looks worse to a wallet, by chance: so clients that plan at once do not
    all choose the same nodes. 0: always the best."""
    allowed_nodes: NodeNames = ()
    """Nodes that alone are used, by name, operator or peer id, with commas between. None: all."""
    blocked_nodes: NodeNames = ()
    """Nodes that are never used."""
    preferred_nodes: NodeNames = ()
    """Nodes that are used as long as they take less than twice the time of others."""
    trusted_nodes: NodeNames = ()
    """Nodes that alone compute a model's first and last blocks, where prompts and answers are plainest. None: any."""
    max_ahead: Annotated[int, Field(ge=1, le=64)] = 4
    """Steps in flight at a node, whatever it offers; one until it has delivered to this client."""
    max_rows: Annotated[int, Field(ge=1, le=16_384)] = 512
    """Positions of a step, whatever a node offers."""
    max_session_tokens: Annotated[int, Field(ge=1)] = 1 << 20
    """Positions of a session, whatever a node offers."""
    max_backward: Annotated[int, Field(ge=0, le=16_384)] = 2048
    """Positions of a step backward, whatever a node offers."""
    max_adapter: Annotated[int, Field(ge=0, le=1 << 26)] = 1 << 26
    """Bytes of an adapter that a node gets, whatever it offers."""
    max_wait: Annotated[float, Field(ge=0)] = 30.0
    """The longest that a busy node's word on when to come again is followed."""

    def changed(self, **changes: Any) -> "ClientSettings":
        """These with other values for some; what is None stays as it is. Raises ConfigError that names the setting."""
        wanted = {name: value for name, value in changes.items() if value is not None}
        try:
            return type(self)(**{**dict(self), **wanted})
        except ValidationError as error:
            raise self._refused(error) from None
