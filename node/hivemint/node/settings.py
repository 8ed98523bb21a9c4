"""Settings of a node: flags > `HIVEMINT_*` > `[node]` of `$HIVEMINT_HOME/config.toml` > these defaults."""

import os
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from hivemint.protocol.credits import parse_credits
from hivemint.protocol.errors import BadInput, ConfigError
from hivemint.protocol.ids import ONE_CREDIT, Credits
from hivemint.protocol.settings import Settings
from hivemint.swarm.addresses import trouble_of

if TYPE_CHECKING:
    from hivemint.contracts.fees import FeeCeiling
    from hivemint.ledger.settlement.worth import SettlerSettings

_PLAIN = "fp32|bf16|fp16"


def _credits(value: Any) -> int:
    if isinstance(value, str | float):  # 0.5 in a file means what "0.5" does
        try:
            return int(parse_credits(str(value)))
        except BadInput as error:
            raise ValueError(str(error)) from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("an amount is a whole number of wei, or credits with a point or as a text, such as `0.5`")
    return int(value)


_AMOUNT = BeforeValidator(_credits)
Amount = Annotated[int, _AMOUNT, Field(ge=0, lt=2**96)]
Count = Annotated[int, Field(ge=1)]


class NodeSettings(Settings):
    """What an operator may change. Amounts in wei (as text: `0.5`, `10 wei`), times in seconds."""

    TABLE: ClassVar[str] = "node"

    ask: Amount = 10**11
    """Price per token and block; `auto` follows the other nodes of these blocks (`market.py`)."""
    ask_auto: bool = False
    """Whether it follows them: what `ask = "auto"` sets."""
    ask_floor: Amount = 10**10
    """An ask that follows others never goes below."""
    ask_ceiling: Amount = 10**12
    """Nor above."""
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    """Addresses (multiaddr) to listen at; port 0 = any free one."""
    announce: tuple[str, ...] = ()
    """Addresses to publish instead of those, where others reach this node by them."""
    bootstrap: tuple[str, ...] = ()
    """Besides the network file's."""
    precision: str = Field("fp32", pattern=rf"^({_PLAIN}|int8|nf4)(/({_PLAIN}))?$")
    """Of weights, or `weights/compute`; which pairs there are is `precision.Precision`'s to say."""
    wire: str = Field("", pattern=rf"^({_PLAIN})?$")
    """Form of the rows that come and go; "" = that of the computation. All hops of a route speak the same one."""
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d{1,3})?)$")
    """`cpu`, `cuda` or `cuda:1`."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Compute threads; 0 = the cores that are free now."""
    max_session_tokens: Annotated[int, Field(ge=0)] = 0
    """K/V room of one session; 0 = the model's positions."""
    max_rows: Annotated[int, Field(ge=1, le=16_384)] = 512
    """Token positions a step."""
    max_backward: Annotated[int, Field(ge=0, le=16_384)] = 256
    """Token positions a backward step, fewer where memory holds fewer; 0 = no fine-tuning. It runs in one piece."""
    max_adapter: Annotated[int, Field(ge=0, le=1 << 26)] = 1 << 25
    """Bytes of a client's LoRA adapter, out of the room for keys and values; 0 = none are taken."""
    max_rank: Annotated[int, Field(ge=1, le=1024)] = 64
    """Of an adapter."""
    ahead: Annotated[int, Field(ge=1, le=64)] = 2
    """A session's steps in flight."""
    batch_rows: Count = 64
    """Token positions a batch, where several sessions wait."""
    donated_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The donated lane's sure share of compute and K/V room."""
    kv_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes for keys and values; 0 = half of the free memory."""
    keep_outputs: Annotated[int, Field(ge=0)] = 1 << 28
    """Bytes for outputs that are kept until their session ends, to be sent once more where the next node dies."""
    max_sessions: Count = 256
    """Seats: sessions at once, in both lanes."""
    max_sessions_a_client: Count = 64
    """Of one wallet, whatever peers it comes from."""
    max_sessions_a_prefix: Count = 128
    """From one network (/24, /56), whatever wallets and peers; on loopback and behind relays of one peer."""
    max_donated_sessions: Count = 64
    """Seats of the donated lane, of those in both."""
    max_donated_a_prefix: Count = 16
    """Of one network, as above."""
    idle: Annotated[float, Field(gt=0)] = 30.0
    """Seconds without a step after which a session loses its seat and its room when another needs them."""
    park: Annotated[float, Field(ge=0, le=86_400)] = 120.0
    """Seconds that a session whose client is gone without a word is kept for it to come back, while nobody needs its
    room; 0 = not at all."""
    donated_wait: Annotated[float, Field(gt=0)] = 30.0
    """Longest queue of the donated lane before the answer is `busy`."""
    settle_min: Amount = ONE_CREDIT
    """Settle as soon as so much has come together."""
    settle_every: Annotated[float, Field(gt=0)] = 6 * 3600.0
    """Seconds after which smaller sums are settled too, if each account's is more than `dust`."""
    dust: Amount = ONE_CREDIT // 1000
    """No account is settled for less, not even before it is lost."""
    credit_price: Amount = 0
    """Coin that one credit is worth to the operator; 0 = unknown. With it a settlement must bring what it costs."""
    max_fee: Annotated[float, Field(gt=0, lt=1e9)] = 100.0
    """Gwei per gas that own transactions offer at most; they wait while the chain asks for more."""
    max_tip: Annotated[float, Field(gt=0, lt=1e9)] = 3.0
    """Of it the most that is tip."""
    coin_a_day: Amount = 10**17
    """Coin that own transactions may risk on one day (UTC)."""
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    """Prometheus on loopback; 0 = any free port, none = off."""
    drain: Annotated[float, Field(ge=0)] = 20.0
    """Seconds that a stopping node gives to the steps under way."""
    max_blocks: Annotated[int, Field(ge=0)] = 0
    """Blocks that a node which chooses them itself serves at most; 0 = as many as fit the memory."""
    look_again: Annotated[float, Field(ge=0)] = 300.0
    """Seconds between looks whether a node that chose its blocks helps more elsewhere, on average; 0 = it stays."""
    hand_over: Annotated[float, Field(ge=0, le=3600)] = 60.0
    """Seconds that a node which moves gives its sessions to end by themselves; those left then are told to move."""
    hung_times: Annotated[float, Field(ge=2)] = 100.0
    """A batch that takes this many times what its rows usually cost is a hung device, and the node ends."""
    hung_least: Annotated[float, Field(gt=0)] = 30.0
    """But not before so many seconds: a busy machine or a kernel's first compilation is no hang. Clients wait 60."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *args: PydanticBaseSettingsSource, **sources: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """In each source `ask` says whether the node follows others: it goes before an `ask_auto` of a lower one."""
        *others, file = (source() for source in super().settings_customise_sources(settings_cls, *args, **sources))
        cls._check_units(file)
        return tuple(InitSettingsSource(settings_cls, _auto(source)) for source in (*others, file))

    @classmethod
    def _check_units(cls, file: dict[str, Any]) -> None:
        """`ask = 1` in the file could mean a credit, as `--ask 1` does, or a wei of it. Raises ConfigError."""
        for name in (name for name, field in cls.model_fields.items() if _AMOUNT in field.metadata):
            value = file.get(name)
            if type(value) is int and value > 0:
                raise ConfigError(
                    f"The setting {name} cannot be used",
                    why=f"the whole number {value} could mean credits or wei",
                    next_step=f'write {name} = "{value}" for credits or {name} = "{value} wei" in config.toml',
                )

    @model_validator(mode="before")
    @classmethod
    def _no_amount(cls, given: Any) -> Any:
        if isinstance(given, dict) and _is_auto(given.get("ask")):
            return {name: value for name, value in given.items() if name != "ask"}
        return given

    @field_validator("listen", "announce", "bootstrap")
    @classmethod
    def _addresses(cls, given: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Before a process is started that would say it in its own words."""
        for address in given:
            if trouble := trouble_of(address, with_peer=info.field_name == "bootstrap"):
                raise ValueError(trouble)
        return given

    @model_validator(mode="after")
    def _a_range(self) -> "NodeSettings":
        if self.ask_floor > self.ask_ceiling:
            raise ValueError("ask_floor is above ask_ceiling")
        return self

    @property
    def first_ask(self) -> int:
        """Until others have been seen."""
        return min(max(self.ask, self.ask_floor), self.ask_ceiling) if self.ask_auto else self.ask

    @property
    def fees(self) -> "FeeCeiling":
        from hivemint.contracts.fees import FeeCeiling

        return FeeCeiling.gwei(self.max_fee, self.max_tip)

    @property
    def settling(self) -> "SettlerSettings":
        from hivemint.ledger.settlement.worth import SettlerSettings

        return SettlerSettings(
            settle_min=Credits(self.settle_min),
            settle_every=self.settle_every,
            dust=Credits(self.dust),
            credit_price=self.credit_price,
        )


def _is_auto(ask: Any) -> bool:
    return isinstance(ask, str) and ask.strip().lower() == "auto"


def _auto(source: dict[str, Any]) -> dict[str, Any]:
    """One source, with what its `ask` says of `ask_auto`."""
    if _is_auto(source.get("ask")):
        return source | {"ask_auto": True}
    return {"ask_auto": False} | source if "ask" in source else source


def free_cores() -> int:
    """Cores that nobody uses now, at least 1: one thread saturates memory, more than there are hurt."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - round(os.getloadavg()[0]))
