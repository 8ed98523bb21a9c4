"""The worker that turns a node's journal into credits: settles vouchers, claims donated work, mints its share.

It keeps no state that matters: each round asks the chain what is collected, claimed and minted, and does the rest.
So a crash between sending and confirming, a lost transaction or a reorganisation of the chain needs no repair; the
next round sees what is missing, and the contracts count nothing twice. Why a figure is zero stays in `reasons`.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from hivemint.contracts.credits import format_credits
from hivemint.contracts.errors import HivemintError
from hivemint.contracts.ids import ONE_CREDIT, Address, Credits, SessionId
from hivemint.contracts.receipt import Countersigned
from hivemint.ledger.entries import Donated
from hivemint.ledger.journal import Journal
from hivemint.ledger.payments import Escrow, Payments, Share

log = structlog.get_logger(__name__)

_UNPAID = "no account owes anything yet"
_AT_ONCE = 200  # accounts a read call
_SETTLED_FOR_GOOD = 1800.0  # seconds; a run looks once at everything, and this long at what it has settled
_LOOK_BACK = 3  # epochs before the last mintable one that are asked about even if the journal knows no claim in them


@dataclass(frozen=True, slots=True)
class SettlerSettings:
    """When it is worth its gas. `settle_min` in wei, summed over all accounts; times in seconds."""

    settle_min: Credits = field(default_factory=lambda: Credits(ONE_CREDIT))
    settle_every: float = 6 * 3600.0
    poll: float = 2.0
    longest_pause: float = 60.0
    batch: int = 50
    hurry: float = 3600.0
    """Settle at once when a key or a thaw has this little time left; a thaw or a revocation always counts."""


@dataclass(frozen=True, slots=True)
class _Due:
    proof: Countersigned
    amount: int
    urgent: bool


class Settler:
    """One node's worker. `run` it as a task, or `settle_now` for a command and at shutdown."""

    def __init__(
        self,
        journal: Journal,
        payments: Payments,
        settings: SettlerSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reasons: dict[str, str] = {"settled": _UNPAID, "claimed": "", "minted": ""}
        """Why each stage stands where it stands: settled, claimed (donated work), minted (for it). Empty: all done."""
        self.donated_minted = Credits(0)
        """What lane B has minted for this node, as far as this run knows (wei)."""
        self._journal, self._payments = journal, payments
        self._settings, self._clock = settings or SettlerSettings(), clock
        self._waiting_since: float | None = None
        self._paid_at: dict[Address, float] = {}
        self._first_look = True
        self._ended: dict[int, Share] = {}  # epochs whose share can't change any more
        self._claimed: tuple[int, bytes] = (-1, b"")  # epoch, and the contract's last id when all was done
        self._one_round = asyncio.Lock()

    async def run(self) -> None:
        """Rounds until cancelled. Trouble (chain, database) is told once, shown in `reasons`, and tried again later."""
        pause, told = self._settings.poll, ""
        while True:
            try:
                await self.round()
                pause, told = self._settings.poll, ""
            except HivemintError as error:
                self.reasons["settled"] = str(error)
                if str(error) != told:
                    log.warning("settlement waits", reason=str(error))
                told, pause = str(error), min(pause * 2, self._settings.longest_pause)
            await asyncio.sleep(pause)

    async def round(self) -> None:
        """Whatever is due now: settle, claim, mint. Raises ChainError."""
        async with self._one_round:
            if not await self._payments.registered():
                for stage in self.reasons:
                    self.reasons[stage] = "the node is not registered; run `hivemint node register`"
                return
            now = await self._payments.time()
            await self._settle_due(now, at_once=False)
            await self._claim_and_mint(now)

    async def settle_now(self) -> Credits:
        """Settle everything collectable whatever it is worth. Returns the wei burned. Raises ChainError."""
        async with self._one_round:
            return await self._settle_due(await self._payments.time(), at_once=True)

    # Lane A.

    async def _settle_due(self, now: int, *, at_once: bool) -> Credits:
        due = await self._look(now)
        waiting = sum(one.amount for one in due)
        if not due:
            self._waiting_since = None
            self.reasons["settled"] = _UNPAID if not self._journal.collectable() else "; ".join(self._blocked())
            return Credits(0)
        if self._waiting_since is None:
            self._waiting_since = self._clock()
        age, settings = self._clock() - self._waiting_since, self._settings
        if not at_once and waiting < settings.settle_min and age < settings.settle_every:
            due = [one for one in due if one.urgent]
        if not due:
            self.reasons["settled"] = (
                f"{format_credits(waiting)} wait to be worth their gas: from {format_credits(settings.settle_min)} on, "
                f"or in {_span(settings.settle_every - age)}"
            )
            return Credits(0)
        return await self._settle([one.proof for one in due])

    async def _settle(self, proofs: Sequence[Countersigned]) -> Credits:
        burned, refused = 0, set[str]()
        for first in range(0, len(proofs), self._settings.batch):
            done = await self._payments.settle(proofs[first : first + self._settings.batch])
            burned += done.burned
            refused |= set(done.skipped.values()) - {"nothing owed"}
            log.info("settled", burned=format_credits(done.burned), minted=format_credits(done.minted))
            for client, reason in done.skipped.items():
                log.warning("not settled", client=client, reason=reason)
            self._paid_at |= {proof.receipt.receipt.client: self._clock() for proof in proofs}
        self._waiting_since = None
        await self._look(await self._payments.time())
        self.reasons["settled"] = f"the contract skipped some: {', '.join(sorted(refused))}" if refused else ""
        return Credits(burned)

    async def _look(self, now: int) -> list[_Due]:
        """Ask the chain about every unpaid account; note what it paid and why the rest cannot be collected."""
        unpaid, found = self._watched(), list[_Due]()
        thaw = await self._payments.thaw_seconds()
        for first in range(0, len(unpaid), _AT_ONCE):
            proofs = unpaid[first : first + _AT_ONCE]
            pairs = [(proof.receipt.receipt.client, proof.voucher.key) for proof in proofs]
            for proof, escrow in zip(proofs, await self._payments.escrows(pairs), strict=True):
                client = proof.receipt.receipt.client
                amount = min(proof.voucher.total - escrow.collected, escrow.balance)
                reason = _obstacle(escrow, proof.voucher.total, now, thaw)
                self._journal.observe(client, escrow.collected, reason)
                if amount > 0 and not reason:
                    urgent = escrow.thaw_end != 0 or escrow.key_until <= now + self._settings.hurry
                    found.append(_Due(proof, amount, urgent))
        self._first_look = False
        return found

    def _watched(self) -> list[Countersigned]:
        """Unpaid vouchers, and those that look paid but for so short a time that the chain may take it back."""
        books, clock = self._journal.books(), self._clock()
        recent = {client for client, when in self._paid_at.items() if clock - when < _SETTLED_FOR_GOOD}
        self._paid_at = {client: self._paid_at[client] for client in recent}
        if self._first_look:
            recent = set(books)
        paid = [books[client].newest for client in recent if not books[client].open]
        return self._journal.collectable() + [proof for proof in paid if proof is not None]

    def _blocked(self) -> list[str]:
        return sorted({book.reason for book in self._journal.books().values() if book.reason})

    # Lane B.

    async def _claim_and_mint(self, now: int) -> None:
        length = await self._payments.epoch_seconds()
        current = now // length
        await self._claim(current - 1, length)
        await self._mint(current - 2, length)

    async def _claim(self, epoch: int, length: int) -> None:
        last = await self._payments.last_claimed(epoch)
        if (epoch, last) == self._claimed:  # else there is more to do, or a reorganisation took a claim back
            return
        donated = await asyncio.to_thread(self._journal.donated, epoch * length, (epoch + 1) * length)
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
            self.reasons["claimed"] = "no free session of the last epoch has countersigned work"
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
        self._journal.note_claims([_id(one) for one in items if _id(one) not in skipped], f"claimed in epoch {epoch}")
        for session, reason in skipped.items():
            self._journal.note_claims([session], f"skipped: {reason}")

    async def _mint(self, newest: int, length: int) -> None:
        """Mint the shares of all epochs up to `newest`; one counts as ended when the chain says so in a later round."""
        known = await asyncio.to_thread(self._journal.donated_epochs, length)
        waiting, (claimed, last) = "", self._claimed
        if any(last):  # the journal may not have written it down yet
            known.add(claimed)
        for epoch in sorted(known | set(range(max(0, newest - _LOOK_BACK), newest + 1))):
            share = self._ended.get(epoch) or await self._payments.share(epoch)
            if share.status == "mintable":
                amount = await self._payments.mint(epoch)
                log.info("minted for donated work", epoch=epoch, amount=format_credits(amount))
            elif share.status == "waiting":
                waiting = f"the share of epoch {epoch} can be minted when epoch {epoch + 2} begins"
            else:
                if epoch <= newest:
                    self._ended[epoch] = share
                if share.status == "void":
                    waiting = f"a strike or a slash voids the share of epoch {epoch}"
        self.donated_minted = Credits(sum(one.amount for one in self._ended.values() if one.status == "minted"))
        self.reasons["minted"] = waiting or ("" if self.donated_minted else "nothing was claimed two epochs ago")


def _obstacle(escrow: Escrow, total: int, now: int, thaw: int) -> str:
    """Why nothing of a voucher can be collected; empty if something can."""
    if total <= escrow.collected:
        return ""
    if not escrow.balance:
        return "the account is empty; the rest is collectable after a top-up"
    if not escrow.key_until:
        return "the chain does not know the key of the newest voucher"
    if now > escrow.key_until + thaw:
        return "the key of the newest voucher has ended for good"
    return ""


def _id(donated: Donated) -> SessionId:
    return donated.newest.receipt.receipt.session_id


def _span(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
