"""Texts made fit to be shown: of strangers (the wire, records, a model), URLs, which may hold keys; words mistyped."""

import time
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from urllib.parse import urlsplit

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that a terminal obeys instead of showing: control, direction, surrogates, separators."""
_FAR_AHEAD = 2**36
"""Seconds since 1970, in the year 4147: a time that no clock of a system refuses."""
_JOINERS = frozenset("\u200c\u200d")
"""Format characters that scripts and emoji are written with."""


def plain(text: str, *, keep: str = "") -> str:
    """`text` without characters that would move a cursor, colour, hide or turn what stands beside them.

    Each becomes U+FFFD; those in `keep` stay. Markup is the printer's own matter (`cli.console`).
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one if one in keep or one in _JOINERS or unicodedata.category(one) not in _HIDDEN else "\ufffd" for one in text
    )


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Which of `known` was probably meant, whatever its case."""
    by_form = {one.lower(): one for one in known}
    found = get_close_matches(word.lower(), by_form, 1)
    return by_form[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A next step: the likely word, and what to do where it was not meant."""
    near = nearest(word, known)
    return f"did you mean {near}? Or else: {otherwise}" if near else otherwise


def shown_url(url: str) -> str:
    """Scheme, host and port: what may be told of a URL. The rest may be an API key, a name and a password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "?", parts.port
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}" + (f":{port}" if port else "")


def utc(seconds: float, *, to_the_minute: bool = False) -> str:
    """A time in seconds since 1970 for people, whatever a chain or a file says: far ahead all are the same."""
    form = "%Y-%m-%d %H:%M UTC" if to_the_minute else "%Y-%m-%d %H:%M:%S UTC"
    return time.strftime(form, time.gmtime(min(max(0, seconds), _FAR_AHEAD)))
