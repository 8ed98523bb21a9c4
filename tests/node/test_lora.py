"""Adapters in a span: equal to PEFT's own, for the rows of their session alone, and refused before they are loaded."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from hivemint.client.sessions.peft import LoraAdapter
from hivemint.model.anatomy import Anatomy
from hivemint.node.engine.scheduler import Lane
from hivemint.node.engine.seats import Seat, Seats
from hivemint.node.kv.cache import OutOfRoom
from hivemint.node.kv.pages import PAGE
from hivemint.node.span import int8
from hivemint.node.span.lean import LeanLayer
from hivemint.node.span.lora import Adapter, BadAdapter
from hivemint.node.span.span import Span, Work
from hivemint.protocol.errors import ProtocolError
from hivemint.protocol.ids import BlockIndex
from hivemint.swarm.lora import read_pairs
from support.lora import last_states, whole_model, with_lora, write_lora
from support.tiny import tiny_model

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
ALL_OF_LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FAMILIES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "llama": ("llama", ALL_OF_LLAMA, {}),
    "llama_q": ("llama", ["q_proj"], {}),
    "llama_gelu": ("llama", ALL_OF_LLAMA, {"hidden_act": "gelu"}),  # no lean layer for it
    "qwen3": ("qwen3", ["q_proj", "k_proj", "down_proj"], {"head_dim": 16}),
    "gemma2": ("gemma2", ["q_proj", "v_proj", "up_proj"], {"head_dim": 8}),
    "phi3": ("phi3", ["qkv_proj", "gate_up_proj"], {}),
    "gpt_neox": ("gpt_neox", ["query_key_value", "dense"], {}),
    "mixtral": ("mixtral", ["q_proj", "v_proj"], {"num_local_experts": 4}),
    "gpt2": ("gpt2", ["c_attn", "c_proj"], GPT2),
    "bloom": ("bloom", ["query_key_value", "dense_h_to_4h"], {"n_layer": 2, "n_head": 4}),  # sessions run alone
}


class Made:
    """A tiny model, its spans, two adapters that PEFT has written, and the whole model as PEFT runs it."""

    def __init__(self, folder: Path, name: str) -> None:
        family, modules, changes = FAMILIES[name]
        self.moe = "num_local_experts" in changes
        self.folder = tiny_model(folder / "model", family, **{"initializer_range": 0.2, **changes})
        self.adapters = [write_lora(self.folder, folder / f"lora{n}", modules, seed=n) for n in (1, 2)]
        self.spans = [Span.load(self.folder, BlockIndex(a), BlockIndex(a + 1)) for a in (0, 1)]

    def loaded(self, which: int) -> list[Adapter]:
        """An adapter as each of the two spans has read it off the wire."""
        lora = LoraAdapter.load(self.adapters[which], Anatomy.read(self.folder))
        return [span.new_adapters(1 << 20, 64).read(lora.blob(span.first, span.end)) for span in self.spans]

    def run(self, batch: list[tuple[torch.Tensor, list[Adapter] | None]]) -> list[torch.Tensor]:
        """Whole texts through both spans, all in one batch."""
        rows = [hidden for hidden, _ in batch]
        for index, span in enumerate(self.spans):
            store = span.new_store(1 << 20)
            works = [
                Work(store.open(64), 0, one, None if adapter is None else adapter[index])
                for one, (_, adapter) in zip(rows, batch, strict=True)
            ]
            rows = span.run(works)
        return rows


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("llama"), "llama")


def unmoved(made: Made, ours: torch.Tensor, before: torch.Tensor) -> None:
    """The same bits. Experts see as many rows at once as choose them, so their rounding depends on the company."""
    if made.moe:
        torch.testing.assert_close(ours, before, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(ours, before)


def embedded(made: Made, model: Any, seed: int, count: int = 9) -> torch.Tensor:
    """The first block's input: what the library makes of random embeddings before it (learned positions, norms)."""
    rows = torch.randn(1, count, 32, generator=torch.Generator().manual_seed(seed))
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)
    seen: list[torch.Tensor] = []
    hook = layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(inputs_embeds=rows, use_cache=False)
    hook.remove()
    return seen[0][0]


