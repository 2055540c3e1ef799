"""What a sampler commits, in blocks and journal, against a dictionary from step ids to priorities."""

from __future__ import annotations

import contextlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diskreplay import PrioritizedSampler, ReplayError, ReplayStore
from diskreplay.sampling import changes
from diskreplay.storage import layout
from diskreplay.storage.index import Index
from diskreplay.storage.transactions import Writing
from tests.conftest import failing, fill
from tests.storage.fabricated import fabricate

SIZES = {"LEAST": 8, "MOST": 24, "SHARE": 8, "JOIN": 3, "RECORD": 5, "KEPT": 6}
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            [*["update"] * 6, *["set"] * 2, "write", "commit", "fail", "unclear", "evict", "reopen", "look"]
        ),
        st.integers(0, 1 << 30),
    ),
    min_size=10,
    max_size=60,
)


@contextlib.contextmanager
def small(dense):
    """Make everything that is bounded small."""
    with contextlib.ExitStack() as stack:
        for name, value in (SIZES | {"DENSE": dense}).items():
            stack.enter_context(mock.patch.object(changes, name, value))
        stack.enter_context(mock.patch.object(layout, "PRIORITY_BLOCK", 5))
        yield


class Life:
    """A store, a sampler, and what its priorities are and were at the last commit."""

    def __init__(self, path, spec):
        self.store = ReplayStore.create(path, spec, segment_steps=16)
        self.sampler = PrioritizedSampler(self.store, seed=0)
        self.now, self.kept, self.largest = {}, {}, {"now": 1.0, "kept": 1.0}
        self.most = 0

    def write(self, rng):
        before, stream = self.commits(), str(rng.choice(["a", "b"]))
        for i in fill(self.store, episodes=1, length=int(rng.integers(1, 30)), stream=stream).tolist():
            self.now[i] = self.largest["now"]
        if self.commits() > before:
            self.keep()  # a segment was full

    def update(self, rng):
        self.set(rng)
        self.commit(rng)

    def commits(self):
        with self.store._index.read() as txn:
            return int(txn.counters()["commits"])

    def set(self, rng):
        if self.now:
            at, ids = int(rng.integers(len(self.now))), sorted(self.now)
            near = ids[at : at + int(rng.integers(1, 7))]  # most of a block or two
            ids = rng.choice(near if rng.random() < 0.5 else ids, size=int(rng.integers(1, 9)))
            values = rng.integers(0, 50, size=len(ids)).astype(np.float32)
            self.sampler.set_priorities(ids, values)
            self.now |= dict(zip(ids.tolist(), values.tolist(), strict=True))
            self.largest["now"] = max(self.largest["now"], float(values.max()))

    def updates(self):
        return dict(self.store.access.list_updates("prioritized"))

    def note(self, before):
        """Note how many entries one commit had."""
        after = self.updates()
        self.most = max(self.most, sum(n for number, n in after.items() if number not in before))
        return after

    def commit(self, _rng):
        before = self.updates()
        self.store.commit()
        self.keep()
        after = self.note(before)
        entries = self.sampler._priorities._changes._entries
        assert entries is None or entries == after
        assert sum(after.values()) <= 2 * SIZES["MOST"] + 2 * self.most + SIZES["JOIN"]

    def keep(self):
        self.kept, self.largest["kept"] = dict(self.now), self.largest["now"]

    def fail(self, _rng):
        with failing(counts=False), pytest.raises(ReplayError):
            self.store.commit()

    def unclear(self, rng):
        before = self.updates()
        for _ in range(int(rng.integers(1, 3))):
            with failing(counts=bool(rng.random() < 0.7)), pytest.raises(ReplayError):
                self.store.commit()
            for _ in range(int(rng.integers(0, 4))):  # the next commit has more to say, and plans otherwise
                self.set(rng)
            if rng.random() < 0.3:
                self.sampler.forget_priorities()
                self.now, self.largest["now"] = dict.fromkeys(self.now, 1.0), 1.0
        if rng.random() < 0.3:
            with failing(counts=True), pytest.raises(ReplayError):
                self.store.commit()
            self.keep()
            self.reopen(rng)
            self.note(before)
        else:
            self.note(before)
            self.commit(rng)

    def evict(self, rng):
        self.commit(rng)
        self.store.evict(int(rng.integers(1, 20)))
        live = self.sampler.store.access.live_segments()[0]
        self.now = {i: p for i, p in self.now.items() if i // 16 in live}
        self.kept = dict(self.now)

    def reopen(self, _rng):
        self.store.close()
        self.store = ReplayStore.open(self.store.path, mode="a")
        self.sampler = PrioritizedSampler(self.store, seed=0)
        self.now, self.largest["now"] = dict(self.kept), self.largest["kept"]
        assert self.sampler.largest == self.largest["kept"]

    def look(self, rng):
        """Some blocks only, so that others stay unloaded; as their owner, and as a reader."""
        some = [i for i in self.now if rng.random() < 0.2]
        assert self.sampler.priorities_of(some).tolist() == [self.now[i] for i in some]
        with ReplayStore.open(self.store.path) as reader:
            twin = PrioritizedSampler(reader, seed=0)
            some = [i for i in self.kept if rng.random() < 0.5]
            assert twin.priorities_of(some).tolist() == [self.kept[i] for i in some]

    def check(self):
        ids = sorted(self.now)
        assert self.sampler.priorities_of(ids).tolist() == [self.now[i] for i in ids]
        assert self.sampler.check_valid() == (True, "")
        assert self.sampler.total == pytest.approx(sum(p**0.6 for p in self.now.values()))
        self.store.commit()
        assert [p for p in self.store.verify() if p.kind != "orphan"] == []
        assert sorted(np.concatenate([np.zeros(0), *self.store.priorities()])) == sorted(self.now.values())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=OPERATIONS, dense=st.sampled_from([0, 1, 2, 24]))
