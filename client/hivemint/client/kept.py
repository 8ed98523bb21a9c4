"""A talk in a file, so that it outlives its process: the tokens of its text, and what nodes hold of it.

The file holds token ids (which are the text, to anybody with the model's tokenizer), the newest receipts of the
sessions, and a note of its owner's. It holds no key, and none can be made of it. It is for its owner alone (0600), is
replaced as a whole with each token, and is removed when the talk is closed.
"""

import fcntl
import os
from array import array
from pathlib import Path
from typing import Annotated, Any

import msgspec

from hivemint.protocol.errors import BadInput
from hivemint.protocol.home import read_small
from hivemint.protocol.receipt import SignedReceipt

LARGEST = 1 << 24
"""Bytes of a file that is read: two million tokens."""
_VERSION = 1
_Block = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


class KeptHop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One session: at whom, for which blocks, and the receipt that names the state which is meant."""

    peer: Annotated[bytes, msgspec.Meta(max_length=64)]
    first: _Block
    end: _Block
    receipt: SignedReceipt


class TextMark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first `position` tokens of a text, as the sessions of `hops` have computed them, first block first."""

    position: Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]
    hops: Annotated[tuple[KeptHop, ...], msgspec.Meta(max_length=1024)]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    model: bytes
    ids: bytes
    mark: TextMark | None
    note: dict[str, Any]


class KeptTalk:
    """The file of one talk, and what it held when it was opened. One process has it at a time."""

    def __init__(self, path: Path, model: bytes, vocabulary: int = 1 << 32) -> None:
        """`model`: its id; a talk with another model can't go on here. `vocabulary`: how many tokens it knows. Raises
        BadInput: what is wrong with the file."""
        self.path = path.expanduser().absolute()
        self.ids: list[int] = []
        self.mark: TextMark | None = None
        self.note: dict[str, Any] = {}
        """Whatever the owner of the talk wants to find again, as JSON has it."""
        self._model, self._vocabulary = bytes(model), vocabulary
        self._lock = self._locked()
        try:
            if self.path.exists():
                self._read()
        except BaseException:
            self.close()
            raise

    def write(self, ids: list[int], mark: TextMark | None) -> None:
        """Raises BadInput where the file can't be written."""
        self.ids, self.mark = ids, mark
        document = _Document(_VERSION, self._model, array("I", ids).tobytes(), mark, self.note)
        self._replace(msgspec.msgpack.encode(document))

    def remember(self, note: dict[str, Any]) -> None:
        """Write another note beside the same text."""
        self.note = note
        self.write(self.ids, self.mark)

    def remove(self) -> None:
        """The talk is over."""
        self.ids, self.mark, self.note = [], None, {}
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Another process may have it now. Harmless when called again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ---- inside

    @property
    def _beside(self) -> Path:
        return self.path.with_name(f".{self.path.name}.lock")

    def _locked(self) -> int | None:
        handle = None
        try:
            handle = os.open(self._beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if handle is not None:
                os.close(handle)
            raise BadInput(f"{self.path} is in use", why="another process keeps its talk there") from None
        except OSError as error:
            raise self._unusable(error) from None
        return handle

    def _read(self) -> None:
        data = read_small(self.path, LARGEST, "talk")
        try:
            found = msgspec.msgpack.decode(data, type=_Document)
            ids = array("I", found.ids)
            if max(ids, default=0) >= self._vocabulary:
                raise ValueError("it has tokens that this model does not know")
        except (msgspec.MsgspecError, ValueError) as error:
            why, next_step = str(error)[:200], "remove it, and begin anew"
            raise BadInput(f"{self.path} is no talk", why=why, next_step=next_step) from None
        if found.version != _VERSION or found.model != self._model:
            why = "it is of another model" if found.version == _VERSION else f"its version is {found.version}"
            raise BadInput(f"The talk in {self.path} cannot go on here", why=why, next_step="name another file")
        self.ids, self.mark, self.note = list(ids), found.mark, found.note

    def _replace(self, data: bytes) -> None:
        """Whole or not at all, for a process that ends at any moment. Nothing waits for the disk: a machine that loses
        its power loses the newest tokens with it."""
        fresh = self.path.with_name(f".{self.path.name}.new")
        try:
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(fresh, self.path)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> BadInput:
        why = error.strerror or str(error)
        return BadInput(f"{self.path} cannot keep a talk", why=why, next_step="name another file")
