"""A node's readable name: what people call it, in place of 40 hex digits.

The name comes from the operator's address alone, so that everybody who knows the address says the same one and nobody
has to be asked. It is a label and no proof: there are 2^28 names, so that whoever tries enough keys finds one with the
name of another's node. What is signed, paid or stored goes by the address; where both can be shown, both are.
"""

import hashlib
import re
from collections.abc import Iterable

from hivemint.protocol.ids import Address


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ADJECTIVES = _words("""
    able agile amber apt azure bold brave bright brisk broad calm candid clear clever coral cosy crisp deft
    eager early fair fine firm fleet fond frank fresh gentle glad golden grand green hardy honest humble jolly
    keen kind light lively lucid lunar mellow merry mild modest neat noble opal patient placid plain polar
    prompt proud quick quiet ready robust sage serene silver solar steady
""")
_NOUNS = _words("""
    acorn alder anchor arbor aspen badger basil beacon birch bison brook canyon cedar cliff clover comet
    condor crane delta dune elm falcon fern finch fjord garnet glacier grove harbor hazel heron island jasper
    juniper kestrel lagoon lark linden lynx maple marlin meadow nectar oak orchid osprey otter pebble pine
    plover prairie quail quartz raven reef river robin sparrow spruce thistle tulip walnut willow wren
""")
_DIGITS = re.compile(r"[0-9a-f]{0,4}")
_SHORTEST = 3
"""Letters that stand for a name at least: fewer are a slip of the keyboard."""


def node_name(operator: str) -> str:
    """`candid-quail-52d6`: adjective, noun and 4 hex digits of the address, however its letters are written."""
    digest = hashlib.sha256(bytes.fromhex(operator.removeprefix("0x"))).digest()
    adjective, noun = _ADJECTIVES[digest[0] % len(_ADJECTIVES)], _NOUNS[digest[1] % len(_NOUNS)]
    return f"{adjective}-{noun}-{digest[2:4].hex()}"


def named(operator: str) -> str:
    """For a line of text: the name, and the address that it stands for."""
    return f"{node_name(operator)} ({operator})"


def reads_as_name(text: str) -> bool:
    """Whether `text` is a name or the beginning of one: made of the words that names are made of."""
    adjective, *rest = text.lower().split("-", 2)
    if not rest:
        return len(text) >= _SHORTEST and _begins(adjective, _ADJECTIVES)
    noun, *digits = rest
    if adjective not in _ADJECTIVES:
        return False
    return (noun in _NOUNS and _DIGITS.fullmatch(digits[0]) is not None) if digits else _begins(noun, _NOUNS)


def matching(text: str, operators: Iterable[Address]) -> list[Address]:
    """Those whose name is `text` or, if there is none, begins with it."""
    wanted, every = text.lower(), sorted(set(operators))
    whole = [one for one in every if node_name(one) == wanted]
    return whole or [one for one in every if node_name(one).startswith(wanted)]


def _begins(text: str, words: tuple[str, ...]) -> bool:
    return any(word.startswith(text) for word in words)
