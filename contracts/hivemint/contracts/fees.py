"""What an own transaction may cost: fees by the chain's word, but never above ceilings of the sender's own.

An endpoint that names a wild price makes a transaction wait, or be refused in words; it can't burn a wallet. Amounts in
wei of the chain's coin, prices in wei per gas.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from web3.exceptions import Web3RPCError
from web3.types import TxParams

from hivemint.protocol.errors import ChainError, ConfigError
from hivemint.protocol.ids import ONE_CREDIT

if TYPE_CHECKING:
    from web3 import AsyncWeb3

GWEI = 10**9
MAX_FEE, MAX_TIP = 100.0, 3.0
"""Gwei per gas. The tip stays below what a busy main chain asks for its next block by far; some chains ask for more as
a rule (Polygon: 25), and their users raise it knowingly. The fee is above all but the worst hours of 2021."""
GAS_LIMIT = 30_000_000
"""No transaction of ours needs more; an estimate above it is a lie."""
_LEAST_RAISE, _RAISE = 1.1, 1.25  # nodes ask for 10 % at least, of fee and tip alike
_SOME_TIP = GWEI // 10
_KEPT_DAYS = 2


class TooDear(ChainError):
    """A transaction would cost more than the sender's ceilings allow. Nothing was sent."""


@dataclass(frozen=True, slots=True)
class FeeCeiling:
    """The most that a transaction offers, tip included, and the most of it that is tip; wei per gas."""

    max_fee: int = int(MAX_FEE * GWEI)
    max_tip: int = int(MAX_TIP * GWEI)

    @classmethod
    def gwei(cls, max_fee: float = MAX_FEE, max_tip: float = MAX_TIP) -> "FeeCeiling":
        return cls(round(max_fee * GWEI), round(max_tip * GWEI))

    @classmethod
    def from_environment(cls) -> "FeeCeiling":
        """`HIVEMINT_MAX_FEE` and `HIVEMINT_MAX_TIP` in gwei, else the defaults. Raises ConfigError."""
        return cls.gwei(_number("HIVEMINT_MAX_FEE", MAX_FEE), _number("HIVEMINT_MAX_TIP", MAX_TIP))

    async def offer(self, w3: "AsyncWeb3[Any]") -> TxParams:
        """Fees for a transaction now. Raises TooDear if the chain asks for more than the ceiling.

        The tip begins at half of its ceiling at most: a replacement must raise it too. A chain whose blocks name no
        base fee takes a plain gas price.
        """
        base = (await w3.eth.get_block("latest")).get("baseFeePerGas")
        if base is None:
            price = int(await w3.eth.gas_price)
            self._affordable(price)
            return cast(TxParams, {"gasPrice": price})
        self._affordable(int(base))
        tip = await self._tip(w3)
        fee = min(2 * int(base) + tip, self.max_fee)
        return cast(TxParams, {"maxFeePerGas": fee, "maxPriorityFeePerGas": min(tip, fee)})

    async def price(self, w3: "AsyncWeb3[Any]") -> int:
        """What a unit of gas costs now, tip included: for a judgement before anything is offered."""
        base = (await w3.eth.get_block("latest")).get("baseFeePerGas")
        price = int(await w3.eth.gas_price) if base is None else int(base) + await self._tip(w3)
        return min(price, self.max_fee)

    async def _tip(self, w3: "AsyncWeb3[Any]") -> int:
        return min(await _asked_tip(w3), self.max_tip // 2)

    def raised(self, old: TxParams, now: TxParams) -> TxParams | None:
        """Fees of a replacement that nodes accept: a quarter more, or what the chain asks `now` if that is more.

        None if the ceiling leaves less than nodes ask for.
        """
        before, fresh = cast(dict[str, int], old), cast(dict[str, int], now)
        fees = {}
        for name, ceiling in (
            ("gasPrice", self.max_fee),
            ("maxFeePerGas", self.max_fee),
            ("maxPriorityFeePerGas", self.max_tip),
        ):
            if name in before:
                fees[name] = min(max(int(before[name] * _RAISE) + 1, fresh.get(name, 0)), ceiling)
                if fees[name] <= before[name] * _LEAST_RAISE:
                    return None
        return cast(TxParams, fees)

    def _affordable(self, price: int) -> None:
        if price > self.max_fee:
            raise TooDear(
                f"The chain's gas costs {price / GWEI:,.6g} gwei now",
                why=f"the ceiling for own transactions is {self.max_fee / GWEI:,.6g} gwei",
                next_step="wait, or raise it: HIVEMINT_MAX_FEE, in gwei",
            )


class DailyBudget:
    """How much coin this process may risk in transactions on one day (UTC), kept in a file over restarts.

    Counted is the most that each transaction can cost, gas limit times fee and an L2's fee for its data, not what a
    receipt says: receipts are an endpoint's word too. A replacement counts with what it adds.
    """

    def __init__(self, a_day: int, file: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self.a_day = a_day
        self._file, self._clock = file, clock
        self._days: dict[int, int] = _read_days(file)
        self._by_nonce: dict[int, int] = {}

    @property
    def spent(self) -> int:
        """Today."""
        return self._days.get(self._today(), 0)

    def take(self, nonce: int, most: int) -> None:
        """Count a transaction that can cost `most`. Raises TooDear, and counts nothing, if the day has no room."""
        more = max(0, most - self._by_nonce.get(nonce, 0))
        if self.spent + more > self.a_day:
            raise TooDear(
                "Own transactions have reached the day's budget",
                why=f"{_coins(self.spent)} of {_coins(self.a_day)} coins are taken today, "
                f"this one can cost {_coins(more)}",
                next_step="it goes on tomorrow (UTC), or raise --coin-a-day",
            )
        today = self._today()
        self._days = {day: wei for day, wei in self._days.items() if day > today - _KEPT_DAYS}
        self._days[today] = self.spent + more
        self._by_nonce = {known: wei for known, wei in self._by_nonce.items() if known > nonce - 100}
        self._by_nonce[nonce] = max(most, self._by_nonce.get(nonce, 0))
        self._write()

    def _today(self) -> int:
        return int(self._clock() // 86_400)

    def _write(self) -> None:
        if self._file is None:
            return
        new = self._file.with_name(f".{self._file.name}.new")
        try:
            new.write_text(json.dumps({str(day): wei for day, wei in self._days.items()}))
            new.replace(self._file)
        except OSError as error:
            raise ConfigError(f"{self._file} cannot be written", why=error.strerror or str(error)) from None


def most_of(transaction: TxParams) -> int:
    """The most that a transaction can cost in gas."""
    fields: dict[str, Any] = dict(transaction)
    return int(fields["gas"]) * int(fields.get("maxFeePerGas") or fields.get("gasPrice") or 0)


async def _asked_tip(w3: "AsyncWeb3[Any]") -> int:
    """What the chain asks as a tip; the median of the last blocks' lower third where it has no such question."""
    try:
        return int(await w3.eth._max_priority_fee())
    except Web3RPCError:
        pass
    try:
        history = await w3.eth.fee_history(5, "latest", [33.0])
    except Web3RPCError:
        return _SOME_TIP
    rewards = sorted(int(one) for block in history.get("reward", []) for one in block)
    return rewards[len(rewards) // 2] if rewards else _SOME_TIP


def _read_days(file: Path | None) -> dict[int, int]:
    """UTC day -> wei. Raises ConfigError for a file that was damaged."""
    if file is None or not file.exists():
        return {}
    try:
        told = json.loads(file.read_text())
        days = {int(day): int(wei) for day, wei in told.items()}
    except (OSError, ValueError, OverflowError, RecursionError, AttributeError, TypeError):
        days = {-1: -1}
    if any(day < 0 or wei < 0 for day, wei in days.items()):
        raise ConfigError(
            f"{file} is damaged",
            why="it should hold coin spent by day",
            next_step="remove it: a day's budget begins anew",
        )
    return days


def _number(name: str, default: float) -> float:
    raw = os.environ.get(name)
    if raw is None:
        return default
    try:
        value = float(raw)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise ConfigError(f"{name} can't be used", why=f"got {raw[:40]!r}", next_step="write gwei per gas, e.g. 100")
    return value


def _coins(wei: int) -> str:
    return f"{wei / ONE_CREDIT:,.6g}"
