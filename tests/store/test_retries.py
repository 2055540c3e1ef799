"""What fails, or seems to, or is interrupted, and is then tried again with other content or by somebody else."""

from __future__ import annotations

import numpy as np
import pytest

from diskreplay import ReplayError, ReplayStore, StoreFullError, StoreLockedError, WriterStateError
from diskreplay.storage.commit import Committer
from diskreplay.storage.engine import Engine
from diskreplay.storage.environment import Environment
from tests.conftest import failing, fill


def say_nothing_is_wrong(store):
    """Compare a store with itself, and with what a new handle sees."""
    assert [problem for problem in store.verify() if problem.kind != "orphan"] == []
    with ReplayStore.open(store.path) as reader:
        ids = store.step_ids_of(np.arange(len(store)))
        assert np.array_equal(ids, reader.step_ids_of(np.arange(len(reader))))
        for mine, theirs in zip(*(s.read(ids, frame_stack=3).observation for s in (store, reader)), strict=True):
            assert np.array_equal(mine, theirs)
        assert store.num_episodes == reader.num_episodes


def sealed_though_it_failed(make_store):
    """Return a store whose handle does not know that segment 1 is sealed: committing it failed, and counts."""
    store = make_store()
    fill(store, stream="z", episodes=1, length=3)
    store.seal()
    fill(store, episodes=1, length=12)
    with failing(counts=True), pytest.raises(ReplayError):
        store.seal()
    return store


def test_a_writer_that_closes_while_its_tail_is_sealed(make_store, monkeypatch):
    """Its rows are committed, but the stream is not free: the next writer's rows would go with the tail."""
    store = make_store()
    writer = store.writer("a")
    writer.write_episode(np.zeros((6, 3), np.float32), np.zeros(5, int), np.ones(5), np.zeros(5, bool), np.ones(5) > 2)
    store.commit()
    write = store._engine.writer.write

    def slow(*args):
        writer.close()
        with ReplayStore.open(store.path, mode="a") as other, pytest.raises(StoreLockedError):
            other.writer("a")
        return write(*args)

    monkeypatch.setattr(store._engine.writer, "write", slow)
    store.seal()
    with ReplayStore.open(store.path, mode="a") as other:
        fill(other)
        other.commit()
    store.refresh()
    assert len(store) == 55
    say_nothing_is_wrong(store)


def test_a_stream_that_could_not_be_made(make_store):
    """Nothing knows of it, and its number is the next one's."""
    store = make_store()
    with failing(counts=False), pytest.raises(ReplayError):
        store.writer("demo")
    with pytest.raises(ValueError, match="no stream 'demo'"):
        store.pin("demo")
    with ReplayStore.open(store.path, mode="a") as other:
        fill(other, stream="theirs")
        other.commit()
    fill(store, stream="mine")
    store.commit()
    assert store.streams == ("theirs", "mine")
    say_nothing_is_wrong(store)


def test_a_segment_that_went_between_a_seal_that_seemed_to_fail_and_the_next(make_store):
    """It does not come back."""
    store = sealed_though_it_failed(make_store)
    with ReplayStore.open(store.path, mode="a") as other:
        fill(other, stream="b", episodes=1, length=10)
        other.seal()
        assert other.evict(4) == 15
        other.commit()
    fill(store, stream="c", episodes=1, length=7)
    store.commit()
    store.refresh()
    assert len(store) == 17
    say_nothing_is_wrong(store)


def test_a_step_that_could_not_be_kept_ends_its_episode(make_store, monkeypatch):
    """Otherwise the next step would join an observation from before it."""
    store = make_store()
    writer = store.writer("a")
    seen = [np.full(3, i, np.float32) for i in range(40)]
    writer.reset(seen[0])
    for i in range(15):
        writer.step(0, i, False, False, seen[i + 1])

    def full(*_):
        raise StoreFullError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "take_segments", full)
        with pytest.raises(StoreFullError):
            writer.step(0, 15, False, False, seen[16])
    assert writer.steps == 15
    with pytest.raises(WriterStateError, match="outside an episode"):
        writer.step(0, 16, False, False, seen[17])
    writer.reset(seen[20])
    writer.step(0, 20, False, True, seen[21])
    store.commit()
    found = store.read(store.step_ids_of(np.arange(16)))
    assert (found.next_observation[:, 0] - found.observation[:, 0]).tolist() == [1.0] * 16
    say_nothing_is_wrong(store)


@pytest.mark.parametrize("name", ["_follow", "_sweep"])
def test_an_interrupt_when_the_commit_has_just_been_made(make_store, monkeypatch, name):
    """Where tables may be half-way between two states the handle is not used again; it was durable all the same."""
    store = make_store()
    fill(store, episodes=1, length=30)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    writer = store.writer("a")
    writer.reset(np.zeros(3, np.float32))
    for _ in range(5):
        writer.step(0, 0.0, False, False, np.ones(3, np.float32))
    with monkeypatch.context() as patch:
        patch.setattr(Committer, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.seal()
    if name == "_follow":
        for refused in (store.commit, store.seal, lambda: store.read([0])):
            with pytest.raises(ReplayError, match="interrupted half-way"):
                refused()
        writer.close()
        store.close()
        store = ReplayStore.open(store.path, mode="a")
    writer.close()
    fill(store, episodes=1, length=30)
    store.seal()
    assert len(store) == 65
    say_nothing_is_wrong(store)


def test_a_stream_made_by_others_after_a_seal_that_seemed_to_fail(make_store):
    """Its segments come to be known before the stream itself."""
    store = make_store()
    fill(store, stream="z")
    store.seal()
    fill(store, episodes=1, length=7)
    with failing(counts=True), pytest.raises(ReplayError):
        store.seal()
    with ReplayStore.open(store.path, mode="a") as other:
        fill(other, stream="b")
        other.seal()
    for _ in range(2):
        store.refresh()
    assert len(store) == 107
    store.commit()
    say_nothing_is_wrong(store)


def test_an_interrupt_before_the_index_commits_holds_nobody_up(make_store, monkeypatch):
    """LMDB's write lock is given back, although the traceback lives."""
    store = make_store()
    fill(store)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Environment, "_commit", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            store.commit()
    with ReplayStore.open(store.path, mode="a") as other:
        fill(other, stream="b")
        other.commit()
    store.commit()
    store.refresh()
    assert caught.value is not None
    say_nothing_is_wrong(store)


def test_a_stream_that_could_not_be_taken_over_stays_free(make_store, monkeypatch):
    """Leftovers of its last writer cannot be moved aside on a full disk, say."""
    store = make_store()
    fill(store)
    store.commit()

    def full(*_):
        raise StoreFullError("no room")

    with ReplayStore.open(store.path, mode="a") as other:
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "_set_aside_leftovers", full)
            with pytest.raises(StoreFullError):
                other.writer("a")
        fill(store)
        store.commit()
        fill(other)
        other.commit()
    store.refresh()
    say_nothing_is_wrong(store)
