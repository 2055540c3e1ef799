"""What a process that dies leaves: set aside by the stream's next writer, unlinked by the next commit."""

from __future__ import annotations

import os

import numpy as np
import pytest

from diskreplay import ReplayError, ReplayStore, StoreFullError
from diskreplay.storage.durable import PARTIAL, Disk
from tests.conftest import fill


def names(path):
    return sorted(str(p.relative_to(path)) for p in path.glob("steps/*/c.*"))


class DiedError(Exception):
    """The process dies here."""


class FailingDisk(Disk):
    """Raise at one call of one kind: before an unlink, after shards got their names."""

    def __init__(self, method, at, error=DiedError):
        super().__init__()
        self.method, self.left, self.error = method, at, error

    def _count(self, method):
        if method == self.method:
            self.left -= 1
            if self.left == 0:
                raise self.error("here")

    def settle(self, staged):
        super().settle(staged)
        if staged and staged[0].path.name.startswith("c."):
            self._count("settle")

    def unlink(self, path):
        self._count("unlink")
        super().unlink(path)


def test_shards_that_were_never_committed_are_set_aside(make_store):
    """By the next writer of the stream, without looking through folders; verify is content then."""
    store = make_store(segment_steps=8)
    fill(store, episodes=2, length=3)
    store.commit()
    path = store.path
    store.close()
    dying = ReplayStore(path, "a", FailingDisk("settle", 2))
    with pytest.raises(DiedError):
        fill(dying, episodes=2, length=40)
    dying._engine.close()  # as a killed process's locks go
    before = names(path)
    (path / "steps/reward" / f"c.99{PARTIAL}").write_bytes(b"half")
    with ReplayStore.open(path, mode="a") as again:
        assert [p.kind for p in again.verify() if p.kind == "orphan"]
        writer = again.writer("a")
        writer.close()
        again.commit()
        moved = sorted(str(p.relative_to(path / "lost+found")) for p in path.glob("lost+found/steps/*/c.*"))
        assert moved
        assert set(moved) | set(names(path)) >= set(before)
        fill(again, episodes=6, length=6)
        again.commit()
        (path / "steps/reward" / f"c.99{PARTIAL}").unlink(missing_ok=True)
        assert again.verify() == []
        assert again.num_episodes == 2 + 1 + 6  # one was committed when its segments were full


def test_evicted_shards_are_unlinked_by_whoever_commits_next(make_store):
    """The index lists them from the eviction on, until a commit after their removal."""
    store = make_store(segment_steps=8, capacity=40)
    fill(store, episodes=4, length=9)
    store.commit()
    path = store.path
    store.close()
    dying = ReplayStore(path, "a", FailingDisk("unlink", 40))
    with pytest.raises(DiedError):
        fill(dying, episodes=40, length=9)
    dying._engine.close()
    with ReplayStore.open(path, mode="a") as again:
        with again._index.read() as txn:
            garbage = [int.from_bytes(key, "big") for key, _ in txn.items("garbage")]
        live = set(again._engine.table.segment.tolist())
        assert garbage
        assert not live & set(garbage)
        assert [p for p in again.verify() if p.kind != "orphan"] == []
        again.writer("a").close()
        again.commit()
        assert {int(name.split(".")[1]) for name in names(path)} <= live
        again.commit()
        with again._index.read() as txn:
            assert list(txn.items("garbage")) == []
        assert again.verify() == []


@pytest.mark.parametrize("options", [{"capacity": 32}, {"capacity": "2kB"}])
@pytest.mark.parametrize("shards", [29, 32, 36, 40])
def test_a_full_disk_evicts_what_the_capacity_says_is_over(make_store, shards, options):
    """Then the commit is tried once more; nobody has to do anything. What is about to be committed counts."""

    class FullDisk(Disk):
        """A disk with room for so many shards, half-written ones included."""

        def stage(self, path, data):
            if path.name.startswith("c.") and len(list(path.parents[1].glob("*/c.*"))) >= shards:
                raise StoreFullError(f"{path}: full")
            return super().stage(path, data)

    store = make_store(segment_steps=8, **options)
    path = store.path
    store.close()
    with ReplayStore(path, "a", FullDisk()) as full:
        for i in range(20):
            fill(full, episodes=2, length=9, seed=i)
            full.commit()
        assert 0 < len(full) <= 40
        assert full.verify() == []


def test_a_full_disk_evicts_no_more_than_the_capacity_says(make_store):
    """An episode's last observation is a row, and no step."""

    class ScarceDisk(Disk):
        """A disk that has no room at first."""

        scarce = False

        def stage(self, path, data):
            if self.scarce:
                self.scarce = False
                raise StoreFullError(f"{path}: full")
            return super().stage(path, data)

    path = make_store(segment_steps=8, capacity=6 * 7).path
    disk = ScarceDisk()
    with ReplayStore(path, "a", disk) as store:
        fill(store, episodes=5, length=7)  # 8 rows each, a segment
        disk.scarce = True
        with pytest.raises(StoreFullError):  # nothing is over, so nothing makes room
            fill(store, episodes=1, length=7)
        store.commit()
        assert len(store) == 6 * 7
        disk.scarce = True
        fill(store, episodes=1, length=7)
        assert len(store) == 6 * 7
        assert store.stats().steps_evicted == 7


def test_evict_on_demand(make_store):
    """Whole segments, oldest first; what is gone is counted."""
    store = make_store(segment_steps=8)
    fill(store, episodes=10, length=10)
    store.commit()
    ids = store.step_ids_of(np.arange(len(store)))
    gone = store.evict(20)
    assert 20 <= gone < 28
    assert store.step_ids_of(np.arange(len(store))).tolist() == ids[gone:].tolist()
    assert store.stats().steps_evicted == gone
    assert store.verify() == []
    store.pin("a")
    assert store.evict(5) == 0
    with pytest.raises(ValueError, match="transitions"):
        store.evict(0)


def test_capacity_counts_what_all_processes_hold(make_store):
    """Evictions go by the index's counts, not by what one handle has seen."""
    store = make_store(segment_steps=8, capacity=80)
    handles = [ReplayStore.open(store.path, mode="a") for _ in range(4)]
    for turn in range(6):
        for number, handle in enumerate(handles):
            fill(handle, episodes=2, length=8, stream=f"actor-{number}", seed=turn)
            handle.commit()
    store.refresh()
    assert len(store) <= 80
    with store._index.read() as txn:
        assert int(txn.counters()["transitions"]) == len(store)
    for handle in handles:
        handle.refresh()
        assert len(handle) == len(store)
        handle.close()


def test_too_many_open_files_is_an_error_that_says_so(make_store):
    """And nothing is lost by it."""
    import resource

    store = make_store(segment_steps=8)
    fill(store, episodes=3, length=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with pytest.raises(OSError, match="Too many"):
            held.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(300))
        while True:
            try:
                held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        with pytest.raises(ReplayError, match="Too many open files") as caught:
            store.seal()
        assert "ulimit" in caught.value.hint
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    store.seal()
    assert store.verify() == []
    assert len(store) == 12
