"""The entry point of `hivemint`. It imports next to nothing by itself, so that a Ctrl-C finds it listening."""

import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hivemint.protocol.errors import HivemintError


def run() -> None:
    """Errors of ours are a few plain lines, or a document with --json, and an exit code by kind; Ctrl-C is 130,
    SIGTERM 143, a reader that has gone 141: each without a traceback.
    """
    try:
        signal.signal(signal.SIGTERM, _terminated)
        code = _run()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code)


def _run() -> int:
    from hivemint.cli.terminal import streams

    streams.prepare()
    from hivemint.cli.terminal.failures import READER_GONE
    from hivemint.protocol.errors import HivemintError, of_the_system

    try:
        try:
            code = _ended(sys.argv[1:])
        except HivemintError as error:
            code = _told(error)
        except BrokenPipeError:
            raise
        except OSError as error:
            code = _told(of_the_system(error))
        trouble = streams.finish()
    except BrokenPipeError:  # who read our output has gone: nobody is left to tell
        streams.abandon()
        return READER_GONE
    return code if code or trouble is None else _told(trouble, as_json=False)


def _ended(words: list[str]) -> int:
    """The exit code of the verb that `words` name. Raises what it ends with, as an error of ours."""
    import typer

    from hivemint.cli.console import quiet_libraries
    from hivemint.cli.extras import missing
    from hivemint.cli.terminal import streams
    from hivemint.cli.terminal.usage import USAGE_ERRORS, help_asked, of_usage
    from hivemint.cli.tree import call
    from hivemint.protocol.errors import BadInput

    quiet_libraries()
    streams.check_output()
    try:
        return call(words)
    except SystemExit as ended:  # what has been printed is still to be written
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except USAGE_ERRORS as error:
        if (text := help_asked(error)) is None:
            raise of_usage(error) from None
        if text.strip():  # in boxes it has been printed already
            sys.stderr.write(text.rstrip() + "\n")
        return 2
    except (EOFError, typer.Abort):
        raise BadInput("Nothing was entered", next_step="answer the question, or pass the option for it") from None
    except UnicodeError as error:
        raise BadInput(
            "Something that was given is no text", why=str(error), next_step="convert it to UTF-8, e.g. with iconv"
        ) from None
    except ModuleNotFoundError as error:
        if (told := missing(error)) is None:
            raise
        raise told from None


def _told(error: "HivemintError", as_json: bool | None = None) -> int:
    """Tell an error where it can be told. Returns its exit code."""
    from hivemint.cli.terminal.failures import tell, wants_json
    from hivemint.cli.terminal.streams import can_write

    wanted = wants_json(sys.argv[1:]) if as_json is None else as_json
    return tell(error, wanted and can_write())


def _terminated(_number: int, _frame: FrameType | None) -> None:
    """As an exception, so that what was begun is put away: temporary folders, child processes, locks."""
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    run()
