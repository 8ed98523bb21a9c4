"""The K/V store: exact counting over any order of events, crop, eviction, refusal instead of overcommitment."""

import random
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hivemint.node.kv import cache as kv_cache
from hivemint.node.kv.cache import SPARE, KvCache, KvStore, OutOfRoom, Tally, free_memory, free_share
from hivemint.node.kv.pages import PAGE, pages_for
from hivemint.node.kv.shape import KvShape

SHAPES = (KvShape(2, 16, 16),) * 3
UNLIKE = (KvShape(2, 24, 16), KvShape(1, 8, 8))
CPU = torch.device("cpu")


def store(pages: int, shapes: tuple[KvShape, ...] = SHAPES, paged: bool = False) -> KvStore:
    per_token = sum(shape.elements for shape in shapes) * 4
    return KvStore(shapes, torch.float32, CPU, pages * PAGE * per_token, paged)


class StoreMachine(RuleBasedStateMachine):
    """Random sessions against a plain count of pages: (length, pages) of each open session."""

    paged = False

    def __init__(self) -> None:
        super().__init__()
        self.store = store(12, paged=self.paged)
        self.sessions: list[tuple[KvCache, list[int]]] = []

    @rule(tokens=st.integers(1, 20 * PAGE))
    def open(self, tokens: int) -> None:
        taken = sum(model[1] for _, model in self.sessions)
        try:
            self.sessions.append((self.store.open(tokens), [0, 0, tokens]))
            assert pages_for(tokens) <= 12
            assert taken < 12
        except OutOfRoom:
            assert pages_for(tokens) > 12 or taken == 12

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), more=st.integers(1, 3 * PAGE))
    def grow(self, data: st.DataObject, more: int) -> None:
        cache, model = data.draw(st.sampled_from(self.sessions))
        length, free = model[0] + more, 12 - sum(m[1] for _, m in self.sessions)
        fits = length <= model[2] and pages_for(length) - model[1] <= free
        try:
            cache.reserve(length)
            cache.length = length
            assert fits
            model[0], model[1] = length, max(model[1], pages_for(length))
        except OutOfRoom:
            assert not fits

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), share=st.floats(0, 1))
    def crop(self, data: st.DataObject, share: float) -> None:
        cache, model = data.draw(st.sampled_from(self.sessions))
        model[0] = int(model[0] * share)
        cache.crop(model[0])

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        cache, model = data.draw(st.sampled_from(self.sessions))
        cache.evict()
        model[0] = model[1] = 0

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.sessions) - 1))
        cache, _ = self.sessions.pop(index)
        cache.close()
        cache.close()

    @invariant()
    def counts_are_exact(self) -> None:
        taken = sum(model[1] for _, model in self.sessions)
        assert self.store.tokens_free == (12 - taken) * PAGE
        assert self.store.bytes_used == taken * PAGE * self.store.bytes_per_token
        assert all(cache.length == model[0] for cache, model in self.sessions)

    @invariant()
    def no_page_has_two_owners(self) -> None:
        if self.paged:
            owned = [page for cache, _ in self.sessions for page in cache.table.tolist()]
            assert len(owned) == len(set(owned)) == sum(model[1] for _, model in self.sessions)
            assert set(owned) <= set(range(1, 13))


class PagedMachine(StoreMachine):
    paged = True


TestStore, TestPagedStore = StoreMachine.TestCase, PagedMachine.TestCase
TestStore.settings = TestPagedStore.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_memory_is_the_sessions_own(lengths: list[int], alike: bool, paged: bool) -> None:
    """What one session writes is what it reads, whatever the others write, grow or give back."""
    shapes = SHAPES if alike else UNLIKE
    room = store(64, shapes, paged)
    caches = [room.open(400) for _ in lengths]
    for mark, (cache, length) in enumerate(zip(caches, lengths, strict=True), start=1):
        cache.reserve(length)
        view = cache.view(0, length)
        for block, shape in enumerate(shapes):
            rows = [torch.full((shape.heads, length, d), mark * 10.0 + block) for d in (shape.key_dim, shape.value_dim)]
            view.write(block, *rows)
        cache.length = length
    caches[0].evict()
    for mark, (cache, length) in enumerate(zip(caches, lengths, strict=True), start=1):
        if mark > 1:
            view = cache.view(length - 1, length)
            for block, shape in enumerate(shapes):
                keys, values = view.read(block)
                assert keys.shape == (1, shape.heads, length, shape.key_dim)
                assert values.shape == (1, shape.heads, length, shape.value_dim)
                assert (keys == mark * 10 + block).all()
                assert (values == mark * 10 + block).all()


