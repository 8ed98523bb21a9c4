"""The sessions of one run, as its journal knows them: those that take entries, and ended ones whose vouchers wait."""

from dataclasses import dataclass
from typing import Any

from hivemint.ledger.books.writer import JournalError
from hivemint.protocol.ids import Address, Credits, SessionId


@dataclass(slots=True)
class OpenRow:
    """A session of this run: what the journal needs to keep its row from going back.

    `ended`: it takes no entries any more, but one of its vouchers may still become a proof.
    """

    client: Address
    price: Credits
    row: dict[str, Any]
    ended: bool = False


class OpenSessions:
    """By session id. A session is forgotten by `pop`, not by its end."""

    def __init__(self) -> None:
        self._rows: dict[SessionId, OpenRow] = {}

    def __contains__(self, session: SessionId) -> bool:
        return session in self._rows

    def __getitem__(self, session: SessionId) -> OpenRow:
        return self._rows[session]

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, session: SessionId, opened: OpenRow) -> None:
        self._rows[session] = opened

    def end(self, session: SessionId) -> Address | None:
        """It takes no entries any more. Whose it was; None for one that is not known."""
        opened = self._rows.get(session)
        if opened is None:
            return None
        opened.ended = True
        return opened.client

    def pop(self, session: SessionId) -> OpenRow:
        return self._rows.pop(session)

    def taking(self, client: Address, session: SessionId) -> OpenRow:
        """A session that takes entries of this client. Raises JournalError."""
        opened = self._rows.get(session)
        if opened is None or opened.ended or opened.client != client:
            raise JournalError(
                "A journal entry of an unknown session",
                why=f"{session.hex()[:12]} of {client} is not open",
                next_step="call open_session first",
            )
        return opened

    def clients(self) -> set[Address]:
        return {opened.client for opened in self._rows.values()}

    def ended(self, client: Address) -> list[SessionId]:
        """Of this client those that have ended."""
        return [session for session, one in self._rows.items() if one.ended and one.client == client]

    def have_all_ended(self, client: Address) -> bool:
        return all(one.ended for one in self._rows.values() if one.client == client)
