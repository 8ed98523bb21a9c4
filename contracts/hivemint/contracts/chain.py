"""A chain: what `reading` asks of it, and transactions, sent and seen through.

Importing this module imports web3; a process that needs no chain does not import it.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

import stamina
from eth_account import Account
from eth_typing import Hash32
from eth_utils.address import to_checksum_address
from hexbytes import HexBytes
from web3.exceptions import (
    TransactionNotFound,
    Web3RPCError,
)
from web3.types import BlockIdentifier, TxParams, TxReceipt, Wei

from hivemint.contracts.data_fee import fee_beside_gas
from hivemint.contracts.fees import GAS_LIMIT, DailyBudget, FeeCeiling, most_of
from hivemint.contracts.reading import ChainReader
from hivemint.contracts.rpc import Endpoints
from hivemint.contracts.transactions import (
    Buildable,
    Mined,
    Reverted,
    Submitted,
    Transfer,
    Underpriced,
    is_nonce_trouble,
)
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address
from hivemint.protocol.signing import Signer

__all__ = ["Buildable", "Chain", "Mined", "Reverted", "Submitted", "Transfer"]

GAS_MARGIN = 1.25
"""Over the estimate: what other transactions do to the state before this one is mined."""
PATIENCE = 30.0
"""Seconds before more is offered for a transaction that no block holds."""
_OFFERS = 5
_NONCE_ATTEMPTS, _SAME_NONCE = 12, 3
_FIRST_POLL, _LONGEST_POLL = 0.1, 2.0


class Chain(ChainReader):
    """One chain: asked, and sent to. Make it with `connect`; use it as a context manager or `close` it."""

    def __init__(
        self, endpoints: Endpoints, chain_id: int, fees: FeeCeiling, budget: DailyBudget | None = None
    ) -> None:
        super().__init__(endpoints, chain_id)
        self.fees, self.budget = fees, budget
        self._sending: defaultdict[Address, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._ours: defaultdict[Address, set[int]] = defaultdict(set)  # nonces that a task here sees through

    @classmethod
    async def connect(
        cls,
        url: str | Sequence[str],
        chain_id: int | None = None,
        *,
        timeout: float = 10.0,
        fees: FeeCeiling | None = None,
        budget: DailyBudget | None = None,
    ) -> Self:
        """Connect and check the chain id; None takes whatever chain is there. `timeout` in seconds, for each call.

        fees: the most that own transactions offer; else the environment's, else defaults. budget: the most in a day.
        Raises ChainError if nothing answers or another chain does.
        """
        endpoints = Endpoints.at([url] if isinstance(url, str) else list(url), chain_id, timeout)
        chain = cls(endpoints, 0, fees or FeeCeiling.from_environment(), budget)
        try:
            async with chain.explained("Connecting"):
                chain.chain_id = await chain.w3.eth.chain_id
        except BaseException:
            await chain.close()
            raise
        return chain

    def _over(self, endpoints: Endpoints) -> Self:
        return type(self)(endpoints, self.chain_id, self.fees, self.budget)

    async def send(
        self, signer: Signer, what: Buildable, *, doing: str, value: int = 0, patience: float | None = None
    ) -> Mined:
        """Sign, send and see through: wait until a block holds it, and offer more each `patience` seconds (default
        PATIENCE), up to the ceiling. `value` in wei of the chain's coin.

        Whatever is offered, it is done once at most: all offers share one nonce. An older transaction of this wallet
        that is stuck before it is replaced by nothing.
        Raises Reverted if the contract refuses (usually before anything is sent), TooDear, ChainError otherwise.
        """
        first = await self.submit(signer, what, doing=doing, value=value)
        ours = self._ours[signer.address]
        ours.add(first.nonce)
        try:
            return await self._see_through(signer, what, value, first, PATIENCE if patience is None else patience)
        finally:
            ours.discard(first.nonce)

    async def _see_through(
        self, signer: Signer, what: Buildable, value: int, first: Submitted, patience: float
    ) -> Mined:
        offers = [first]
        for number in range(1, _OFFERS + 1):
            if found := await self._mined_within(offers, patience):
                return found
            try:
                told = await self._nonces(first.sender, "latest")
            except ChainError:
                continue
            if told[0] > first.nonce:
                return await self._mined_or_displaced(offers)
            if number < _OFFERS:
                with suppress(ChainError):  # the first offer stands, whatever the chain says to another one
                    if first.nonce in told:
                        offers += await self._offer_more(signer, what, value, offers[-1])
                    elif told[-1] < first.nonce and told[-1] not in self._ours[first.sender]:
                        await self._clear(signer, told[-1])
        raise ChainError(
            f"{first.doing} was sent, but no block holds it after {patience * _OFFERS:.0f} s",
            why=f"transaction 0x{offers[-1].hash.hex()}, nonce {first.nonce}",
            next_step="it may still be mined; the same again takes its place, with what the chain asks then",
        )

    async def _offer_more(self, signer: Signer, what: Buildable, value: int, last: Submitted) -> list[Submitted]:
        """A replacement, or nothing where the ceiling is reached."""
        async with self.explained(last.doing):
            fees = self.fees.raised(last.transaction, await self.fees.offer(self.w3))
        if fees is None:
            return []
        return [await self.submit(signer, what, doing=last.doing, value=value, nonce=last.nonce, fees=fees)]

    async def _clear(self, signer: Signer, nonce: int) -> None:
        """Replace a transaction that an earlier run left behind too cheap by an empty one to oneself.

        Its fees are unknown, so more is offered until the chain takes it or the ceiling is reached.
        """
        nothing, doing = Transfer(self, signer.address), "Clearing a stuck transaction"
        async with self.explained(doing):
            fees: TxParams | None = await self.fees.offer(self.w3)
        while fees is not None:
            try:
                await self.submit(signer, nothing, doing=doing, nonce=nonce, fees=fees)
            except Underpriced:
                fees = self.fees.raised(fees, fees)
            else:
                return

    async def _mined_within(self, offers: Sequence[Submitted], patience: float) -> Mined | None:
        """Whichever offer a block holds, within `patience` seconds. A chain that is away meanwhile is asked again."""
        deadline, pause = time.monotonic() + patience, _FIRST_POLL
        while True:
            for one in offers:
                try:
                    found = await self.mined(one)
                except Reverted:
                    raise
                except ChainError:
                    found = None
                if found is not None:
                    return found
            if time.monotonic() >= deadline:
                return None
            await asyncio.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(pause * 1.5, _LONGEST_POLL)

    async def _mined_or_displaced(self, offers: Sequence[Submitted]) -> Mined:
        """The nonce is used. By one of the offers, else by another transaction; it is not sent again by itself."""
        found = await self._mined_within(offers, _LONGEST_POLL)
        if found is None:
            raise ChainError(
                f"{offers[0].doing} was displaced by another transaction of this wallet",
                why=f"a block holds another one with nonce {offers[0].nonce}",
                next_step="look what it did, then do it again",
            )
        return found

    async def submit(
        self,
        signer: Signer,
        what: Buildable,
        *,
        doing: str,
        value: int = 0,
        nonce: int | None = None,
        fees: TxParams | None = None,
    ) -> Submitted:
        """Sign and send without waiting. One sender's transactions get rising nonces, also from many tasks.

        nonce: of a transaction to replace; then `fees` says what to pay (`FeeCeiling.raised`).
        """
        async with self._sending[signer.address], self.explained(doing):
            if fees is None:
                fees = await self.fees.offer(self.w3)
            if nonce is not None:
                return await self._sign_and_send(signer, what, doing, value, nonce, fees)
            return await self._take_a_nonce(signer, what, doing, value, fees)

    async def _take_a_nonce(self, signer: Signer, what: Buildable, doing: str, value: int, fees: TxParams) -> Submitted:
        """The next one; where it is refused and endpoints differ, the next higher one. Where it stays taken by a
        transaction that the chain does not count as pending, a stuck one, more is offered for it, up to the ceiling."""
        tries = Counter[int]()
        async for attempt in stamina.retry_context(
            on=is_nonce_trouble, attempts=_NONCE_ATTEMPTS, wait_initial=0.05, wait_max=1.0, wait_jitter=0.2
        ):
            with attempt:
                told = await self._nonces(signer.address)
                chosen = told[tries.total() % len(told)]
                tries[chosen] += 1
                if tries[chosen] > _SAME_NONCE:
                    fees = self.fees.raised(fees, fees) or fees
                submitted = await self._sign_and_send(signer, what, doing, value, chosen, fees)
        return submitted

    async def _sign_and_send(
        self, signer: Signer, what: Buildable, doing: str, value: int, nonce: int, fees: TxParams
    ) -> Submitted:
        wanted: TxParams = {
            "from": to_checksum_address(signer.address),
            "value": Wei(value),
            "nonce": nonce,  # type: ignore[typeddict-item]  # web3's NewType for an int
            "chainId": self.chain_id,
            **fees,
        }
        transaction = await what.build_transaction(wanted)
        transaction["gas"] = int(transaction["gas"] * GAS_MARGIN)
        if transaction["gas"] > GAS_LIMIT:
            raise ChainError(f"{doing} failed", why=f"{self.shown} estimates {transaction['gas']:,} gas for it")
        signed = Account.sign_transaction({k: v for k, v in transaction.items() if k != "from"}, signer.secret())
        if self.budget is not None:
            beside = await fee_beside_gas(self, bytes(signed.raw_transaction))
            self.budget.take(nonce, most_of(transaction) + beside)
        try:
            await self.w3.eth.send_raw_transaction(signed.raw_transaction)
        except Web3RPCError:  # after a lost answer it is sent again, and the chain then knows it already
            if not await self._knows(signed.hash):
                raise
        return Submitted(Hash32(bytes(signed.hash)), signer.address, nonce, doing, transaction)

    async def _knows(self, transaction: HexBytes) -> bool:
        """Whether any endpoint does: to send anew what one of them has lost would do it twice."""
        for chain in self.each:
            try:
                await chain.w3.eth.get_transaction(transaction)
            except (TransactionNotFound, ChainError):
                continue
            return True
        return False

    async def wait(self, submitted: Submitted, *, timeout: float = 120.0) -> Mined:
        """Until a block holds it. Raises Reverted, or ChainError after `timeout` seconds (it may still be mined)."""
        found = await self._mined_within([submitted], timeout)
        if found is None:
            raise ChainError(
                f"{submitted.doing} was sent, but no block holds it after {timeout:.0f} s",
                why=f"transaction 0x{submitted.hash.hex()}, nonce {submitted.nonce}",
                next_step="it may still be mined; look for it before sending it again",
            )
        return found

    async def mined(self, submitted: Submitted) -> Mined | None:
        """Where it is now: None while no block holds it (also after a reorganisation). Raises Reverted."""
        async with self.explained(submitted.doing):
            try:
                receipt = await self.w3.eth.get_transaction_receipt(submitted.hash)
            except TransactionNotFound:
                return None
        if receipt["status"] == 0:
            await self._raise_reverted(submitted, receipt)
        return Mined.of(receipt, submitted.transaction)

    async def _raise_reverted(self, submitted: Submitted, receipt: TxReceipt) -> None:
        """A mined failure has no reason in it: ask for it by repeating the call before that block and after it."""
        again: TxParams = {k: v for k, v in submitted.transaction.items() if k in ("to", "data", "value")}  # type: ignore[assignment]
        again["from"] = to_checksum_address(submitted.sender)
        async with self.explained(submitted.doing):
            await self.w3.eth.call(again, receipt["blockNumber"] - 1)
            await self.w3.eth.call(again, receipt["blockNumber"])
        raise Reverted(submitted.doing, "", {}, "the state changed within its block, or its gas ran out")

    async def _nonces(self, address: Address, block: BlockIdentifier = "pending") -> list[int]:
        """What the endpoints say, the lowest first. One that is too low is refused at once; one that is too high
        would wait for ever. Raises ChainError if none can be asked."""
        answers = await asyncio.gather(*(chain.nonce(address, block) for chain in self.each), return_exceptions=True)
        told = {one for one in answers if isinstance(one, int)}
        for error in answers:
            if isinstance(error, BaseException) and not (told and isinstance(error, ChainError)):
                raise error
        return sorted(told)
