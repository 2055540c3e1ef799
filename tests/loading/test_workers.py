"""Worker processes: an error comes in its turn and leaves none of them behind; they end at once."""

from __future__ import annotations

import atexit
import functools
import gc
import itertools
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from diskreplay import CorruptStoreError, NotEnoughStepsError, PrioritizedSampler, ReplayLoader, UniformSampler
from diskreplay.loading.loader import _PlanReader
from tests.conftest import fill


@pytest.fixture
def store(make_store):
    """Return an open store of some episodes."""
    store = make_store(segment_steps=16)
    fill(store, episodes=8)
    store.commit()
    return store


class FailingAt(UniformSampler):
    """Draw, but for one time."""

    fails_at = 0

    def draw_ahead(self, batch_size):
        self.fails_at -= 1
        if self.fails_at == -1:
            raise NotEnoughStepsError("drawn once too often")
        return super().draw_ahead(batch_size)


def open_files(threads):
    """Count them once every thread but these is over: the ones that feed a queue close it a little later."""
    gc.collect()
    for thread in set(threading.enumerate()) - threads:
        thread.join(20)
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("at", [0, 1, 7])
@pytest.mark.parametrize("persistent", [True, False])
def test_an_error_comes_in_its_turn(store, at, persistent):
    """The first plans are made while torch starts its workers: raised there it would leave them running."""
    sampler = FailingAt(store, seed=0)
    sampler.fails_at = at
    loader = ReplayLoader(sampler, batch_size=8, num_workers=2, prefetch=4, persistent_workers=persistent)
    iterator = iter(loader)
    twin = UniformSampler(store, seed=0)
    for _ in range(at):
        assert np.array_equal(next(iterator).step_ids, twin.draw(8).step_ids)
    with pytest.raises(NotEnoughStepsError, match="once too often") as held:
        next(iterator)
    assert multiprocessing.active_children() == []  # though the error's traceback leads to the iterator
    del held
    again = iter(loader)
    assert len(next(again).step_ids) == 8
    again.close()
    loader.close()
    assert multiprocessing.active_children() == []


def test_a_draw_that_cannot_be_planned_comes_again(store, monkeypatch):
    """As with threads: it is not forgotten in flight, to turn up after a restart."""
    sampler, twin = UniformSampler(store, seed=0), UniformSampler(store, seed=0, name="twin")
    loader = ReplayLoader(sampler, batch_size=8, num_workers=1, prefetch=2)
    plan, plans = loader._planner.plan, itertools.count()

    def fail_once(draw):
        if next(plans) == 1:
            raise CorruptStoreError("once")
        return plan(draw)

    monkeypatch.setattr(loader._planner, "plan", fail_once)
    iterator = iter(loader)
    seen = [next(iterator)]
    with pytest.raises(CorruptStoreError, match="once"):
        next(iterator)
    assert sampler.batches_delivered == 1
    iterator = iter(loader)
    seen += [next(iterator), next(iterator)]
    iterator.close()
    loader.close()
    for batch in seen:
        assert np.array_equal(batch.step_ids, twin.draw(8).step_ids)


def test_after_a_worker_died_another_takes_over(store, monkeypatch, tmp_path):
    """Torch by itself would ask the dead one again, every time."""
    read, dead = _PlanReader.__getitem__, tmp_path / "dead"

    def die_once(self, item):
        if not dead.exists():
            dead.touch()
            os._exit(0)
        return read(self, item)

    monkeypatch.setattr(_PlanReader, "__getitem__", die_once)
    loader = ReplayLoader(
        UniformSampler(store, seed=0), batch_size=8, num_workers=1, timeout=1, multiprocessing_context="fork"
    )
    with pytest.raises(RuntimeError, match="DataLoader"):
        next(iter(loader))
    loader.timeout = 0
    iterator = iter(loader)
    twin = UniformSampler(store, seed=0, name="twin")
    for _ in range(3):
        assert np.array_equal(next(iterator).step_ids, twin.draw(8).step_ids)
    iterator.close()
    loader.close()


def test_nothing_is_left_open_after_an_error(store):
    """Neither processes nor files."""
    sampler = PrioritizedSampler(store, seed=0)
    sampler.set_priorities(store.step_ids_of(np.arange(len(store))), np.zeros(len(store)))
    counts, threads = [], set(threading.enumerate())
    for _ in range(3):
        loader = ReplayLoader(sampler, batch_size=8, num_workers=1)
        with pytest.raises(NotEnoughStepsError, match="every priority is 0"):
            next(iter(loader))
        loader.close()
        assert multiprocessing.active_children() == []
        counts.append(open_files(threads))
    assert counts[1] == counts[2]


def begun(folder, worker):
    """Say so, and that the interpreter finalizes, if it does."""
    (folder / f"begun-{worker}").touch()
    atexit.register((folder / f"finalized-{worker}").touch)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_end_at_once(store, tmp_path, context):
    """Finalization ends threads that are inside torch's C++; now and then a spawned worker died of SIGABRT there."""
    loader = ReplayLoader(
        UniformSampler(store, seed=0),
        batch_size=8,
        num_workers=1,
        multiprocessing_context=context,
        worker_init_fn=functools.partial(begun, tmp_path),
    )
    iterator = iter(loader)
    next(iterator)
    workers = loader._iterator._workers
    iterator.close()
    loader.close()
    for worker in workers:
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0]
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".replay"] == ["begun-0"]


def fails(worker):
    raise ValueError("as asked for")


def test_a_worker_that_cannot_begin_says_so(store):
    loader = ReplayLoader(UniformSampler(store, seed=0), batch_size=8, num_workers=1, worker_init_fn=fails)
    with pytest.raises(ValueError, match="as asked for"):
        next(iter(loader))
    loader.close()


class Broken:
    """What torch iterates by, whose worker died while it handed a batch over."""

    def __init__(self, loader):
        next(iter(loader.sampler))

    def __next__(self):
        raise ConnectionResetError(104, "Connection reset by peer")

    def _shutdown_workers(self):
        pass


def test_a_worker_that_dies_while_it_hands_a_batch_over_is_told(store, monkeypatch):
    """Torch lets through what became of the connection; whoever restarts workers looks for a RuntimeError."""

    def begin(self):
        return Broken(self)

    monkeypatch.setattr(DataLoader, "__iter__", begin)
    loader = ReplayLoader(UniformSampler(store, seed=0), batch_size=8, num_workers=1)
    with pytest.raises(RuntimeError, match="worker process"):
        next(iter(loader))
