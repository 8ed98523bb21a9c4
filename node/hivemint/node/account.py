"""Where each client stands with this node: owed, promised, and reserved by its open sessions.

The journal holds the books; this adds what has been decided and is on its way there, so that no request of the same
client slips in between. All of it happens in the event loop, and no check is parted by an `await` from the change
that it allows.
"""

from collections.abc import Callable
from typing import Protocol

from hivemint.contracts.ids import Address, Credits
from hivemint.contracts.receipt import Countersigned, SignedVoucher


class OpenSession(Protocol):
    """What an account must know of a session: how much of its limit is still unspent."""

    @property
    def unspent(self) -> int: ...


class Standing(Protocol):
    """`ledger.journal.Book`, as far as it is asked here."""

    @property
    def highest(self) -> Credits: ...
    @property
    def owed(self) -> Credits: ...
    @property
    def newest(self) -> Countersigned | None: ...


class Account:
    """One client. `owed` and `highest` are totals over all sessions, ever, in wei."""

    def __init__(self, client: Address, book: Callable[[Address], Standing]) -> None:
        self.client = client
        self.sessions: list[OpenSession] = []
        self._book = book
        self._owed_ahead = 0
        self._highest_ahead = 0

    @property
    def owed(self) -> Credits:
        return Credits(self._book(self.client).owed + self._owed_ahead)

    @property
    def highest(self) -> Credits:
        """The highest total that the client has promised."""
        return Credits(max(self._book(self.client).highest, self._highest_ahead))

    @property
    def highest_voucher(self) -> SignedVoucher | None:
        newest = self._book(self.client).newest
        return newest.voucher.signed if newest else None

    def needed(self, amount: int) -> int:
        """What the account must hold for one more session of `amount`: owed, and all that is still unspent."""
        return self.owed + sum(session.unspent for session in self.sessions) + amount

    def charge(self, price: int) -> None:
        """Owed changes now; the journal hears of it through `entered`."""
        self._owed_ahead += price

    def promise(self, total: int) -> None:
        self._highest_ahead = max(self._highest_ahead, total)

    def entered(self, price: int) -> Credits:
        """The sum owed to write down for a charge; to be called in the same breath as the journal's `record`."""
        self._owed_ahead -= price
        return Credits(self._book(self.client).owed + price)