def test_priorities_are_those_of_the_last_commit(tmp_path_factory, spec, operations, dense):
    """Whatever came in between: updates, new rows, evictions, commits that failed, or seemed to; readers too."""
    with small(dense):
        life = Life(tmp_path_factory.mktemp("life") / "s.replay", spec)
        try:
            for seed in range(3):
                life.write(np.random.default_rng(seed))
            for name, seed in operations:
                getattr(life, name)(np.random.default_rng(seed))
            life.check()
            life.keep()
            life.reopen(None)
            life.check()
        finally:
            life.store.close()


def test_the_journal_is_used_swept_and_read(tmp_path, spec):
    """That the test above goes all ways: records joined, cut, swept; blocks written that were never loaded."""
    with small(0):
        life, rng = Life(tmp_path / "s.replay", spec), np.random.default_rng(1)
        for _ in range(20):
            life.write(rng)
        life.commit(rng)
        seen, loaded = set(), []
        load = life.store.access.load_priorities
        for turn in range(60):
            if turn % 20 == 0:
                life.reopen(rng)
                load = life.store.access.load_priorities
                life.store.access.load_priorities = lambda *a, load=load: loaded.append(a[1]) or load(*a)
            life.set(rng)
            life.commit(rng)
            seen |= {number for number, _ in life.store.access.list_updates("prioritized")}
        assert len(seen) > 30
        assert min(number for number, _ in life.store.access.list_updates("prioritized")) > 5
        life.check()
        life.store.close()


@pytest.mark.parametrize("segments", [200, 2000])
def test_a_commit_writes_in_proportion_to_what_changed(tmp_path, segments):
    """Scattered updates of a store ten times as large cost the same."""
    path = fabricate(tmp_path / "s.replay", segments)
    with ReplayStore.open(path, mode="a") as store:
        sampler, rng, sizes = PrioritizedSampler(store, seed=0), np.random.default_rng(0), []
        put = Writing.put

        def counted(self, database, key, payload):
            sizes[-1] += len(payload)
            put(self, database, key, payload)

        with mock.patch.object(Writing, "put", counted):
            for _ in range(12):
                ids = rng.integers(segments * 4096, size=200)
                sampler.set_priorities(ids, rng.random(200))
                sizes.append(0)
                store.commit()
        assert max(sizes) < 200 * 120 + changes.JOIN * 12
        with mock.patch.object(changes, "LEAST", 1000), mock.patch.object(changes, "MOST", 1000):
            for _ in range(12):
                sampler.set_priorities(rng.integers(segments * 4096, size=200), rng.random(200))
                store.commit()
            assert sum(n for _, n in store.access.list_updates("prioritized")) < 1500 + changes.JOIN


def test_a_damaged_record_of_the_journal(tmp_path, spec):
    """It is named; opening refuses to draw; a repair goes back to what the blocks hold."""
    from diskreplay.storage.upkeep.repair import apply, plan_repair
    from diskreplay.storage.upkeep.verify import verify_path

    with small(0):
        life, rng = Life(tmp_path / "s.replay", spec), np.random.default_rng(3)
        for _ in range(4):
            life.write(rng)
        life.commit(rng)
        for _ in range(3):
            life.set(rng)
            life.commit(rng)
        number = life.store.access.list_updates("prioritized")[-1][0]
        life.store.close()
        index = Index(life.store.path / layout.INDEX)
        with index.write() as txn:
            key = layout.update_key("prioritized", number)
            value = bytearray(txn.raw("updates", key))
            value[-6] ^= 1
            txn.txn.put(key, bytes(value), db=txn.databases["updates"])
            txn.transaction.changed = True
        index.close()
        found = verify_path(life.store.path, quick=True)
        assert any(
            f"number {number}" in problem.where and problem.kind == "damaged record" for problem in found.problems
        )
        with ReplayStore.open(life.store.path, mode="a") as store, pytest.raises(ReplayError, match="updates"):
            PrioritizedSampler(store, seed=0).draw(4)
        plan = plan_repair(life.store.path)
        apply(plan)
        assert verify_path(life.store.path).sound
        with ReplayStore.open(life.store.path, mode="a") as store:
            sampler = PrioritizedSampler(store, seed=0)
            ids = sorted(life.kept)
            same = sampler.priorities_of(ids) == np.array([life.kept[i] for i in ids], np.float32)
            assert 0 < (~same).sum() <= 5
            store.commit()
            assert sampler.check_valid() == (True, "")


def test_a_record_joined_by_a_commit_that_seemed_to_fail_is_not_lost(tmp_path, spec):
    """The next commit has nothing for the journal: its blocks are written whole."""
    store = ReplayStore.create(tmp_path / "s.replay", spec, segment_steps=4096)
    ids = fill(store, episodes=1, length=12_000)
    sampler = PrioritizedSampler(store, seed=0)
    store.commit()
    sampler.set_priorities(ids[:10], np.full(10, 5.0))
    store.commit()
    sampler.set_priorities(ids[5000:5010], np.full(10, 7.0))
    with failing(counts=True), pytest.raises(ReplayError):
        store.commit()
    sampler.set_priorities(ids[4200:6200], np.full(2000, 7.0))
    store.commit()
    expected = sampler.priorities_of(ids)
    store.close()
    with ReplayStore.open(store.path, mode="a") as store:
        assert np.array_equal(PrioritizedSampler(store, seed=0).priorities_of(ids), expected)
        assert store.verify() == []
