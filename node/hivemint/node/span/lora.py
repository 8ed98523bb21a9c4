"""LoRA adapters of clients: checked against the span, kept for one session, added to its rows alone.

A step whose batch has an adapter in it swaps the linears concerned for `Adapted` ones and swaps them back after it.
What is computed for the other rows is the very same call on the very same numbers, and a batch without adapters
doesn't come near this code. So one session's adapter is never seen by another one, whoever owns it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import nn
from torch.nn import functional

from hivemint.node.unable import Unable
from hivemint.swarm.lora import Pair, digest, read_pairs
from hivemint.swarm.messages import Code


class BadAdapter(Unable):
    """An adapter that doesn't fit the span or its limits. Nothing of it was loaded."""

    code = Code.LIMIT


@dataclass(frozen=True, eq=False)
class Place:
    """Where a layer computes one of the library's linears: rows `first .. first + rows - 1` of its module `attribute`.

    `order`: the library's row for each of these, where they were reordered.
    """

    attribute: str
    first: int
    rows: int
    wide_in: int
    order: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Piece:
    """A pair in its place: the module's output from column `first` on grows by `x A^T B^T`."""

    a: torch.Tensor
    b: torch.Tensor
    first: int

    def delta(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.linear(x, self.a), self.b)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One session's adapter: its pieces by layer and module, its digest, the bytes that it takes."""

    digest: bytes
    nbytes: int
    pieces: Mapping[tuple[int, str], Sequence[Piece]] = field(repr=False)


Share = tuple[int, int, Adapter]
"""Rows `first .. end - 1` of a forward belong to the session with this adapter."""


class Adapters:
    """Checks and loads adapters for one span."""

    def __init__(
        self,
        layers: nn.ModuleList,
        first: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        max_bytes: int,
        max_rank: int,
    ) -> None:
        """`layers`: the span's, block `first` of the model and those after it. `max_bytes` 0: none are taken."""
        self._first, self._dtype, self._device = first, dtype, device
        self.max_bytes, self.max_rank = max_bytes, max_rank
        self._places = [places(layer) for layer in layers]

    def read(self, data: bytes) -> Adapter:
        """Everything is checked before a tensor is made of it. Raises BadAdapter, ProtocolError."""
        if len(data) > self.max_bytes:
            raise BadAdapter(
                "The adapter is too large",
                why=f"expected at most {self.max_bytes} bytes, got {len(data)}",
                next_step="use a lower rank or fewer modules, or another node",
            )
        pairs = read_pairs(data)
        placed = [(pair, self._place(pair)) for pair in pairs]
        nbytes = sum(pair.elements for pair in pairs) * self._dtype.itemsize
        tensors = load_safetensors(data)
        pieces: dict[tuple[int, str], list[Piece]] = {}
        for pair, place in placed:
            name = f"{pair.block}.{pair.path}"
            a, b = (tensors[f"{name}.{side}"].to(self._device, self._dtype) for side in "AB")
            if place.order is not None:
                b = b[place.order.to(self._device)]
            piece = Piece(a, b, place.first)
            pieces.setdefault((pair.block - self._first, place.attribute), []).append(piece)
        return Adapter(digest(data), nbytes, pieces)

    def _place(self, pair: Pair) -> Place:
        if not 0 <= pair.block - self._first < len(self._places):
            raise BadAdapter(
                "The adapter is for other blocks",
                why=f"expected {self._first}:{self._first + len(self._places)}, got {pair.block}",
            )
        known = self._places[pair.block - self._first]
        if (place := known.get(pair.path)) is None:
            raise BadAdapter(
                f"An adapter of {pair.path} can't be used here",
                why=f"expected one of {', '.join(sorted(known))}",
                next_step="train one for these modules",
            )
        if (pair.wide_out, pair.wide_in) != (place.rows, place.wide_in):
            raise BadAdapter(
                f"The adapter's {pair.block}.{pair.path} doesn't fit the model",
                why=f"expected {place.rows} x {place.wide_in}, got {pair.wide_out} x {pair.wide_in}",
            )
        if pair.rank > self.max_rank:
            raise BadAdapter(
                f"The adapter's {pair.block}.{pair.path} has too high a rank",
                why=f"expected at most {self.max_rank}, got {pair.rank}",
                next_step="train one of a lower rank",
            )
        return place


def places(layer: Any) -> dict[str, Place]:
    """The linears of one layer that an adapter may change, by the library's names.

    Experts are left out: the rows that they see are not the rows of the batch.
    """
    if hasattr(layer, "places"):
        own: dict[str, Place] = layer.places()
        return own
    found = {}
    for path, module in layer.named_modules():
        if "experts" not in path.split(".") and (shape := _shape(module)) is not None:
            found[path] = Place(path, 0, *shape)
    return found


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a module that is linear."""
    if type(module).__name__ == "Conv1D":  # GPT-2's linear, stored the other way round
        return int(module.nf), int(module.nx)  # type: ignore[arg-type]
    wide_in, wide_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (wide_out, wide_in) if isinstance(wide_in, int) and isinstance(wide_out, int) else None


@contextmanager
def adapted(layers: nn.ModuleList, shares: Sequence[Share]) -> Iterator[None]:
    """While open, the layers add each share's adapter to its own rows."""
    wanted: dict[tuple[int, str], list[tuple[int, int, Sequence[Piece]]]] = {}
    for first, end, adapter in shares:
        for key, pieces in adapter.pieces.items():
            wanted.setdefault(key, []).append((first, end, pieces))
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for (index, path), parts in wanted.items():
            parent_path, _, name = path.rpartition(".")
            parent = layers[index].get_submodule(parent_path)
            base = parent.get_submodule(name)
            parent._modules[name] = Adapted(base, parts)
            swapped.append((parent, name, base))
        yield
    finally:
        for parent, name, base in swapped:
            parent._modules[name] = base


class Adapted(nn.Module):
    """A linear, and what adapters add to the rows of their sessions: `[..., T, in]` -> `[..., T, out]`."""

    def __init__(self, base: nn.Module, parts: Sequence[tuple[int, int, Sequence[Piece]]]) -> None:
        super().__init__()
        self.base, self._parts = base, parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._grown(x, self.base(x))

    def added(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`linear(x) + other`."""
        base: Any = self.base
        return self._grown(x, base.added(x, other))

    def _grown(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        for first, end, pieces in self._parts:
            for piece in pieces:
                delta, wide = piece.delta(x[..., first:end, :]), piece.b.shape[0]
                if torch.is_grad_enabled():
                    margins = (piece.first, out.shape[-1] - piece.first - wide, first, out.shape[-2] - end)
                    out = out + functional.pad(delta, margins)
                else:
                    out[..., first:end, piece.first : piece.first + wide] += delta
        return out

    def __getattr__(self, name: str) -> Any:
        """A family that looks at its linear's weight sees the one below."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)
