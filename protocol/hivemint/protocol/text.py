"""Texts of strangers, made fit to be shown: from the wire, from records, from a model."""

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that a terminal obeys instead of showing: control, direction, surrogates, separators."""
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
