"""Standard input, output and error, made safe before anything else is opened.

A descriptor that is closed would be the next file's: a database at 1 would get what is printed, and libuv aborts the
process where it closes one of the three. What cannot be said in a terminal's encoding is shown as `?`, not raised.
"""

import io
import os
import select
import sys

from hivemint.protocol.errors import HivemintError, SystemRefused, of_the_system

_FLAGS = (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)
_closed: set[int] = set()
"""Which of the three the caller had closed."""


def prepare() -> None:
    """To be called once, first of all."""
    for number, flags in enumerate(_FLAGS):
        if not _is_open(number):
            _closed.add(number)
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest free number is this one
    if not _takes_output(sys.stderr.fileno() if sys.stderr else 2):
        _to_nowhere(2)  # notices are no reason to fail
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the process's life
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def check_output() -> None:
    """Raises SystemRefused where stdout takes nothing, and BrokenPipeError where nobody reads it.

    Asked before a verb begins, so that nothing is paid for what nobody could read.
    """
    if 1 in _closed:
        raise SystemRefused(
            "Standard output is closed",
            why="what this verb has to say would be lost",
            next_step="redirect it to a file, or to /dev/null",
        )
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    if any(happened & select.POLLERR for _, happened in poll.poll(0)):
        raise BrokenPipeError
    try:
        os.write(1, b"")  # of no bytes: a full device and a descriptor for reading refuse that too
    except OSError as error:
        raise unwritable(error) from None


def can_write() -> bool:
    """Whether stdout was given and takes what is written."""
    return 1 not in _closed and _takes_output(1)


def unwritable(error: OSError) -> HivemintError:
    """Of stdout."""
    told = of_the_system(error)
    return SystemRefused("Standard output cannot be written", why=told.why, next_step=told.next_step)


def finish() -> HivemintError | None:
    """Write what is still in memory; what stood in the way, and then nothing is left for the interpreter's own end.

    Raises BrokenPipeError.
    """
    trouble = None
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            abandon()
            raise
        except OSError as error:
            _to_nowhere(number)
            trouble = unwritable(error) if number == 1 else trouble
    return trouble


def abandon() -> None:
    """Nobody reads any more: what is still to be written goes nowhere."""
    for number in (1, 2):
        if not _takes_output(number):
            _to_nowhere(number)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _takes_output(number: int) -> bool:
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    if any(happened & (select.POLLERR | select.POLLNVAL) for _, happened in poll.poll(0)):
        return False
    try:
        os.write(number, b"")
    except OSError:
        return False
    return True


def _to_nowhere(number: int) -> None:
    handle = os.open(os.devnull, os.O_WRONLY)
    os.dup2(handle, number)
    os.close(handle)