def test_a_growing_session_keeps_its_rows_whatever_pages_it_gets() -> None:
    room = store(8, paged=True)
    cache, other = room.open(7 * PAGE), room.open(PAGE)
    cache.reserve(3)
    cache.view(0, 3).write(1, *[torch.full((2, 3, 16), 5.0)] * 2)
    cache.length = 3
    other.reserve(1)
    cache.reserve(2 * PAGE + 1)
    assert cache.pages == 3
    assert room.tokens_free == 4 * PAGE
    cache.view(PAGE, 2 * PAGE + 1).write(1, *[torch.full((2, PAGE + 1, 16), 6.0)] * 2)
    keys, values = cache.view(2 * PAGE, 2 * PAGE + 1).read(1)
    for kept in (keys, values):
        assert (kept[:, :, :3] == 5).all()
        assert (kept[:, :, PAGE:] == 6).all()


def test_memory_is_committed_as_tokens_come_and_given_back() -> None:
    """A session for a million tokens costs nothing until it writes; eviction returns what was written."""
    shapes = (KvShape(4, 64, 64),) * 4
    room = KvStore(shapes, torch.float32, CPU, 1 << 40)
    process = psutil.Process()
    before = process.memory_info().rss
    cache = room.open(1_000_000)
    assert process.memory_info().rss - before < 8 << 20
    cache.reserve(4096)
    ones = torch.ones(4, PAGE, 64)
    for start in range(0, 4096, PAGE):
        view = cache.view(start, start + PAGE)
        for block in range(4):
            view.write(block, ones, ones)
    written = process.memory_info().rss - before
    assert room.bytes_used == 4096 * room.bytes_per_token
    assert 0.9 * room.bytes_used < written < 1.3 * room.bytes_used
    cache.evict()
    assert process.memory_info().rss - before < 0.2 * written
    assert room.bytes_used == 0


class Crowd:
    """Sessions of random sizes that write, grow, crop, are evicted and close in any order."""

    SHAPES = (KvShape(1, 128, 128),) * 2
    row = torch.ones(1, 1, 128)

    def __init__(self, paged: bool, seed: int) -> None:
        self.store = store(40, self.SHAPES, paged)
        self.random = random.Random(seed)
        self.live: list[KvCache] = []

    def one_more(self) -> None:
        try:
            self.live.append(self.store.open(6 * PAGE))
            self.write(self.live[-1], self.random.randint(1, 3 * PAGE))
            other = self.random.choice(self.live)
            other.crop(self.random.randint(0, other.length))
            self.write(other, self.random.randint(other.length + 1, 6 * PAGE + 1))
        except OutOfRoom:
            leaving = self.random.choice(self.live)
            leaving.evict()
            if self.random.random() < 0.7:
                leaving.close()
                self.live.remove(leaving)

    def write(self, cache: KvCache, tokens: int) -> None:
        """The last token only: a leaked session still costs a page of the system's in each block."""
        cache.reserve(tokens)
        view = cache.view(tokens - 1, tokens)
        for block in range(len(self.SHAPES)):
            view.write(block, self.row, self.row)
        cache.length = tokens


@pytest.mark.parametrize("paged", [False, True])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=2, deadline=None)
def test_ten_thousand_sessions_fragment_nothing(paged: bool, seed: int) -> None:
    """The process holds no more than after the first thousand, and at the end one session can have the whole room."""
    crowd, process = Crowd(paged, seed), psutil.Process()
    room = crowd.store
    for _ in range(1000):
        crowd.one_more()
    early = process.memory_info().rss
    for _ in range(9000):
        crowd.one_more()
    assert process.memory_info().rss - early < 8 << 20
    for cache in crowd.live:
        cache.close()
    assert room.bytes_used == 0
    assert room.tokens_free == room.tokens_total == 40 * PAGE
    crowd.write(room.open(40 * PAGE), 40 * PAGE)
    assert room.tokens_free == 0


