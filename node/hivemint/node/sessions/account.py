"""Where each client stands with this node: what it owes, what covers it, and what its open sessions reserve.

The journal holds the books; this adds what has been decided and is on its way there, and what the chain was last read
to say, so that no request of the same client slips in between. All of it happens in the event loop, and no check is
parted by an `await` from the change that it allows.
"""

from typing import Protocol

from hivemint.ledger.books.entries import Book, rank
from hivemint.protocol.ids import Address, Credits
from hivemint.protocol.receipt import Countersigned, SignedVoucher


class CoveredSession(Protocol):
    """What an account must know of a session. All in wei, 0 in the donated lane and once it is closed.

    `unspent` of its limit; `one_step`: the most that its next step can cost; `in_flight`: the most that all requests
    which it may have under way can cost.
    """

    @property
    def key(self) -> Address: ...
    @property
    def unspent(self) -> int: ...
    @property
    def one_step(self) -> int: ...
    @property
    def in_flight(self) -> int: ...


class Books(Protocol):
    """The journal's mirror (`ledger.books.journal`)."""

    def book(self, client: Address) -> Book: ...
    def promise(self, pair: Countersigned) -> None: ...


class FundsView(Protocol):
    """What the chain says of an account (`ledger.settlement.chainview`)."""

    @property
    def collected(self) -> Credits: ...
    @property
    def funded(self) -> Credits: ...
    @property
    def thawing(self) -> bool: ...


class ClientAccount:
    """One client. `funded` and `thawing` are as last read; sums are totals over all sessions, ever, in wei."""

    def __init__(self, client: Address, books: Books) -> None:
        self.client = client
        self.sessions: list[CoveredSession] = []
        self.funded, self.collected = Credits(0), Credits(0)
        self.thawing = False
        self._books = books
        self._owed_ahead = 0
        self._now = 0.0
        self._ends: dict[Address, int] = {}
        self._payable: tuple[Book, list[Countersigned]] | None = None  # of a book as it was, and of what was last read

    # ---- what the chain says

    def see(self, view: FundsView, now: float) -> None:
        """The account as it has just been read. `now`: the later of the chain's time and the clock's."""
        self.funded, self.thawing, self.collected = view.funded, view.thawing, view.collected
        self._now = max(self._now, now)
        self._payable = None

    def see_key(self, key: Address, until: int) -> None:
        """Until when `key` may sign for the client (0: the chain does not know it)."""
        self._ends[key] = until
        self._payable = None

    @property
    def keys(self) -> set[Address]:
        """Session keys whose end matters now: of open sessions, and of vouchers that no receipt carries yet."""
        promised = {pair.voucher.key for pair in self._book.promised}
        return ({session.key for session in self.sessions} | promised) - {self.client}

    def lives(self, key: Address) -> bool:
        """May this key sign, as far as was last read? The wallet's own always may."""
        return key == self.client or self._ends.get(key, 0) > self._now

    @property
    def released_until(self) -> int:
        """Until then, by the chain's time, a release may close the account."""
        return self._book.released_until

    # ---- what is owed, and what covers it

    @property
    def owed(self) -> Credits:
        """The price of all steps that were accepted, those under way among them."""
        return Credits(max(self._book.debt, self.collected) + self._owed_ahead)

    @property
    def cover(self) -> Credits:
        """The highest total of a voucher that the chain would still pay: by a living key, not above `funded`."""
        return Credits(max((pair.voucher.total for pair in self._paying()), default=0))

    @property
    def proof(self) -> SignedVoucher | None:
        """What shows the client the sum owed: the highest voucher that covers or that was earned."""
        shown = [*self._paying(), *self._book.proofs.values()]
        return max(shown, key=rank).voucher.signed if shown else None

    def needed(self, amount: int) -> int:
        """What the account must hold for one more session of `amount`: owed, and all that is still unspent."""
        return self.owed + sum(session.unspent for session in self.sessions) + amount

    def reach(self, due: int) -> int:
        """The highest total that a voucher may have when `due` is owed: the client's other requests may be on their
        way, and what has been promised already may be promised again.
        """
        return max(self.cover, due + sum(session.in_flight for session in self.sessions))

    def uncarried(self, due: int, total: int) -> int:
        """How much of `due` no voucher with a total of at most `due` would pay, this one of `total` among them."""
        book = self._book
        totals = [total, book.earned, max(book.collected, self.collected)]
        totals += [pair.voucher.total for pair in self._paying()]
        return due - max((one for one in totals if one <= due), default=0)

    # ---- what changes it

    def charge(self, price: int) -> None:
        """Owed changes now; the journal hears of it through `entered`."""
        self._owed_ahead += price

    def promise(self, pair: Countersigned) -> None:
        self._books.promise(pair)

    def entered(self, price: int) -> Credits:
        """The sum owed to write down for a charge; to be called in the same breath as the journal's `record`.

        What the chain may wrongly have said of `collected` is written down only with the next step that was paid on it.
        """
        self._owed_ahead -= price
        book = self._book
        return Credits(max(book.debt, self.collected) + price) if price else book.owed

    @property
    def _book(self) -> Book:
        return self._books.book(self.client)

    def _paying(self) -> list[Countersigned]:
        """Found once for a book, which no change leaves the same: a step asks four times."""
        book = self._book
        if self._payable is None or self._payable[0] is not book:
            pairs = (*book.promised, *book.proofs.values())
            paid = [pair for pair in pairs if pair.voucher.total <= self.funded and self.lives(pair.voucher.key)]
            self._payable = (book, paid)
        return self._payable[1]
