"""The worker that turns a node's journal into credits: settles vouchers, claims donated work, mints its share.

It keeps no state that matters: each round asks the chain what is collected, claimed and minted, and does the rest.
So a crash between sending and confirming, a lost transaction or a reorganisation of the chain needs no repair; the
next round sees what is missing, and the contracts count nothing twice. Why a figure is zero stays in `reasons`.

What the chain says of `collected` decides what is asked for next, never which proofs are kept: a wrong answer delays.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from hivemint.ledger.books.entries import Donated
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.settlement.payments import EpochShare, Payments
from hivemint.ledger.settlement.tries import Tries
from hivemint.ledger.settlement.worth import Due, SettlerSettings, Worth
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import HivemintError
from hivemint.protocol.ids import Address, Credits, SessionId
from hivemint.protocol.receipt import Countersigned

__all__ = ["Settler", "SettlerSettings"]

log = structlog.get_logger(__name__)

_UNPAID = "no account owes anything yet"
_AT_ONCE = 200  # accounts a read call
_LOOK_AT_ALL = 600.0  # seconds between two looks at paid accounts; what they show has THAW, days, to be made good
_LOOK_BACK = 3  # epochs before the last mintable one that are asked about even if the journal knows no claim in them


class Settler:
    """One node's worker. `run` it as a task, or `settle_now` for a command and at shutdown."""

    def __init__(
        self,
        journal: Journal,
        payments: Payments,
        settings: SettlerSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.reasons: dict[str, str] = {"settled": _UNPAID, "claimed": "", "minted": ""}
        """Why each stage stands where it stands: settled, claimed (donated work), minted (for it). Empty: all done."""
        self.donated_minted = Credits(0)
        self.minted_epochs: dict[int, int] = {}
        self.minted_here: set[int] = set()
        """What donated work has minted as far as this run knows (wei), by epoch, and the epochs that it has minted."""
        self._journal, self._payments = journal, payments
        self._settings, self._clock, self._wall_clock = settings or SettlerSettings(), clock, wall_clock
        self._waiting_since: float | None = None
        self._look_at_all = float("-inf")
        self._tries = Tries(self._clock)
        self._quiet: dict[Address, int] = {}  # accounts that had too little at the last look at all: its total
        self._ended: dict[int, EpochShare] = {}  # epochs whose share can't change any more
        self._claimed: tuple[int, bytes] = (-1, b"")  # epoch, and the contract's last id when all was done
        self._one_round = asyncio.Lock()

    async def run(self) -> None:
        """Rounds until cancelled. Trouble (chain, database) is told once, shown in `reasons`, and tried again later.

        What is no HivemintError is a fault of this program: it is shown in `reasons` too and raised, so whoever runs
        this supervises it.
        """
        pause, told = self._settings.poll, ""
        while True:
            try:
                await self.round()
                pause, told = self._settings.poll, ""
            except HivemintError as error:
                if str(error) != told:
                    log.warning("settlement waits", reason=str(error))
                told, pause = str(error), min(pause * 2, self._settings.longest_pause)
            except Exception as error:
                self.reasons["settled"] = f"the worker ended on an error: {type(error).__name__}: {error}"
                raise
            await asyncio.sleep(pause)

    async def round(self) -> None:
        """Whatever is due now: settle, claim, mint. Each stage goes on where another fails.

        Raises the first stage's error after all have been tried; each one's is in `reasons`.
        """
        async with self._one_round:
            try:
                registered = await self._payments.registered()
                now, length = await self._payments.time(), await self._payments.epoch_seconds()
            except HivemintError as error:
                self.reasons["settled"] = str(error)
                raise
            if not registered:
                for stage in self.reasons:
                    self.reasons[stage] = "the node is not registered; run `hivemint node register`"
                return
            failed = [
                await self._tried("settled", self._settle_due(now, at_once=False)),
                await self._tried("claimed", self._claim(now // length - 1, length)),
                await self._tried("minted", self._mint(now // length - 2, length)),
            ]
            if first := next(filter(None, failed), None):
                raise first

    async def _tried(self, stage: str, work: Awaitable[object]) -> HivemintError | None:
        try:
            await work
        except HivemintError as error:
            self.reasons[stage] = str(error)
            return error
        return None

    async def settle_now(self) -> Credits:
        """Settle everything collectable whatever it is worth. Returns the wei burned. Raises ChainError."""
        async with self._one_round:
            return await self._settle_due(await self._payments.time(), at_once=True)

    # Paid work.

    async def _settle_due(self, now: int, *, at_once: bool) -> Credits:
        if at_once:
            self._look_at_all = float("-inf")
        due = await self._look(now)
        if not due:
            self._waiting_since = None
            self.reasons["settled"] = _blocked(self._journal) if self._journal.collectable() else _UNPAID
            return Credits(0)
        if self._waiting_since is None:
            self._waiting_since = self._clock()
        if at_once:
            return await self._settle(due)
        held = {one.client: self._tries.held(one, now, self._settings) for one in due}
        due = [one for one in due if not held[one.client]]
        age = self._clock() - self._waiting_since
        if not due:
            self.reasons["settled"] = "; ".join(sorted(set(held.values())))
            return Credits(0)
        chosen, why, waits = await Worth(self._settings, self._payments).choose(due, now, age)
        for one in due:
            self._journal.observe(one.client, one.confirmed, why.get(one.client, ""))
        if chosen:
            return await self._settle(chosen)
        self.reasons["settled"] = waits
        return Credits(0)

    async def _settle(self, chosen: Sequence[Due]) -> Credits:
        burned, refused = 0, set[str]()
        for first in range(0, len(chosen), self._settings.batch):
            some = chosen[first : first + self._settings.batch]
            done = await self._payments.settle([one.proof for one in some])
            self._tries.sent(some)
            burned += done.burned
            refused |= set(done.skipped.values()) - {"nothing owed"}
            log.info("settled", burned=format_credits(done.burned), minted=format_credits(done.minted))
            for client, reason in done.skipped.items():
                log.warning("not settled", client=client, reason=reason)
        self._waiting_since = None
        self._quiet.clear()  # what was paid is told as soon as it is confirmed, not at the next look at all
        await self._look(await self._payments.time())
        self.reasons["settled"] = f"the contract skipped some: {', '.join(sorted(refused))}" if refused else ""
        return Credits(burned)

    async def _look(self, now: int) -> list[Due]:
        """Ask the chain about accounts with open proofs; note what it paid and why the rest can't be collected.

        Of each client the highest proof counts that nothing stands against. All accounts are looked at now and then:
        the chain may have taken a payment back, or an endpoint may have spoken of one that never was. Between these
        looks those are left out that have no session and too little to be settled.
        """
        worthless: dict[Address, bool] = {}
        if at_all := self._clock() >= self._look_at_all:
            self._quiet.clear()
            worthless = await self._look_at_paid()
        live = self._journal.clients
        proofs = [proof for proof in self._journal.collectable() if not self._is_quiet(proof, live)]
        thaw = await self._payments.thaw_seconds()
        found: dict[Address, Due] = {}
        for first in range(0, len(proofs), _AT_ONCE):
            some = proofs[first : first + _AT_ONCE]
            pairs = [(proof.receipt.body.client, proof.voucher.key) for proof in some]
            for proof, escrow in zip(some, await self._payments.escrows(pairs), strict=True):
                due = Due.of(proof, escrow, now, thaw)
                lost = due.over or (not escrow.balance and due.total - due.confirmed < self._settings.dust)
                worthless[due.client] = lost and not due.disputed and worthless.get(due.client, True)
                best = found.get(due.client)
                if best is None or (not due.reason, due.total) > (not best.reason, best.total):
                    found[due.client] = due
        open_ones = [due for due in found.values() if due.collectable]
        for due in found.values():
            self._journal.observe(due.client, due.confirmed, None if due.collectable else due.reason)
            if due.collected < due.total and due.amount < self._settings.dust and due.client not in live:
                self._quiet[due.client] = due.total
        if at_all:
            self._journal.judge(worthless, min(now, int(self._wall_clock())))  # no jump of one of them hastens it
            self._look_at_all = self._clock() + _LOOK_AT_ALL
        return open_ones

    def _is_quiet(self, proof: Countersigned, live: set[Address]) -> bool:
        client = proof.receipt.body.client
        return client not in live and self._quiet.get(client, -1) >= proof.voucher.total

    async def _look_at_paid(self) -> dict[Address, bool]:
        """Accounts without open proofs, and which of them are worth nothing: no more is owed than was paid, or nothing
        is funded.
        """
        open_ones = {proof.receipt.body.client for proof in self._journal.collectable()}
        paid = [client for client in self._journal.books() if client not in open_ones]
        worthless: dict[Address, bool] = {}
        for first in range(0, len(paid), _AT_ONCE):
            pairs = [(client, client) for client in paid[first : first + _AT_ONCE]]
            for (client, _), escrow in zip(pairs, await self._payments.escrows(pairs), strict=True):
                self._journal.observe(client, escrow.confirmed)
                book = self._journal.book(client)
                worthless[client] = book.owed <= escrow.confirmed or (not escrow.balance and not book.open)
        return worthless

    # Donated work.

    async def _claim(self, epoch: int, length: int) -> None:
        last = await self._payments.last_claimed(epoch)
        if (epoch, last) == self._claimed:  # else there is more to do, or a reorganisation took a claim back
            return
        donated = await asyncio.to_thread(self._journal.donated_sessions.donated, epoch * length, (epoch + 1) * length)
        self._note([one for one in donated if _id(one) <= last and not one.claim], epoch, {})
        open_ones = [one for one in donated if _id(one) > last]
        chosen = await self._largest(epoch, open_ones)
        if chosen:
            for first in range(0, len(chosen), self._settings.batch):
                items = chosen[first : first + self._settings.batch]
                skipped = await self._payments.claim(epoch, items)
                self._note(items, epoch, skipped)
                log.info("claimed donated work", epoch=epoch, sessions=len(items) - len(skipped), skipped=len(skipped))
            self.reasons["claimed"] = ""
        elif open_ones:
            self.reasons["claimed"] = "no stake with room was bonded before the epoch began, or the models are not paid"
        elif not donated:
            self.reasons["claimed"] = "no donated session of the last epoch has countersigned work"
        await self._journal.drop_over(epoch, length)
        self._claimed = (epoch, await self._payments.last_claimed(epoch))

    async def _largest(self, epoch: int, donated: Sequence[Donated]) -> list[Donated]:
        """The largest sessions until the stake is filled, in rising order of their ids."""
        room = await self._payments.room(epoch) if donated else 0
        rates = {model: await self._payments.rate(model, epoch) for model in {one.session.model_id for one in donated}}
        chosen = []
        for one in sorted(donated, key=lambda one: -one.work * rates[one.session.model_id]):
            units = one.work * rates[one.session.model_id]
            if room <= 0 or not units:
                break
            chosen.append(one)
            room -= units
        return sorted(chosen, key=_id)

    def _note(self, items: Sequence[Donated], epoch: int, skipped: dict[SessionId, str]) -> None:
        self._journal.donated_sessions.note_claims(
            [_id(one) for one in items if _id(one) not in skipped], f"claimed in epoch {epoch}"
        )
        for session, reason in skipped.items():
            self._journal.donated_sessions.note_claims([session], f"skipped: {reason}")

    async def _mint(self, newest: int, length: int) -> None:
        """Mint the shares of all epochs up to `newest`; one counts as ended when the chain says so in a later round."""
        known = await asyncio.to_thread(self._journal.donated_sessions.claimed_epochs, length)
        waiting, (claimed, last) = "", self._claimed
        if any(last):  # the journal may not have written it down yet
            known.add(claimed)
        for epoch in sorted(known | set(range(max(0, newest - _LOOK_BACK), newest + 1))):
            share = self._ended.get(epoch) or await self._payments.share(epoch)
            if share.status == "mintable":
                amount = await self._payments.mint(epoch)
                self.minted_here.add(epoch)
                log.info("minted for donated work", epoch=epoch, amount=format_credits(amount))
            elif share.status == "waiting":
                waiting = f"the share of epoch {epoch} can be minted when epoch {epoch + 2} begins"
            else:
                if epoch <= newest:
                    self._ended[epoch] = share
                if share.status == "void":
                    waiting = f"a strike or a slash voids the share of epoch {epoch}"
        self.minted_epochs = {at: int(one.amount) for at, one in self._ended.items() if one.status == "minted"}
        self.donated_minted = Credits(sum(self.minted_epochs.values()))
        self.reasons["minted"] = waiting or ("" if self.donated_minted else "nothing was claimed two epochs ago")


def _blocked(journal: Journal) -> str:
    return "; ".join(sorted({book.reason for book in journal.books().values() if book.reason}))


def _id(donated: Donated) -> SessionId:
    return donated.newest.receipt.session_id