def test_memory_that_others_took_is_refused_not_overcommitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget says yes, the machine says no."""
    room = store(4)
    cache = room.open(2 * PAGE)
    cache.reserve(PAGE)
    page = PAGE * room.bytes_per_token
    monkeypatch.setattr(kv_cache, "free_memory", lambda: SPARE + page - 1)
    with pytest.raises(OutOfRoom, match="this machine has 128 MB left"):
        cache.reserve(PAGE + 1)
    assert (cache.pages, room.bytes_used) == (1, page)
    monkeypatch.setattr(kv_cache, "free_memory", lambda: SPARE + page)
    cache.reserve(PAGE + 1)


def test_cached_files_of_a_control_group_count_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "_GROUP", tmp_path)
    machine = free_memory()
    (tmp_path / "memory.max").write_text("3000000\n")
    assert free_memory() > machine // 2  # a group without figures: the machine's answer
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 900000\nactive_file 1000000\ninactive_file 500000\n")
    assert free_memory() == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > machine // 2


class Mirror:
    """What every session should hold, token by token, beside a store: the reference for random operations."""

    SHAPES = (KvShape(1, 2, 2), KvShape(1, 2, 2))

    def __init__(self, paged: bool, seed: int, pages: int = 24) -> None:
        self.store = store(pages, self.SHAPES, paged)
        self.tallies = (Tally(), Tally())
        self.sessions: list[tuple[KvCache, int, list[float]]] = []
        self.random = random.Random(seed)
        self.mark = 0.0
        self.refused = self.forks = 0

    def pick(self) -> tuple[KvCache, int, list[float]]:
        return self.random.choice(self.sessions)

    def open(self) -> None:
        group = self.random.randrange(2)
        try:
            cache = self.store.open(self.random.randint(1, 8 * PAGE), self.tallies[group])
        except OutOfRoom:
            assert not self.store.tokens_free
            return self.close()
        self.sessions.append((cache, group, []))
        return None

    def write(self) -> None:
        """A step from anywhere up to the end: it grows, or crops and writes anew."""
        cache, _, kept = self.pick()
        start = self.random.choice((len(kept), self.random.randint(0, len(kept))))
        end = min(cache.max_tokens, start + self.random.randint(1, 2 * PAGE))
        if end == start:
            return
        missing, free, table = cache.missing(end, start), self.store.tokens_free, cache.table
        if missing * PAGE > free:
            with pytest.raises(OutOfRoom):
                cache.reserve(end, start)
            assert cache.table is table
            self.refused += 1
            return
        cache.reserve(end, start)
        assert self.store.tokens_free == free - missing * PAGE
        cache.crop(start)
        rows = torch.arange(self.mark, self.mark + end - start)
        for block in range(2):
            cache.view(start, end).write(block, *[(rows + block / 4).view(1, -1, 1).expand(1, -1, 2)] * 2)
        cache.length, self.mark = end, self.mark + end - start
        kept[start:] = rows.tolist()

    def fork(self) -> None:
        parent, group, kept = self.pick()
        child, its, mine = self.pick()
        count = self.random.randint(0, len(kept))
        if child is parent or its != group or not 0 < count <= child.max_tokens:
            with pytest.raises(ValueError, match="can't begin"):
                child.fork(parent, count)
            return
        mine.clear()
        with suppress(OutOfRoom):
            child.fork(parent, count)()
            mine[:] = kept[:count]
            self.forks += 1

    def evict(self) -> None:
        cache, _, kept = self.pick()
        cache.evict()
        kept.clear()

    def close(self) -> None:
        cache, _, _ = self.sessions.pop(self.random.randrange(len(self.sessions)))
        cache.close()
        cache.close()

    def check(self) -> None:
        """Each page that is in use counts once, in all and for its group; nothing has been overwritten."""
        for group, tally in enumerate(self.tallies):
            caches = [cache for cache, its, _ in self.sessions if its == group]
            tables = [cache.table.tolist() for cache in caches]
            if self.store.pool is None:
                assert tally.pages == sum(cache.pages for cache in caches)
            else:
                assert tally.pages == len({page for table in tables for page in table})
                assert all(
                    len(table) == len(set(table)) == cache.pages for table, cache in zip(tables, caches, strict=True)
                )
        assert self.store.tokens_free == self.store.tokens_total - PAGE * sum(tally.pages for tally in self.tallies)
        for cache, _, kept in self.sessions:
            assert cache.length == len(kept)
            for block in range(2) if kept else ():
                for memory in cache.view(len(kept) - 1, len(kept)).read(block):
                    assert memory[0, 0, :, 0].tolist() == [mark + block / 4 for mark in kept]


@pytest.mark.parametrize("paged", [False, True], ids=["slotted", "paged"])
def test_ten_thousand_operations_with_shared_beginnings(paged: bool) -> None:
    mirror = Mirror(paged, seed=7)
    for number in range(10_000):
        if len(mirror.sessions) < 2:
            mirror.open()
        elif len(mirror.sessions) > 12:
            mirror.close()
        else:
            kinds = (mirror.open, mirror.write, mirror.fork, mirror.evict, mirror.close)
            mirror.random.choices(kinds, (2, 12, 6, 1, 1))[0]()
        if number % 10 == 0:
            mirror.check()
    assert mirror.refused > 50
    assert mirror.forks > 500
    while mirror.sessions:
        mirror.close()
    assert mirror.store.bytes_used == 0
    if mirror.store.pool is not None:
        assert sorted(mirror.store.pool._free) == list(range(1, 25))


def test_a_shared_beginning_is_there_once_and_outlives_its_parent() -> None:
    room = store(8, paged=True)
    parent, child = room.open(6 * PAGE), room.open(6 * PAGE)
    parent.reserve(3 * PAGE)
    parent.view(0, 3 * PAGE).write(0, *[torch.full((2, 3 * PAGE, 16), 3.0)] * 2)
    parent.length = 3 * PAGE
    child.fork(parent, 2 * PAGE + 5)()
    assert room.tokens_free == 4 * PAGE, "two pages are shared, the third is copied"
    parent.reserve(PAGE, 7)  # goes back, and writes
    parent.crop(7)
    parent.view(7, PAGE).write(0, *[torch.full((2, PAGE - 7, 16), 9.0)] * 2)
    assert room.tokens_free == 3 * PAGE, "one page of its own"
    assert (child.view(0, 2 * PAGE + 5).read(0)[0] == 3).all()
    keys = parent.view(0, PAGE).read(0)[0]
    assert (keys[:, :, :7] == 3).all()
    assert (keys[:, :, 7:] == 9).all()
    parent.evict()
    parent.close()
    assert room.tokens_free == 5 * PAGE
    assert (child.view(0, 2 * PAGE + 5).read(0)[1] == 3).all()
    child.close()
    assert room.bytes_used == 0


def test_refusals_say_what_is_there() -> None:
    room = store(2)
    with pytest.raises(OutOfRoom, match="128 tokens in all"):
        room.open(2 * PAGE + 1)
    first, second = room.open(2 * PAGE), room.open(PAGE)
    first.reserve(PAGE + 1)
    with pytest.raises(OutOfRoom, match="0 of 128 tokens are free"):
        second.reserve(1)
    with pytest.raises(OutOfRoom, match="opened for 64"):
        second.reserve(PAGE + 1)
    with pytest.raises(OutOfRoom, match="every K/V page is taken"):
        room.open(1)
    first.close()
    second.reserve(1)
    with pytest.raises(OutOfRoom, match="closed"):
        first.reserve(1)
    with pytest.raises(ValueError, match="cannot crop"):
        second.crop(1)


def test_default_budget_is_a_share_of_free_memory() -> None:
    assert 0 < free_share(CPU) < psutil.virtual_memory().total
