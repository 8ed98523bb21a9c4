"""What the contracts' events add up to: balances, escrows, nodes, epochs and shares.

`Fold` applies events in the chain's order to rows that it reads once and writes at the end. Only the events decide:
folding all of them again gives the same tables.
"""

import json
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, Table, select

from hivemint.ledger.store.database import upsert
from hivemint.ledger.store.tables import balances, epochs, escrows, registrations, shares

DERIVED: tuple[Table, ...] = (balances, escrows, registrations, epochs, shares)
NOBODY = "0x" + "00" * 20
_Values = dict[str, Any]
_Row = dict[str, Any]

_BLANK: dict[str, _Row] = {
    "balances": {"amount": 0},
    "escrows": {"balance": 0, "collected": 0, "thaw_end": 0},
    "registrations": {
        "owner": NOBODY,
        "payout": NOBODY,
        "peer_id_hash": bytes(32),
        "bonded": 0,
        "unbonding": 0,
        "retired": False,
        "settled": 0,
        "minted": 0,
        "donated": 0,
    },
    "epochs": {"settled": 0, "minted": 0, "donated": 0},
    "shares": {"sessions": 0, "units": 0, "weight": 0, "minted": None},
}


def to_json(values: dict[str, Any]) -> str:
    """An event's arguments as JSON: bytes as 0x text, integers as they are (Python reads them back whole)."""
    return json.dumps(values, default=lambda value: "0x" + bytes(value).hex(), separators=(",", ":"), sort_keys=True)


class Fold:
    """One pass over events within one transaction; `flush` at its end. `epoch` is the length of one in seconds."""

    def __init__(self, engine: Engine, connection: Connection, chain: int, epoch: int) -> None:
        self._engine, self._connection, self._chain, self._epoch = engine, connection, chain, epoch
        self._rows: dict[tuple[str, tuple[Any, ...]], _Row] = {}

    def apply(self, contract: str, name: str, values: _Values, time: int) -> None:
        """Events that move nothing here are passed over."""
        handler = _HANDLERS.get((contract, name))
        if handler is not None:
            handler(self, values, time)

    def flush(self) -> None:
        """Write what has changed."""
        for table in DERIVED:
            rows = [row for (name, _), row in self._rows.items() if name == table.name]
            if rows:
                self._connection.execute(upsert(self._engine, table), rows)
        self._rows.clear()

    def clear(self) -> None:
        """Empty the tables, before folding everything anew."""
        for table in DERIVED:
            self._connection.execute(table.delete().where(table.c.chain == self._chain))

    def _row(self, table: Table, **key: Any) -> _Row:
        found = self._rows.get((table.name, tuple(key.values())))
        if found is None:
            stored = self._connection.execute(select(table).filter_by(chain=self._chain, **key)).mappings().first()
            found = dict(stored) if stored else {"chain": self._chain} | key | _BLANK[table.name]
            self._rows[table.name, tuple(key.values())] = found
        return found

    def _transfer(self, values: _Values, time: int) -> None:
        for holder, change in ((values["from"], -values["value"]), (values["to"], values["value"])):
            if holder != NOBODY:
                self._row(balances, holder=holder)["amount"] += change

    def _escrow(self, values: _Values) -> _Row:
        return self._row(escrows, client=values["client"], node=values["node"])

    def _funded(self, values: _Values, time: int) -> None:
        self._escrow(values)["balance"] += values["amount"]

    def _thawing(self, values: _Values, time: int) -> None:
        self._escrow(values)["thaw_end"] = values["thawEnd"]

    def _thaw_cancelled(self, values: _Values, time: int) -> None:
        self._escrow(values)["thaw_end"] = 0

    def _withdrawn(self, values: _Values, time: int) -> None:
        row = self._escrow(values)
        row["balance"] -= values["amount"]
        row["thaw_end"] = 0

    def _settled(self, values: _Values, time: int) -> None:
        burned, minted = values["burned"], values["minted"]
        row = self._escrow(values)
        row["balance"] -= burned
        row["collected"] += burned
        node, epoch = self._node(values), self._row(epochs, epoch=time // self._epoch)
        for totals in (node, epoch):
            totals["settled"] += burned
            totals["minted"] += minted

    def _node(self, values: _Values) -> _Row:
        return self._row(registrations, node=values["node"])

    def _registered(self, values: _Values, time: int) -> None:
        peer = bytes.fromhex(values["peerIdHash"][2:])
        self._node(values).update(owner=values["owner"], payout=values["payout"], peer_id_hash=peer)

    def _peer_changed(self, values: _Values, time: int) -> None:
        self._node(values)["peer_id_hash"] = bytes.fromhex(values["peerIdHash"][2:])

    def _payout_changed(self, values: _Values, time: int) -> None:
        self._node(values)["payout"] = values["payout"]

    def _owner_changed(self, values: _Values, time: int) -> None:
        self._node(values)["owner"] = values["owner"]

    def _bonded(self, values: _Values, time: int) -> None:
        self._node(values)["bonded"] = values["bonded"]

    def _unbonding(self, values: _Values, time: int) -> None:
        self._node(values).update(bonded=0, unbonding=values["amount"])

    def _stake_withdrawn(self, values: _Values, time: int) -> None:
        self._node(values)["unbonding"] = 0

    def _slashed(self, values: _Values, time: int) -> None:
        """A node has bonded or unbonding stake, never both."""
        row = self._node(values)
        from_bonded = min(row["bonded"], values["lost"])
        row["bonded"] -= from_bonded
        row["unbonding"] -= min(row["unbonding"], values["lost"] - from_bonded)

    def _retired(self, values: _Values, time: int) -> None:
        self._node(values)["retired"] = True

    def _claimed(self, values: _Values, time: int) -> None:
        row = self._row(shares, epoch=values["epoch"], node=values["node"])
        row["sessions"] += values["counted"]
        row.update(units=values["units"], weight=values["weight"])

    def _minted(self, values: _Values, time: int) -> None:
        self._row(shares, epoch=values["epoch"], node=values["node"])["minted"] = values["amount"]
        self._row(epochs, epoch=values["epoch"])["donated"] += values["amount"]
        self._node(values)["donated"] += values["amount"]


_HANDLERS: dict[tuple[str, str], Callable[[Fold, _Values, int], None]] = {
    ("CreditToken", "Transfer"): Fold._transfer,
    ("Settlement", "Funded"): Fold._funded,
    ("Settlement", "Thawing"): Fold._thawing,
    ("Settlement", "ThawCancelled"): Fold._thaw_cancelled,
    ("Settlement", "Withdrawn"): Fold._withdrawn,
    ("Settlement", "Settled"): Fold._settled,
    ("NodeRegistry", "Registered"): Fold._registered,
    ("NodeRegistry", "PeerChanged"): Fold._peer_changed,
    ("NodeRegistry", "PayoutChanged"): Fold._payout_changed,
    ("NodeRegistry", "OwnerChanged"): Fold._owner_changed,
    ("NodeRegistry", "Bonded"): Fold._bonded,
    ("NodeRegistry", "Unbonding"): Fold._unbonding,
    ("NodeRegistry", "StakeWithdrawn"): Fold._stake_withdrawn,
    ("NodeRegistry", "Slashed"): Fold._slashed,
    ("NodeRegistry", "Retired"): Fold._retired,
    ("Emission", "Claimed"): Fold._claimed,
    ("Emission", "Minted"): Fold._minted,
}
