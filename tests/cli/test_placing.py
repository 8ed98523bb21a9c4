"""Which blocks a new node is proposed."""

import pytest

from hivemint.cli.node.placing import in_words, weakest


@pytest.mark.parametrize(
    ("served", "most", "span"),
    [
        ([0, 0, 0, 0], 2, (0, 2)),
        ([1, 1, 0, 0], 2, (2, 4)),
        ([1, 1, 0, 1], 1, (2, 3)),
        ([3, 1, 1, 3], 2, (1, 3)),
        ([2, 2, 2], 9, (0, 3)),
        ([0, 5, 0, 1, 1], 2, (2, 4)),
    ],
)
def test_few_nodes_come_first(served: list[int], most: int, span: tuple[int, int]) -> None:
    assert weakest(served, most) == span


def test_it_is_said_how_many_serve_them() -> None:
    assert in_words([0, 0, 1], 0, 2) == "nobody serves them"
    assert in_words([1, 1], 0, 2) == "1 other node serves them"
    assert in_words([0, 2], 0, 2) == "0 to 2 other nodes serve them"
