"""Where a talk's messages come from: a terminal with history and editing, or one line after another of a pipe."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hivemint.cli.console import err, show_error
from hivemint.protocol.errors import BadInput, ConfigError
from hivemint.protocol.home import Home

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

PASTES, NO_PASTES = "\x1b[?2004h", "\x1b[?2004l"
"""A terminal then marks what is pasted, so that its line ends are not taken for Enter."""


class Lines(Protocol):
    """Messages, one after the other. `interactive`: a person sits there, who can do something about an error."""

    interactive: bool
    interrupted: bool
    """Ctrl-C came last: once more leaves."""

    def next(self) -> str | None:
        """The next message, stripped; None at the end. Raises BadInput for bytes that are no text."""
        ...


def message_of(read: Callable[[], str]) -> str:
    """Raises BadInput for bytes that are no text: an argument carries them as surrogates, which nobody can encode."""
    try:
        text = read()
        text.encode()
    except UnicodeError:
        raise BadInput(
            "The prompt is no text", why="it has bytes that are not UTF-8", next_step="convert it, e.g. with iconv"
        ) from None
    return text


class PipedLines:
    """One message a line of standard input; no prompt, no escape code."""

    interactive = interrupted = False

    def next(self) -> str | None:
        try:
            return message_of(input).strip()
        except EOFError:
            return None


class TerminalLines:
    """A prompt with history and line editing. A paste is one message, however many lines it has.

    Ctrl-C clears what was typed; on an empty line it leaves when it comes twice. Ctrl-D leaves.
    """

    interactive = True

    def __init__(self, session: "PromptSession[str]") -> None:
        self._session = session
        self.interrupted = False

    @classmethod
    def open(cls, history: Path | None, words: Sequence[str]) -> "TerminalLines":
        """`history`: the file that keeps what was typed; None: nothing is kept. `words` are completed by Tab."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.output import create_output

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        session: PromptSession[str] = PromptSession(
            "> ",
            history=FileHistory(str(history)) if history else InMemoryHistory(),
            completer=WordCompleter(list(words), sentence=True),
            complete_while_typing=False,
            key_bindings=keys,
            output=create_output(always_prefer_tty=True),
        )
        return cls(session)

    def next(self) -> str | None:
        while True:
            try:
                text = self._session.prompt()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if self._session.default_buffer.text:
                    self.interrupted = False  # it cleared the line, no more
                elif self.interrupted:
                    return None
                else:
                    self.interrupted = True
                    err.print("[dim]Ctrl-C again, Ctrl-D or /bye leaves[/]")
            else:
                self.interrupted = False
                try:
                    return message_of(partial(str, text)).strip()
                except BadInput as error:
                    show_error(error)


def history_file(home: Home) -> Path:
    """For its owner alone (0600), made if it is not there. Raises ConfigError."""
    path = home.client / "chat-history"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.fchmod(handle, 0o600)
        finally:
            os.close(handle)
    except OSError as error:
        raise ConfigError(
            f"The history {path} cannot be used",
            why=error.strerror or str(error),
            next_step="check its owner and rights, or pass --no-history",
        ) from None
    return path


@contextmanager
def unseen(at_terminal: bool) -> Iterator[None]:
    """While something else comes to a terminal: what is typed is not mixed into it, and waits for the next prompt.

    A paste stays marked as one, or else its lines would come as messages of their own, each paid.
    """
    if not at_terminal or not sys.stdin.isatty():
        yield
        return
    import termios

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    during = termios.tcgetattr(number)
    during[3] &= ~(termios.ECHO | termios.ICANON)  # Ctrl-C goes on being a signal
    termios.tcsetattr(number, termios.TCSANOW, during)
    _to_terminal(PASTES)
    try:
        yield
    finally:
        _to_terminal(NO_PASTES)
        termios.tcsetattr(number, termios.TCSANOW, before)


def _to_terminal(code: str) -> None:
    """Not while rich shows a spinner: it takes codes out of what others print."""
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            stream.write(code)
            stream.flush()
            return
