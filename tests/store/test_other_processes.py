"""What another handle commits, seals, evicts and pins, seen from this one; second handles take the same code path."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from diskreplay import PrioritizedSampler, ReplayLoader, ReplayStore, StoreLockedError, UniformSampler
from diskreplay.errors import ReplayError
from tests.conftest import fill


@pytest.fixture
def pair(make_store):
    """Return two handles of one store with segments of 8 steps and room for 64."""
    store = make_store(segment_steps=8, capacity=64)
    with ReplayStore.open(store.path, mode="a") as other:
        yield store, other


def same_windows(one, two):
    ids = one.step_ids_of(np.arange(len(one)))
    np.testing.assert_array_equal(two.step_ids_of(np.arange(len(two))), ids)
    left, right = (s.read(ids, n_step=4, frame_stack=3) for s in (one, two))
    for name in ("observation", "reward", "discount", "next_observation"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert one.num_episodes == two.num_episodes


def test_a_new_stream_does_not_cut_the_links_of_others(pair):
    """Its writer may hear of seals that this handle has not taken in yet."""
    actor, learner = pair
    with actor.writer("a") as writer:
        writer.reset(np.zeros(3, np.float32))
        for t in range(30):
            writer.step(0, t, False, False, np.full(3, t + 1, np.float32))
            if t in (5, 11, 20):
                actor.commit()
                learner.refresh()
                learner.writer(f"new-{t}")
        actor.commit()
        learner.refresh()
        same_windows(actor, learner)
        learner.commit()


@pytest.mark.parametrize("kind", [UniformSampler, PrioritizedSampler])
@pytest.mark.parametrize("workers", [0, 1])
def test_sampling_goes_on_while_another_process_evicts(pair, kind, workers):
    """Draws, updates and reads of what went are drawn again; nothing is called damaged."""
    actor, learner = pair
    fill(actor, episodes=6, length=7)
    actor.commit()
    learner.refresh()
    if kind is PrioritizedSampler:
        PrioritizedSampler(learner, seed=0)
        learner.commit()
    sampler = kind(learner, seed=0)
    loader = ReplayLoader(sampler, batch_size=16, n_step=2, prefetch=3, num_workers=workers)
    for round_, batch in enumerate(loader):
        if kind is PrioritizedSampler:
            sampler.update_priorities(batch.step_ids, batch.reward)
        fill(actor, episodes=2, length=7, seed=round_)
        actor.commit()
        if round_ == 25:
            break
    loader.close()
    assert actor.stats().steps_evicted > 100
    learner.refresh()
    if kind is PrioritizedSampler:
        learner.commit()
        assert sampler.check_valid() == (True, "")
    same_windows(actor, learner)


def test_a_reader_samples_beside_a_learner(pair):
    """Its priorities are those of the last commit it saw, or newer; never an error."""
    learner, reader = pair
    ids = fill(learner, episodes=5, length=7)
    sampler = PrioritizedSampler(learner, seed=0)
    learner.commit()
    with ReplayStore.open(learner.path) as other:
        mine = PrioritizedSampler(other, seed=0)
        sampler.set_priorities(ids, np.arange(len(ids)) + 1)
        fill(learner, episodes=1, length=5, seed=1)
        learner.commit()
        for _ in range(10):
            mine.draw(32)
        other.refresh()
        mine.draw(32)
        assert mine.priorities_of(ids[:5]).tolist() == [1, 2, 3, 4, 5]
    reader.refresh()


def test_pins_and_metadata_of_two_processes(pair):
    """A pin holds against every process's evictions; metadata are merged."""
    one, two = pair
    demo = fill(one, episodes=2, length=7, stream="demo")
    one.commit()
    two.refresh()
    one.pin("demo")
    one.update_metadata({"a": 1})
    one.commit()
    two.update_metadata({"b": 2})
    fill(two, episodes=20, length=7, stream="b")
    two.commit()
    two.read(demo)
    one.refresh()
    one.read(demo)
    assert one.metadata == two.metadata == {"a": 1, "b": 2}


def test_a_seal_that_fails_keeps_the_rows_and_the_stream(pair, monkeypatch):
    """They are committed by the next commit, not given away half done."""
    one, two = pair
    writer = one.writer("a")
    writer.reset(np.zeros(3, np.float32))
    for t in range(3):
        writer.step(0, t, False, False, np.zeros(3, np.float32))
    one.commit()
    one.close()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ReplayError, match="No space"):
            two.seal()
    two.commit()
    two.refresh()
    with ReplayStore.open(two.path) as again:
        same_windows(two, again)
        assert len(again) == 3


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_locks_are_not_lost_or_kept(make_store, monkeypatch):
    """A full disk cannot write the holder's name, which is no reason not to have the lock, or to leak it."""
    store = make_store()
    before = open_files()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        writer = store.writer("a")
    for _ in range(5):
        with pytest.raises(StoreLockedError):
            store.writer("a")
    assert open_files() == before + 1
    child = os.fork()
    if not child:
        time.sleep(20)
        os._exit(0)
    writer.close()
    try:
        with ReplayStore.open(store.path, mode="a") as other:
            other.writer("a")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_too_many_open_files_pass(make_store):
    """The read that needs more than there may be fails; the next ones do not."""
    store = make_store(segment_steps=4)
    fill(store, episodes=60, length=5)
    store.seal()
    ids = store.step_ids_of(np.arange(len(store)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    store._engine.residency._budget = 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 60, hard))
    try:
        with pytest.raises(ReplayError, match="Too many open files"):
            store.read(ids)
        assert len(store.read(ids[:8]).reward) == 8
        with ReplayStore.open(store.path) as other:
            assert len(other) == len(store)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_tail_that_was_sealed_and_evicted_unseen(make_store):
    """This handle evicts what it only knows as the tail of another's stream."""
    one = make_store(segment_steps=16, capacity=48)
    with ReplayStore.open(one.path, mode="a") as two:
        fill(one, episodes=1, length=5, stream="a", terminated=False)
        one.commit()
        two.refresh()
        fill(one, episodes=1, length=20, stream="a", terminated=False)
        one.commit()
        fill(two, episodes=1, length=40, stream="b", terminated=False)
        two.commit()
        two.refresh()
        one.refresh()
        same_windows(one, two)
        assert two.verify() == []
