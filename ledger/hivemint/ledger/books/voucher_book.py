"""What a wallet has promised each node: the totals that its next vouchers carry.

A voucher's total counts all sessions with that node together, ever, so all processes of a wallet share one file.
Every promise is one small SQLite transaction before its voucher leaves (WAL, synchronous NORMAL: no wait for the
disk, about 0.1 ms). What loss means decided this:

- kill -9 loses nothing: the commit is with the operating system.
- A power cut may take the newest promises back. That costs nobody anything: a node counts the highest total alone,
  and at the next handshake it shows that voucher, which the wallet knows by its own signature (`learn`).
- Reserving a ceiling ahead, with no commit for a voucher, would be cheaper still. But then a process could not tell
  how far the others have really signed, and would have to believe a node's bare number up to the ceiling, or sign
  the unused reserve away after a crash. The exact total keeps the loss at the steps in flight.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, insert, select, update
from sqlalchemy.exc import DBAPIError

from hivemint.ledger.books.promised import (
    Owing,
    Promise,
    PromiseLimit,
    PromiseStanding,
    Shown,
    UnprovenDebt,
)
from hivemint.ledger.store.database import StoreError, database_url, open_store, reading, unusable, upsert, writing
from hivemint.ledger.store.prepared import Prepared
from hivemint.ledger.store.tables import promises
from hivemint.protocol.eip712 import Domain
from hivemint.protocol.ids import Address, Credits

_NOTHING = Credits(0)
_OLD = b""
"""The genesis of rows from before books knew their chain."""
_Rule = Callable[[PromiseStanding], PromiseStanding]


class VoucherBook:
    """The promises of one wallet on one `Settlement` contract of one chain. Safe for threads and for processes.

    For each step: `promise_all` before its voucher is signed; then `delivered` when the receipt has been checked, or
    `released` when the node said that the step was not done. `learn` takes a node's word on the account.
    """

    def __init__(self, engine: Engine, domain: Domain, client: Address, url: str, genesis: bytes) -> None:
        self._engine, self._url, self._genesis = engine, url, genesis
        owner = {"chain_id": domain.chain_id, "settlement": domain.settlement, "client": client}
        self._key = {**owner, "genesis": genesis}
        self._on_any_chain = (promises.c.chain_id == domain.chain_id) & (promises.c.settlement == domain.settlement)
        self._on_any_chain &= promises.c.client == client
        self._mine = self._on_any_chain & (promises.c.genesis == genesis)
        columns = (promises.c.owed, promises.c.incurred, promises.c.floor, promises.c.total, promises.c.signed)
        named = (promises.c[name] == bindparam(f"of_{name}") for name in (*self._key, "node"))
        self._read = Prepared(engine, select(*columns).where(*named))
        self._named = {f"of_{name}": value for name, value in self._key.items()}
        self._write = Prepared(engine, upsert(engine, promises), promises)
        self._in_flight: dict[Address, int] = defaultdict(int)
        self._one_at_a_time, self._counting = threading.Lock(), threading.Lock()
        self._connection: Connection | None = None

    @classmethod
    def open(
        cls, path: Path, domain: Domain, client: Address, genesis: bytes, *, begin_anew: bool = False
    ) -> "VoucherBook":
        """Open or create (0600). `genesis`: the hash of the chain's first block.

        Raises StoreError, also for a file that knows this wallet on another chain of the same id and contract alone;
        `begin_anew` then begins with nothing promised, and the old rows stay.
        """
        url = database_url(path)
        engine = open_store(url, durable=False)
        book = cls(engine, domain, client, url, genesis)
        try:
            book._choose_chain(path, begin_anew)
            book._connection = engine.connect()
        except BaseException:
            engine.dispose()
            raise
        return book

    def promise(self, node: Address, amount: Credits) -> Credits:
        """`promise_all` at one node, without limits and for no receipt in particular; the total."""
        return self.promise_all([Owing(node, amount)])[0].total

    def promise_all(self, owing: Sequence[Owing]) -> list[Promise]:
        """Owe these amounts more; the totals that the vouchers must carry, stored already.

        A total is the sum owed with this step: what was promised before and not delivered pays first. Either all are
        promised or none. Raises StoreError, PromiseLimit.
        """

        def owe(one: Owing) -> _Rule:
            return lambda standing: standing.owe(one)

        if not owing:
            return []
        with self._one_at_a_time:
            changed = self._change([(one.node, owe(one)) for one in owing])
        made = []
        for one, (before, after) in zip(owing, changed, strict=True):
            self._fly(one.node, one.amount)
            made.append(Promise(one.node, one.amount, Credits(before.total), Credits(after.owed), one.receipt))
        return made

    def take_back(self, made: Sequence[Promise]) -> None:
        """No voucher of these promises has left: nothing is owed or signed for them. What others signed stays."""

        def undo(one: Promise) -> _Rule:
            return lambda standing: standing.unsigned(one)

        for one in made:
            self._fly(one.node, -one.amount)
        with self._one_at_a_time:
            self._change([(one.node, undo(one)) for one in reversed(made)])

    def countersigned(self, node: Address, total: Credits, receipt: bytes) -> None:
        """One more voucher, over `receipt`, for a total that was promised already."""
        with self._one_at_a_time:
            self._change([(node, lambda standing: standing.also(total, receipt))])

    def delivered(self, node: Address, amount: Credits) -> None:
        """A promised step has come, or its fate is unknown: it is no longer in flight, the debt stays."""
        self._fly(node, -amount)

    def released(self, node: Address, amount: Credits) -> None:
        """A promised step was refused or cancelled: it is not owed. Its voucher stays signed and pays the next step."""
        with self._one_at_a_time:
            self._fly(node, -amount)
            self._change([(node, lambda standing: standing.without(amount))])

    def learn(self, node: Address, owed: Credits, shown: Shown | None = None) -> None:
        """Take the node's word on the sum owed: downwards, and upwards as far as `incurred`.

        Above that it takes `shown`, which the caller has found to be this wallet's, and which no process that shares
        this file has signed. Raises UnprovenDebt, and then nothing has changed: sign nothing more for this node.
        """
        with self._one_at_a_time:
            in_flight = self._in_flight[node]
            self._change([(node, lambda standing: standing.told(owed, in_flight, shown))])

    def standing(self, node: Address) -> PromiseStanding:
        """Where this wallet stands with a node, by all processes of this machine."""
        with reading(self._engine) as connection:
            return self._row(connection, node)

    def total(self, node: Address) -> Credits:
        """The highest total promised to this node, by any process of the wallet."""
        return Credits(self.standing(node).total)

    def totals(self) -> dict[Address, tuple[Credits, Credits]]:
        """node -> (highest total promised, sum owed)."""
        wanted = select(promises.c.node, promises.c.total, promises.c.owed).where(self._mine)
        with reading(self._engine) as connection:
            return {row.node: (row.total, row.owed) for row in connection.execute(wanted)}

    def close(self) -> None:
        with self._one_at_a_time:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            self._engine.dispose()

    def _choose_chain(self, path: Path, begin_anew: bool) -> None:
        """Rows of this chain, or none at all, or else a word on it. Rows of no chain are this one's from now on."""
        wanted = select(promises.c.genesis).where(self._on_any_chain).distinct()
        with writing(self._engine) as connection:
            known = {row.genesis for row in connection.execute(wanted)}
            if self._genesis in known or not known:
                return
            if _OLD in known:
                old = self._on_any_chain & (promises.c.genesis == _OLD)
                connection.execute(update(promises).where(old).values(genesis=self._genesis))
            elif begin_anew:
                nodes = set(connection.scalars(select(promises.c.node).where(self._on_any_chain)))
                connection.execute(insert(promises), [{**self._key, "node": node} for node in sorted(nodes)])
            else:
                raise StoreError(
                    f"The promises in {path} are of another chain",
                    why=f"this one has the same id and contract, but its first block is 0x{self._genesis.hex()[:16]}, "
                    f"not 0x{min(known).hex()[:16]}: rpc_url points elsewhere, or a development chain began anew",
                    next_step="mend rpc_url in network.toml; or, if the old chain is gone, run `hivemint account "
                    "new-books`: nothing is promised then, and the old rows stay",
                )

    def _fly(self, node: Address, amount: int) -> None:
        with self._counting:
            self._in_flight[node] = max(0, self._in_flight[node] + amount)

    def _change(self, changes: Sequence[tuple[Address, _Rule]]) -> list[tuple[PromiseStanding, PromiseStanding]]:
        """Read, apply each rule to its node's row, write, in one transaction that locks processes out.

        Gives each row before and after.
        """
        if self._connection is None:
            raise StoreError("The voucher book is closed")
        stored: dict[Address, PromiseStanding] = {}
        now: dict[Address, PromiseStanding] = {}
        changed = []
        try:
            with self._connection.begin():
                for node, rule in changes:
                    if node not in now:
                        stored[node] = now[node] = self._row(self._connection, node)
                    before, now[node] = now[node], rule(now[node])
                    changed.append((before, now[node]))
                rows = [self._row_of(node, standing) for node, standing in now.items() if standing != stored[node]]
                if rows:
                    self._write.run(self._connection, rows)
        except DBAPIError as error:
            raise unusable(self._url, error) from None
        return changed

    def _row(self, connection: Connection, node: Address) -> PromiseStanding:
        row: Any = self._read.run(connection, [{**self._named, "of_node": node}]).first()
        if row is None:
            return PromiseStanding()
        owed, incurred, floor, total, signed = row
        return PromiseStanding(int(owed), int(incurred), int(floor), int(total), signed)

    def _row_of(self, node: Address, standing: PromiseStanding) -> dict[str, Any]:
        owed, incurred, floor, total = standing.owed, standing.incurred, standing.floor, standing.total
        more = {"node": node, "owed": owed, "incurred": incurred, "floor": floor, "total": total}
        return {**self._key, **more, "signed": standing.signed}


__all__ = ["Owing", "Promise", "PromiseLimit", "PromiseStanding", "Shown", "UnprovenDebt", "VoucherBook"]
