"""The entry point of `hivemint`. It imports next to nothing by itself, so that a Ctrl-C finds it listening."""

import os
import signal
import sys
from types import FrameType


def run() -> None:
    """Errors of ours are a few plain lines and exit code 1; Ctrl-C is 130, SIGTERM 143, each without a traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _run() -> None:
    from hivemint.cli.console import quiet_libraries, show_error
    from hivemint.cli.extras import missing
    from hivemint.cli.tree import build
    from hivemint.protocol.errors import HivemintError, of_the_system

    quiet_libraries()
    chosen = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    try:
        build(chosen)()
    except HivemintError as error:
        show_error(error)
        sys.exit(1)
    except BrokenPipeError:  # who read our output has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ModuleNotFoundError as error:
        if (told := missing(error)) is None:
            raise
        show_error(told)
        sys.exit(1)
    except OSError as error:
        show_error(of_the_system(error))
        sys.exit(1)


def _terminated(_number: int, _frame: FrameType | None) -> None:
    """As an exception, so that what was begun is put away: temporary folders, child processes, locks."""
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    run()
