"""Outputs that a node keeps for those who come after a dead neighbour: what is there, and what they may cost."""

from hypothesis import given
from hypothesis import strategies as st

from hivemint.node.sessions.steps.kept import KeptOutputs
from hivemint.protocol.ids import SessionId

ROW = 4


def session(number: int) -> SessionId:
    return SessionId(bytes([number]) * 32)


def row(number: int, position: int, turn: int) -> bytes:
    return bytes([number, position % 256, turn % 256, 7])


steps = st.tuples(st.integers(0, 4), st.integers(0, 30), st.integers(1, 9), st.sampled_from([None, 0, 1, 2, 3, 4]))


@given(done=st.lists(steps, max_size=80), most=st.integers(0, 400))
def test_what_is_given_back_is_what_was_computed_last_and_never_more_than_allowed(
    done: list[tuple[int, int, int, int | None]], most: int
) -> None:
    """Sessions compute, go back and on, and begin with a part of another one."""
    kept, truth = KeptOutputs(most), dict[int, list[bytes]]()
    for turn, (number, start, count, parent) in enumerate(done):
        if parent is not None and parent != number and number not in truth and count <= len(truth.get(parent, ())):
            kept.fork(session(parent), session(number), count)
            truth[number] = truth[parent][:count]
            continue
        before = truth.setdefault(number, [])
        start = min(start, len(before))
        rows = [row(number, start + at, turn) for at in range(count)]
        truth[number] = before[:start] + rows
        kept.keep(session(number), start, b"".join(rows), ROW, paid=bool(number % 2))
        assert kept.bytes <= most
    for number, rows in truth.items():
        found = kept.rows(session(number), 0, len(rows)) if rows else None
        assert found in (None, b"".join(rows))
        if found is not None:
            middle = len(rows) // 2
            assert kept.rows(session(number), middle, len(rows) - middle) == b"".join(rows[middle:])
        assert kept.rows(session(number), 0, len(rows) + 1) is None
    for number in truth:
        kept.forget(session(number))
    assert kept.bytes == 0


def test_what_nobody_pays_for_is_forgotten_first_and_then_the_longest_unused() -> None:
    kept = KeptOutputs(10 * ROW)
    for number, paid in ((0, True), (1, False), (2, False), (3, True)):
        kept.keep(session(number), 0, bytes(2 * ROW), ROW, paid=paid)
    kept.keep(session(4), 0, bytes(4 * ROW), ROW, paid=True)
    there = [number for number in range(5) if kept.rows(session(number), 0, 2) is not None]
    assert there == [0, 2, 3, 4]
    kept.keep(session(5), 0, bytes(6 * ROW), ROW, paid=True)
    assert [number for number in range(6) if kept.rows(session(number), 0, 2) is not None] == [4, 5]


def test_a_beginning_that_is_gone_is_not_kept_without_it() -> None:
    kept = KeptOutputs(100)
    kept.keep(session(1), 3, bytes(ROW), ROW, paid=True)
    assert kept.bytes == 0
    kept.keep(session(1), 0, bytes(2 * ROW), ROW, paid=True)
    kept.keep(session(1), 3, bytes(ROW), ROW, paid=True)
    assert (kept.rows(session(1), 0, 1), kept.bytes) == (None, 0)


def test_a_child_has_its_parents_beginning() -> None:
    kept = KeptOutputs(100)
    kept.keep(session(1), 0, b"aaaabbbbcccc", ROW, paid=True)
    kept.fork(session(1), session(2), 2)
    kept.keep(session(2), 2, b"dddd", ROW, paid=True)
    assert kept.rows(session(2), 0, 3) == b"aaaabbbbdddd"
    assert kept.rows(session(1), 1, 2) == b"bbbbcccc"
    kept.fork(session(3), session(4), 1)
    assert kept.rows(session(4), 0, 1) is None


def test_free_forks_take_no_room_from_others() -> None:
    kept = KeptOutputs(100)
    kept.keep(session(1), 0, bytes(5 * ROW), ROW, paid=True)
    kept.keep(session(2), 0, bytes(10 * ROW), ROW, paid=True)
    for number in range(3, 20):
        kept.fork(session(2), session(number), 9)
    assert kept.bytes == 15 * ROW
    assert kept.rows(session(1), 0, 5) is not None
    kept.keep(session(2), 3, bytes(ROW), ROW, paid=True)
    kept.forget(session(2))
    assert kept.rows(session(19), 0, 9) == bytes(9 * ROW), "what a parent forgets is its children's still"
