"""Errors name arguments for a program, options for the command line."""

import pytest

from hivemint.client.generation import words
from hivemint.protocol.errors import HivemintError, Refusal

SAID = {
    "name a ceiling of your own (--max-price), or use the donated lane (--bid free)": "name a ceiling of your own "
    '(max_price=), or use the donated lane (bid="free")',
    "bid more, or `--bid ask`, or use the donated lane with `--bid free`": 'bid more, or bid="ask", or use the donated '
    'lane with bid="free"',
    "change --max-price, HIVEMINT_MAX_PRICE or [client] of config.toml": "change the argument max_price, "
    "HIVEMINT_MAX_PRICE or [client] of config.toml",
    "use --password-file, or set HIVEMINT_PASSWORD": "pass password=, or set HIVEMINT_PASSWORD",
    "name a network file with --network, or start one": "name a network file with network=, or start one",
    "fund it: `hivemint account fund 1 --wallet bob`": "fund it: `hivemint account fund 1 --wallet bob`",
}


@pytest.mark.parametrize("options", SAID)
def test_a_program_is_told_of_arguments(options: str) -> None:
    error = Refusal("busy", "No", why="because", next_step=options, retry_after=2.0)
    words.in_python(error)
    assert error.next_step == SAID[options]
    assert str(error) == f"No. because. {SAID[options]}."
    assert (error.code, error.retry_after) == ("busy", 2.0)
    words.in_python(error)
    assert error.next_step == SAID[options], "once is enough"


def test_the_command_line_keeps_its_options() -> None:
    error = HivemintError("No", next_step="raise --max-price")
    with words.by_options():
        words.in_python(error)
        assert error.next_step == "raise --max-price"
    words.in_python(error)
    assert error.next_step == "raise max_price="