def expected(made: Made, which: int, seed: int, count: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """PEFT's input of the first block and output of the last one."""
    model = with_lora(made.folder, made.adapters[which])
    rows = torch.randn(1, count, 32, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return embedded(made, model, seed, count), last_states(model, 2, rows)[0]


def test_a_span_with_an_adapter_is_what_peft_makes_of_it(made: Made) -> None:
    hidden, theirs = expected(made, 0, 3)
    (plain,), (ours,) = made.run([(hidden, None)]), made.run([(hidden, made.loaded(0))])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    assert (plain - theirs).abs().max() > 100 * (ours - theirs).abs().max(), "the adapter does something"


def test_two_adapters_and_none_in_one_batch_do_not_mix(made: Made) -> None:
    """Each row gets what it would get alone; rows without an adapter the very bits of a batch without any."""
    texts = [expected(made, which, seed, count) for which, seed, count in ((0, 4, 7), (1, 5, 9))]
    plain = [embedded(made, whole_model(made.folder), 6, 5), embedded(made, whole_model(made.folder), 7, 1)]
    without = made.run([(texts[0][0], None), (plain[0], None), (texts[1][0], None), (plain[1], None)])
    mixed = made.run([(texts[0][0], made.loaded(0)), (plain[0], None), (texts[1][0], made.loaded(1)), (plain[1], None)])
    for at, (_, theirs) in ((0, texts[0]), (2, texts[1])):
        torch.testing.assert_close(mixed[at], theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    for at in (1, 3):
        unmoved(made, mixed[at], without[at])
    again = made.run([(texts[0][0], None), (plain[0], None), (texts[1][0], None), (plain[1], None)])
    assert all(map(torch.equal, again, without)), "nothing of an adapter stays"


def test_the_gradient_goes_through_the_adapter(made: Made) -> None:
    hidden, _ = expected(made, 0, 8)
    gradient = torch.randn(1, 9, 32)
    model = with_lora(made.folder, made.adapters[0])
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)
    start: list[torch.Tensor] = []

    def enter(_: Any, args: Any) -> Any:
        start.append(args[0].detach().requires_grad_(True))
        return start[0], *args[1:]

    hook = layers[0].register_forward_pre_hook(enter)
    out = last_states(model, 2, torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(8)))
    hook.remove()
    (theirs,) = torch.autograd.grad(out, start[0], gradient)
    loaded = made.loaded(0)
    (middle,) = made.spans[0].run([Work(made.spans[0].new_store(1 << 20).open(64), 0, hidden, loaded[0])])
    ours = made.spans[1].backward(middle[None], gradient, adapter=loaded[1])
    ours = made.spans[0].backward(hidden[None], ours, adapter=loaded[0])
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


def test_the_lean_layers_are_among_those_tested(llama: Made) -> None:
    assert all(isinstance(layer, LeanLayer) for span in llama.spans for layer in span._layers)
    assert {key for _, key in llama.loaded(0)[0].pieces} == {"qkv", "o", "gate_up", "down"}


def test_chunks_and_decode_steps_keep_their_adapter(llama: Made) -> None:
    hidden, theirs = expected(llama, 0, 9, 12)
    loaded, states = llama.loaded(0), hidden
    for span, adapter in zip(llama.spans, loaded, strict=True):
        cache = span.new_store(1 << 20).open(64)
        parts = [states[:5], states[5:10], states[10:11], states[11:]]
        at, outputs = 0, []
        for part in parts:
            outputs += span.run([Work(cache, at, part, adapter)])
            at += len(part)
        states = torch.cat(outputs)
    torch.testing.assert_close(states, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_a_part_of_a_span_with_an_adapter_is_that_part_alone(made: Made) -> None:
    """Sessions of one block of two: forward and backward, beside a session of the whole span."""
    whole, second = Span.load(made.folder, BlockIndex(0), BlockIndex(2)), made.spans[1]
    lora = LoraAdapter.load(made.adapters[0], Anatomy.read(made.folder))
    adapter, store = whole.new_adapters(1 << 20, 64).read(lora.blob(1, 2)), whole.new_store(1 << 20)
    hidden, gradient = torch.randn(6, 32), torch.randn(1, 6, 32)
    caches = store.open(64, blocks=(1, 2)), store.open(64)
    ours = whole.run([Work(caches[0], 0, hidden, adapter), Work(caches[1], 0, hidden)])[0]
    theirs = second.run([Work(second.new_store(1 << 20).open(64), 0, hidden, made.loaded(0)[1])])[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    back = whole.backward(hidden[None], gradient, (1, 2), adapter)
    torch.testing.assert_close(
        back, second.backward(hidden[None], gradient, adapter=made.loaded(0)[1]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("numbers", [float("nan"), float("inf"), 1e30])
def test_a_sick_adapter_makes_nobody_else_sick(made: Made, numbers: float) -> None:
    lora = LoraAdapter.load(made.adapters[0], Anatomy.read(made.folder))
    sick = LoraAdapter(lora.folder, {name: torch.full_like(one, numbers) for name, one in lora.tensors.items()})
    loaded = [span.new_adapters(1 << 20, 64).read(sick.blob(span.first, span.end)) for span in made.spans]
    hidden = torch.randn(6, 32)
    before = made.run([(hidden, None), (hidden, None)])
    after = made.run([(hidden, loaded), (hidden, None)])
    unmoved(made, after[1], before[1])
    assert not torch.equal(after[0], before[0])


def test_int8_spans_take_adapters(llama: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "prove", lambda linears: None)
    span = Span.load(llama.folder, BlockIndex(0), BlockIndex(2), precision="int8")
    lora = LoraAdapter.load(llama.adapters[0], Anatomy.read(llama.folder))
    adapter = span.new_adapters(1 << 20, 64).read(lora.blob(0, 2))
    hidden, theirs = expected(llama, 0, 10)
    cache = span.new_store(1 << 20).open(64)
    ours = span.run([Work(cache, 0, hidden, adapter)])[0].float()
    assert (ours - theirs).norm() < 0.05 * theirs.norm()
    assert adapter.nbytes * 2 == sum(one.nbytes for one in lora.tensors.values()), "bf16 here, fp32 in the file"


# ---- what is refused


def pair(rank: int = 4, wide_in: int = 32, wide_out: int = 32, name: str = "0.self_attn.q_proj") -> dict[str, Any]:
    return {f"{name}.A": torch.ones(rank, wide_in), f"{name}.B": torch.ones(wide_out, rank)}


def read(made: Made, tensors: dict[str, Any], max_bytes: int = 1 << 20, max_rank: int = 8) -> Adapter:
    return made.spans[0].new_adapters(max_bytes, max_rank).read(save(tensors))


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        (pair(rank=9), "too high a rank"),
        (pair(wide_in=33), "32 x 32, got 32 x 33"),
        (pair(wide_out=31), "32 x 32, got 31 x 32"),
        (pair(wide_out=32, name="0.self_attn.k_proj"), "16 x 32, got 32 x 32"),
        (pair(name="1.self_attn.q_proj"), "other blocks"),
        (pair(name="9999.self_attn.q_proj"), "other blocks"),
        (pair(name="0.self_attn"), "self_attn can't be used"),
        (pair(name="0.qkv"), "expected one of mlp.down_proj"),
        (pair(name="0.forward"), "forward can't be used"),
        (pair(name="0.input_layernorm"), "input_layernorm can't be used"),
    ],
)
def test_what_does_not_fit_the_span_is_refused_by_name(llama: Made, tensors: dict[str, Any], why: str) -> None:
    with pytest.raises(BadAdapter, match=why):
        read(llama, tensors)


def test_sizes_have_limits(llama: Made) -> None:
    with pytest.raises(BadAdapter, match="too large"):
        read(llama, pair(), max_bytes=100)
    with pytest.raises(BadAdapter, match="at most 0 bytes"):
        read(llama, pair(), max_bytes=0)


def test_experts_and_routers_take_no_adapter(tmp_path: Path) -> None:
    made = Made(tmp_path, "mixtral")
    assert not [path for path in made.spans[0].new_adapters(1, 1)._places[0] if "mlp" in path]


def _pickle(data: bytes) -> bytes:
    import pickle

    return pickle.dumps({"0.self_attn.q_proj.A": 1})


def _header(text: bytes) -> Callable[[bytes], bytes]:
    return lambda data: struct.pack("<Q", len(text)) + text + data[8 + struct.unpack("<Q", data[:8])[0] :]


@pytest.mark.parametrize(
    "damage",
    [
        _pickle,
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: struct.pack("<Q", 1 << 40) + data[8:],
        lambda data: data.replace(b'"F32"', b'"I32"'),
        lambda data: data.replace(b'"F32"', b'"F64"'),
        lambda data: data.replace(b".q_proj.A", b".q_proj.C"),
        lambda data: data.replace(b"[4,32]", b"[32,4]"),
        lambda data: data.replace(b"[4,32]", b"[0,32]"),
        lambda data: data.replace(b"0.self_attn", b"0./../attn"),
        _header(b"{}"),
        _header(b"[]"),
        _header(b'{"__metadata__":{"a":"b"}}'),
        _header(b"{" * 1000),
        _header(b'{"0.a.A":{"dtype":"F32","shape":[1,-1],"data_offsets":[0,4]}}'),
        _header(b'{"0.a.A":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}'),
        _header(
            b'{"0.a.A":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
            b'"0.a.B":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}'
        ),
    ],
)
def test_a_damaged_blob_is_a_clear_refusal(llama: Made, damage: Callable[[bytes], bytes]) -> None:
    blob = damage(save(pair()))
    with pytest.raises(ProtocolError, match="can't be used"):
        llama.spans[0].new_adapters(1 << 20, 8).read(blob)


@given(st.binary(max_size=300), st.integers(0, 300))
@settings(max_examples=300, deadline=None)
def test_no_bytes_make_the_reader_stumble(noise: bytes, at: int) -> None:
    blob = save(pair())
    for data in (noise, struct.pack("<Q", len(noise)) + noise, blob[:at] + noise + blob[at + len(noise) :]):
        try:
            read_pairs(data)
        except ProtocolError:
            continue


# ---- room


def seated(tokens: int = 4 * PAGE) -> tuple[Seats, Callable[[], Seat], list[float]]:
    span_bytes, now = 2 * 2 * 16 * 4, [0.0]
    from hivemint.node.kv.cache import KvStore
    from hivemint.node.kv.shape import KvShape

    store = KvStore([KvShape(2, 16, 16)], torch.float32, torch.device("cpu"), tokens * span_bytes)
    room = Seats(store, idle=30.0, clock=lambda: now[0])
    return room, lambda: room.open(Lane.PAID, PAGE), now


def weighing(nbytes: int) -> Adapter:
    return Adapter(b"\1" * 32, nbytes, {})


def test_an_adapters_bytes_count_and_come_back() -> None:
    room, seat, _ = seated()
    free, page = room.store.tokens_free, room.store.bytes_per_token * PAGE
    mine = seat()
    room.load(mine, weighing(page + 1))
    assert (mine.pages, room.used(Lane.PAID)) == (2, 2 * PAGE)
    assert room.store.tokens_free == free - 2 * PAGE
    room.close(mine)
    assert (mine.adapter, room.store.tokens_free) == (None, free)


def test_an_adapter_that_finds_no_room_changes_nothing() -> None:
    room, seat, _ = seated()
    page = room.store.bytes_per_token * PAGE
    first, second = seat(), seat()
    room.load(first, weighing(3 * page))
    with pytest.raises(OutOfRoom, match="no room for 128 tokens"):
        room.load(second, weighing(2 * page))
    assert second.adapter is None
    room.load(second, weighing(page))
    assert room.store.tokens_free == 0


def test_an_idle_session_loses_its_adapter_to_one_that_needs_the_room() -> None:
    room, seat, now = seated()
    page = room.store.bytes_per_token * PAGE
    idle, told = seat(), []
    idle.on_evicted = lambda: told.append("evicted")
    room.load(idle, weighing(3 * page))
    now[0] = 29.0
    mine = seat()
    with pytest.raises(OutOfRoom):
        room.load(mine, weighing(2 * page))
    now[0] = 30.0
    room.load(mine, weighing(2 * page))
    assert (idle.adapter, told) == (None, ["evicted"])
    room.close(idle)
    room.close(mine)
    assert room.store.tokens_free == room.store.tokens_total
