"""What a new node is told of its place."""

from hivemint.cli.node.placing import Around, ChosenPlace, earns, helps, in_words
from hivemint.node.market import Rival
from hivemint.node.placement.measure import Measured, Room
from hivemint.node.placement.rule import Choice
from hivemint.node.settings import NodeSettings
from hivemint.protocol.ids import Address


def test_it_is_said_how_many_serve_them() -> None:
    assert in_words([0, 0, 1], 0, 2) == "nobody serves them"
    assert in_words([1, 1], 0, 2) == "1 other node serves them"
    assert in_words([0, 2], 0, 2) == "0 to 2 other nodes serve them"


def test_it_is_said_what_the_swarm_gains() -> None:
    assert helps(Choice(0, 2, 3.0, 4.5)) == "the swarm's weakest block goes from 3.0 to 4.5 tokens/s"
    assert helps(Choice(0, 2, 0.0, 4.5)) == "blocks had no node; with it: 4.5 tokens/s"
    assert helps(Choice(0, 2, 0.0, 0.0)) == "blocks had no node; with it: some blocks still have no node"


def place(waits: list[tuple[range, float]], rivals: list[tuple[range, Rival]] | None = None) -> ChosenPlace:
    around = Around([0] * 4, rivals or [], waits=waits)
    return ChosenPlace(Choice(0, 2, 0.0, 4.5), Measured(2, 10.0), Room(2, 1, 4), around)


def test_what_it_earns_is_a_most_and_says_when_there_is_no_demand() -> None:
    settings = NodeSettings.load(ask=10**12)
    text = earns(place([]), settings)
    assert text.startswith("864 mHMC a day")  # 10 rows/s x 86,400 s x 1,000 nHMC
    assert "if one paid session at a time keeps it busy" in text
    assert text.endswith("nobody else serves these blocks, so their demand is not known")
    assert earns(place([(range(0, 2), 0.0)]), settings).endswith("so it may be far less")
    assert earns(place([(range(1, 3), 0.25), (range(2, 4), 9)]), settings).endswith("paid work waits 250 ms there now")


def test_an_ask_that_follows_others_is_expected_to_have_followed_them() -> None:
    rival = Rival(Address("0x" + "11" * 20), 2 * 10**11, 10**18)
    settings = NodeSettings.load(ask_auto=True)
    assert "at 200 nHMC a token" in earns(place([], [(range(0, 2), rival)]), settings)
    assert "at 100 nHMC a token" in earns(place([], [(range(2, 4), rival)]), settings)
