"""docs/python.md is what the Python interface says of itself, and all of it says something."""

import gc
from pathlib import Path

import pytest
from house.python_page import GROUPS, page, public

import hivemint.client

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def test_the_page_is_the_interfaces_own_docstrings() -> None:
    gc.collect()  # see support.source: nothing that other tests left is collected while the page parses
    assert PAGE.read_text() == page(), "docstrings have changed: `make help-page` writes the page anew"


def test_what_can_be_imported_is_on_the_page() -> None:
    text = PAGE.read_text()
    assert [name for name in hivemint.client.__all__ if f"\n## {name}\n" not in text] == []


@pytest.mark.parametrize(("kind"), [kind for _, kind, _ in GROUPS], ids=[title for title, _, _ in GROUPS])
def test_every_public_name_says_what_it_is(kind: type) -> None:
    told = {name: member.fget if isinstance(member, property) else member for name, member in public(kind)}
    assert [name for name, member in told.items() if not (member.__doc__ or "").strip()] == []
    assert kind.__doc__


def test_nothing_of_this_machine_is_on_the_page() -> None:
    text = PAGE.read_text()
    assert str(Path.home()) not in text
    assert "0x7f" not in text, "an object is shown by its address"
    assert "<" not in text.replace("<=", "").replace("-> ", ""), "a default has no form of its own"
