"""Who is parked, for how long, and who makes way for whom."""

from types import SimpleNamespace
from typing import Any

import pytest

from hivemint.node.sessions.parking import Parking, ParkingLimits


class Lot:
    """A parking with a clock that a test turns. `freed`: names of sessions whose room was given back."""

    def __init__(self, **limits: Any) -> None:
        self.now = 0.0
        self.freed: list[str] = []
        self.left: list[str] = []
        self.accounts: dict[str, Any] = {}
        self.seats: dict[str, Any] = {}
        self.parking = Parking(
            ParkingLimits(**limits), lambda account: self.left.append(account.client), lambda: self.now
        )

    def park(self, name: str, client: str = "one", prefix: str = "here") -> None:
        account = self.accounts.setdefault(client, SimpleNamespace(client=client, sessions=[]))
        account.sessions.append(name)  # since its link ended
        session: Any = SimpleNamespace(account=account, park=lambda: None)
        session.forget = lambda: account.sessions.remove(name)
        seat = self.seats[name] = SimpleNamespace(parked=False, on_evicted=None)
        self.parking.park(session, seat, prefix, lambda: self.freed.append(name))  # type: ignore[arg-type]


def test_a_parked_session_is_kept_for_its_time() -> None:
    lot = Lot(seconds=10)
    lot.park("a")
    lot.now = 6.0
    lot.park("b")
    lot.now = 10.0
    lot.parking.look()
    assert (lot.freed, lot.accounts["one"].sessions, len(lot.parking)) == (["a"], ["b"], 1)
    assert lot.parking.has(lot.accounts["one"])
    lot.now = 16.0
    lot.parking.look()
    assert (lot.freed, lot.left) == (["a", "b"], ["one", "one"])
    assert not lot.parking.has(lot.accounts["one"])


@pytest.mark.parametrize(("limits", "prefixes"), [({"of_client": 2}, "xyz"), ({"of_prefix": 2}, "xxx")])
def test_the_oldest_of_a_wallet_and_of_a_network_makes_way(limits: dict[str, int], prefixes: str) -> None:
    lot = Lot(**limits)
    clients = ["one"] * 3 if "of_client" in limits else ["one", "two", "three"]
    for name, client, prefix in zip("abc", clients, prefixes, strict=True):
        lot.park(name, client, prefix)
    lot.park("d", "other", "elsewhere")
    assert (lot.freed, len(lot.parking)) == (["a"], 3)


def test_who_needs_room_gets_it_and_nothing_is_given_back_twice() -> None:
    lot = Lot()
    lot.park("a")
    seat = lot.seats["a"]
    assert seat.parked
    seat.on_evicted()
    seat.on_evicted()
    lot.parking.clear()
    assert lot.freed == ["a"]


def test_a_node_that_parks_nobody_gives_room_back_at_once() -> None:
    lot = Lot(seconds=0)
    lot.park("a")
    assert (lot.freed, len(lot.parking), lot.accounts["one"].sessions) == (["a"], 0, [])
