"""What a wallet has promised each node: the totals that its next vouchers carry.

A voucher's total counts all sessions with that node together, ever, so all processes of a wallet share one file.
Every promise is one small SQLite transaction before its voucher leaves (WAL, synchronous NORMAL: no wait for the
disk, about 0.1 ms). What loss means decided this:

- kill -9 loses nothing: the commit is with the operating system.
- A power cut may take the newest promises back. That costs nobody anything: a node counts the highest total alone,
  and at the next handshake it shows that voucher, which the wallet knows by its own signature (`standing`).
- Reserving a ceiling ahead, with no commit for a voucher, would be cheaper still. But then a process could not tell
  how far the others have really signed, and would have to believe a node's bare number up to the ceiling, or sign
  the unused reserve away after a crash. The exact total keeps the loss at the steps in flight.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, bindparam, select
from sqlalchemy.exc import DBAPIError

from hivemint.contracts.errors import ProofError
from hivemint.contracts.ids import Address, Credits
from hivemint.contracts.signed import MAX_UINT96, Domain
from hivemint.ledger.prepared import Prepared
from hivemint.ledger.store import StoreError, database_url, open_store, reading, unusable, upsert
from hivemint.ledger.tables import promises

_NOTHING = Credits(0)
_Rule = Callable[[int, int], tuple[int, int]]
"""(total, owed) before a change, and after it."""


@dataclass(frozen=True, slots=True)
class Promise:
    """`amount` more is owed to `node`; the highest total promised to it was `before` and is `total` now."""

    node: Address
    amount: Credits
    before: Credits
    total: Credits


class VoucherBook:
    """The promises of one wallet on one `Settlement` contract. Safe for threads and for processes.

    For each step: `promise` before its voucher is signed; then `delivered` when the receipt has been checked, or
    `released` when the node said that the step was not done. `standing` takes a node's answer about the account.
    """

    def __init__(self, engine: Engine, domain: Domain, client: Address, url: str) -> None:
        self._engine, self._url = engine, url
        self._key = {"chain_id": domain.chain_id, "settlement": domain.settlement, "client": client}
        self._mine = (promises.c.chain_id == domain.chain_id) & (promises.c.settlement == domain.settlement)
        self._mine &= promises.c.client == client
        self._read = select(promises.c.total, promises.c.owed).where(self._mine, promises.c.node == bindparam("peer"))
        self._write = Prepared(engine, upsert(engine, promises), promises)
        self._in_flight: dict[Address, int] = defaultdict(int)
        self._one_at_a_time, self._counting = threading.Lock(), threading.Lock()
        self._connection: Connection | None = engine.connect()

    @classmethod
    def open(cls, path: Path, domain: Domain, client: Address) -> "VoucherBook":
        """Open or create (0600). Raises StoreError."""
        url = database_url(path)
        return cls(open_store(url, durable=False), domain, client, url)

    def promise(self, node: Address, amount: Credits) -> Credits:
        """`promise_all` at one node; the total."""
        return self.promise_all([(node, amount)])[0].total

    def promise_all(self, owing: Sequence[tuple[Address, Credits]]) -> list[Promise]:
        """Owe these amounts more; the totals that the vouchers must carry, stored already.

        A total rises only as far as the debt does: what was promised before and not delivered pays first. Either all
        are promised or none. Raises StoreError, ProofError.
        """

        def owe(amount: Credits) -> _Rule:
            return lambda total, owed: (max(total, owed + amount), owed + amount)

        if not owing:
            return []
        with self._one_at_a_time:
            changed = self._change([(node, owe(amount)) for node, amount in owing])
        made = []
        for (node, amount), (before, total) in zip(owing, changed, strict=True):
            self._fly(node, amount)
            made.append(Promise(node, amount, before, total))
        return made

    def take_back(self, made: Sequence[Promise]) -> None:
        """No voucher of these promises has left: nothing is owed, and totals that nobody has built on fall again."""

        def undo(one: Promise) -> _Rule:
            return lambda total, owed: (one.before if total == one.total else total, max(0, owed - one.amount))

        for one in made:
            self._fly(one.node, -one.amount)
        with self._one_at_a_time:
            self._change([(one.node, undo(one)) for one in reversed(made)])

    def delivered(self, node: Address, amount: Credits) -> None:
        """A promised step has come, or its fate is unknown: it is no longer in flight, the debt stays."""
        self._fly(node, -amount)

    def released(self, node: Address, amount: Credits) -> None:
        """A promised step was refused or cancelled: it is not owed. The promise stays and pays the next step."""
        with self._one_at_a_time:
            self._fly(node, -amount)
            self._change([(node, lambda total, owed: (total, max(0, owed - amount)))])

    def standing(self, node: Address, owed: Credits, proven: Credits = _NOTHING) -> None:
        """Take the node's word on the sum owed, as far as this wallet has promised it.

        `proven`: the total of a voucher that the node showed and whose signature the caller found to be the wallet's
        own; it counts even if this file has lost it. A sum owed above that raises ProofError: sign nothing more.
        """
        with self._one_at_a_time:
            exact = self._in_flight[node] == 0  # else the node may not have seen all our requests yet

            def learn(total: int, known: int) -> tuple[int, int]:
                highest = max(total, proven)
                if owed > highest:
                    raise ProofError(
                        f"The node {node} claims a debt that was never promised",
                        why=f"it says {owed} wei are owed, this wallet has promised {highest}",
                        next_step="use another node",
                    )
                return highest, owed if exact else max(owed, known)

            self._change([(node, learn)])

    def total(self, node: Address) -> Credits:
        """The highest total promised to this node, by any process of the wallet."""
        with reading(self._engine) as connection:
            return next((row.total for row in connection.execute(self._read, {"peer": node})), _NOTHING)

    def totals(self) -> dict[Address, tuple[Credits, Credits]]:
        """node -> (highest total promised, sum owed of it)."""
        wanted = select(promises.c.node, promises.c.total, promises.c.owed).where(self._mine)
        with reading(self._engine) as connection:
            return {row.node: (row.total, row.owed) for row in connection.execute(wanted)}

    def close(self) -> None:
        with self._one_at_a_time:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            self._engine.dispose()

    def _fly(self, node: Address, amount: int) -> None:
        with self._counting:
            self._in_flight[node] = max(0, self._in_flight[node] + amount)

    def _change(self, changes: Sequence[tuple[Address, _Rule]]) -> list[tuple[Credits, Credits]]:
        """Read, apply each rule to its node's (total, owed), write, in one transaction that locks processes out.

        Gives each total before and after.
        """
        if self._connection is None:
            raise StoreError("The voucher book is closed")
        try:
            with self._connection.begin():
                return [self._change_one(self._connection, node, rule) for node, rule in changes]
        except DBAPIError as error:
            raise unusable(self._url, error) from None

    def _change_one(self, connection: Connection, node: Address, rule: _Rule) -> tuple[Credits, Credits]:
        row = connection.execute(self._read, {"peer": node}).first()
        before = (row.total, row.owed) if row else (_NOTHING, _NOTHING)
        total, owed = rule(*before)
        if not 0 <= owed <= total <= MAX_UINT96:
            raise ProofError("A voucher cannot carry this total", why=f"{total} wei, {owed} of them owed")
        if (total, owed) != before:
            self._write.run(connection, [self._key | {"node": node, "total": total, "owed": owed}])
        return before[0], Credits(total)
