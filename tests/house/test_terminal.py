"""What tests are told of a terminal: nothing that was shown gets lost between two looks."""

import os
import sys

import pytest

from support.terminal import Terminal


def test_words_that_come_in_one_piece_are_found_one_after_the_other() -> None:
    said = "print('that is wrong\\nPassword of alice: ', end='', flush=True); input()"
    with Terminal([sys.executable, "-c", said], os.environ) as terminal:
        terminal.wait("Password of alice")
        assert terminal.expect("is wrong") == "that is wrong"
        assert terminal.expect("Password of alice", 5).strip() == "Password of alice"
        terminal.press("\n")
        assert terminal.ended() == 0
        with pytest.raises(TimeoutError, match="is wrong"):
            terminal.expect("is wrong", 5)
