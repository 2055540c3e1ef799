"""Two threads, or a thread and another process, at one moment; and interrupts between two lines."""

from __future__ import annotations

import threading
import time
from unittest import mock

import numpy as np
import pytest

from diskreplay import (
    CorruptStoreError,
    PrioritizedSampler,
    ReplayError,
    ReplayStore,
    StoreLockedError,
    WriterStateError,
)
from diskreplay.sampling.segment_priorities import Changes
from diskreplay.storage import sharing
from diskreplay.storage.table import SegmentTable
from tests.conftest import failing, fill
from tests.store.test_retries import say_nothing_is_wrong, sealed_though_it_failed

SEEN = np.zeros(3, np.float32)
PATIENCE = 20


def in_thread(function):
    """Call a function in a thread; return it, and what it raised."""
    raised = []

    def work():
        try:
            function()
        except ReplayError as err:
            raised.append(err)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, raised


def waiting_writes(store, monkeypatch):
    """Return two events: the first says that shards wait to be written, the second lets them be."""
    write, writing, go_on = store._engine.writer.write, threading.Event(), threading.Event()

    def slow(*args):
        writing.set()
        assert go_on.wait(PATIENCE)
        return write(*args)

    monkeypatch.setattr(store._engine.writer, "write", slow)
    return writing, go_on


@pytest.mark.parametrize("ends", ["close", "episode"])
def test_a_step_whose_writer_is_closed_meanwhile_is_refused(make_store, ends):
    """It was written behind the end of its episode: a row that nobody had observed."""
    store = make_store()
    fill(store)
    writer = store.writer("a")
    writer.reset(SEEN)
    writer.step(0, 0.0, False, False, SEEN)
    with store.lock:
        checked = threading.Event()
        with mock.patch("diskreplay.store.writer.check_reward", lambda given: checked.set() or np.float32(given)):
            thread, raised = in_thread(lambda: writer.step(0, 7.0, False, False, SEEN + 1))
            assert checked.wait(PATIENCE)
        if ends == "close":
            writer.close()
        else:
            writer.step(0, 0.0, True, False, SEEN)
    thread.join(PATIENCE)
    assert [type(err) for err in raised] == [WriterStateError]
    store.commit()
    assert writer.steps == 51 + (ends == "episode")
    assert 7.0 not in store.read(store.step_ids_of(np.arange(len(store)))).reward
    say_nothing_is_wrong(store)


def test_a_store_that_is_closed_while_it_seals_keeps_its_streams_till_then(make_store, monkeypatch):
    """The next writer's shard had the same name; it was written over."""
    store = make_store()
    fill(store, episodes=1, length=12)
    writing, go_on = waiting_writes(store, monkeypatch)
    sealing, raised = in_thread(store.seal)
    assert writing.wait(PATIENCE)
    closing, _ = in_thread(store.close)
    closing.join(0.2)
    with ReplayStore.open(store.path, mode="a") as other, pytest.raises(StoreLockedError):
        other.writer("a")
    go_on.set()
    for thread in (sealing, closing):
        thread.join(PATIENCE)
    assert not raised
    with ReplayStore.open(store.path, mode="a") as other:
        assert len(other) == 12
        fill(other, episodes=1, length=5)
        other.commit()
        say_nothing_is_wrong(other)


def test_an_index_is_not_closed_while_somebody_reads_it(make_store):
    """The map went away under the reader: a segmentation fault."""
    store = make_store()
    fill(store)
    store.commit()
    with store._index.read() as txn:
        before = txn.counters()
        closing, _ = in_thread(store.close)
        closing.join(0.3)
        assert closing.is_alive()
        assert txn.counters() == before
    closing.join(PATIENCE)
    assert not closing.is_alive()
    with pytest.raises(ReplayError, match="closed"):
        store.refresh()


def test_a_quarantine_takes_no_sound_segment_along(make_store):
    """Neither where an earlier one was evicted by another process, nor where no file can be opened just now."""
    store = make_store()
    fill(store, episodes=1, length=110)
    store.seal()
    with ReplayStore.open(store.path, mode="a") as other:
        other.evict(1)
    assert store.quarantine(4, "planted")
    store.commit()
    assert set(store.quarantined) == {4}
    rows = store._engine.reader.rows
    with mock.patch.object(store._engine.reader, "rows", side_effect=ReplayError("too many open files")):
        with pytest.raises(ReplayError, match="open files"):
            store.quarantine(3, "planted")
        assert set(store._engine.quarantined) == {4}

    def damaged(field, slots, at):
        if field == "reward" and store._engine.table.segment[slots[0]] == 1:
            raise CorruptStoreError("planted", segment=1)
        return rows(field, slots, at)

    with mock.patch.object(store._engine.reader, "rows", damaged):
        assert store.quarantine(3, "planted")
    store.commit()
    assert set(store.quarantined) == {1, 3, 4}
    say_nothing_else_is_wrong(store)


@pytest.mark.parametrize("method", ["fill", "cut_after"])
def test_a_refresh_that_is_interrupted(make_store, method):
    """The handle says so, instead of showing other steps, or quarantining a segment half taken in."""
    store = make_store()
    fill(store, episodes=1, length=40)
    store.seal()
    with ReplayStore.open(store.path) as reader:
        fill(store, episodes=1, length=30)
        store.seal()
        store.quarantine(2, "planted")
        store.commit()
        with mock.patch.object(SegmentTable, method, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            reader.refresh()
        for use in (reader.refresh, lambda: reader.read([0])):
            with pytest.raises(ReplayError, match="half-way"):
                use()
    store.close()


@pytest.mark.parametrize("where", ["touch", "put_all"])
def test_an_update_that_is_interrupted_is_done(make_store, where):
    """Sums and priorities belong together: what was committed did not add up."""
    store = make_store(segment_steps=2500)
    ids = fill(store, episodes=20, length=100)
    sampler = PrioritizedSampler(store, seed=0)
    sampler.set_priorities(ids, np.ones(len(ids)))
    store.commit()
    place = (
        mock.patch.object(Changes, "touch", side_effect=KeyboardInterrupt)
        if where == "touch"
        else mock.patch("diskreplay.priority.batch_kernels.put_all", side_effect=KeyboardInterrupt)
    )
    with place, pytest.raises(KeyboardInterrupt):
        sampler.set_priorities(ids[:3], [5.0, 6.0, 7.0])
    sampler.set_priorities(ids[5:6], [2.0])
    assert sampler.check_valid() == (True, "")
    store.commit()
    with ReplayStore.open(store.path) as again:
        kept = PrioritizedSampler(again, seed=0)
        kept.draw(64)
        assert kept.priorities_of(ids[:6]).tolist() == [5.0, 6.0, 7.0, 1.0, 1.0, 2.0]
        assert kept.largest == 7.0
    assert list(store.verify()) == []


def test_a_sampler_that_was_interrupted_while_it_took_steps_in_says_so(make_store):
    """Another one goes on in its place."""
    store = make_store()
    fill(store)
    sampler = PrioritizedSampler(store, seed=0)
    fill(store, seed=1)
    with (
        mock.patch.object(type(sampler._priorities), "_extend", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        sampler.draw(4)
    with pytest.raises(ReplayError, match="half-way"):
        store.commit()
    PrioritizedSampler(store, seed=0).draw(4)
    store.commit()
    say_nothing_is_wrong(store)


def test_a_seal_that_seemed_to_fail_and_was_quarantined_meanwhile(make_store):
    """Its files are for `repair`: they were removed with those of evicted segments."""
    store = sealed_though_it_failed(make_store)
    with ReplayStore.open(store.path, mode="a") as other:
        assert other.quarantine(1, "planted")
        other.commit()
    fill(store, stream="b", episodes=1, length=4)
    store.commit()
    store.seal()
    assert len(list((store.path / "steps" / "reward").glob("c.1*"))) == 1
    say_nothing_else_is_wrong(store)


def say_nothing_else_is_wrong(store):
    """Compare a store with itself, but for what is quarantined; close it, so that nobody wonders at that."""
    assert {problem.kind for problem in store.verify()} - {"orphan"} == {"quarantined"}
    store.close()


def test_what_a_commit_evicted_that_seemed_to_fail_is_known_after_the_next(make_store):
    """The handle went on drawing it until somebody called refresh."""
    store = make_store(capacity=48)
    fill(store, episodes=5, length=11)
    with failing(counts=True), pytest.raises(ReplayError):
        store.commit()
    fill(store, episodes=1, length=2, seed=1)
    store.commit()
    with ReplayStore.open(store.path) as reader:
        assert len(store) == len(reader)
    say_nothing_is_wrong(store)


def test_a_name_that_takes_more_bytes_quoted(make_store):
    """Its lock's file name was too long."""
    store = make_store()
    fill(store)
    PrioritizedSampler(store, seed=0, name="é" * 50)
    store.commit()
    with ReplayStore.open(store.path, mode="a") as other, pytest.raises(StoreLockedError):
        PrioritizedSampler(other, seed=0, name="é" * 50)


def test_a_writer_that_two_threads_close(make_store):
    """The second ended the next writer's episode: rows that nobody observed, and a commit gave its stream away."""
    store = make_store()
    writer = store.writer("a")
    writer.reset(SEEN)
    writer.step(0, 0.0, False, False, SEEN)
    with store.lock:
        thread, _ = in_thread(writer.close)
        time.sleep(0.1)  # until it waits for the lock
        writer.close()
        following = store.writer("a")
        following.reset(SEEN + 100)
    thread.join(PATIENCE)
    step = following.step(0, 7.0, False, False, SEEN + 101)
    assert store.read([step]).observation.tolist() == [[100.0] * 3]
    store.commit()
    with ReplayStore.open(store.path, mode="a") as other, pytest.raises(StoreLockedError):
        other._engine.claim("a").lock.release()


def test_a_sampler_made_anew_while_shards_are_written(make_store, monkeypatch):
    """The one whose place it took was committed over it: priorities that did not add up."""
    store = make_store(segment_steps=12_288)  # of several blocks
    ids = fill(store, episodes=3, length=4095)
    sampler = PrioritizedSampler(store, seed=0)
    sampler.set_priorities(ids, np.ones(len(ids)))
    store.commit()
    fill(store)
    writing, go_on = waiting_writes(store, monkeypatch)
    sampler.set_priorities(ids[:4000], np.full(4000, 7.0))
    thread, raised = in_thread(store.seal)
    assert writing.wait(PATIENCE)
    again = PrioritizedSampler(store, resume=True)
    go_on.set()
    thread.join(PATIENCE)
    assert raised == []
    again.set_priorities(ids[-5:], np.full(5, 3.0))
    store.commit()
    assert store.verify() == []
    assert again.priorities_of(ids).tolist() == [1.0] * (len(ids) - 5) + [3.0] * 5


@pytest.mark.parametrize("whole", [False, True])
def test_a_step_whose_segment_another_thread_seals_at_once(make_store, monkeypatch, whole):
    """It was kept, and ended in an IndexError."""
    store = make_store(segment_steps=16)
    writer = store.writer("a")
    full = writer._commit_if_full

    def meanwhile():
        thread, raised = in_thread(store.commit)
        thread.join(PATIENCE)
        assert raised == []
        full()

    if not whole:
        writer.reset(SEEN)
        for _ in range(14):
            writer.step(0, 0.0, False, False, SEEN)
    monkeypatch.setattr(writer, "_commit_if_full", meanwhile)
    if whole:
        seen, none = np.zeros((16, 3), np.float32), np.zeros(15, np.bool_)
        assert len(writer.write_episode(seen, np.zeros(15, np.int64), np.zeros(15), none, none)) == 15
    else:
        assert writer.step(0, 5.0, True, False, SEEN) == 14
    assert len(store) == 15


def test_an_index_that_is_read_past_its_closing_is_opened_as_the_next_handle_needs_it(make_store, monkeypatch):
    """It stayed as it was: commits of a store that had become "power" were not synced."""
    monkeypatch.setattr(sharing, "PATIENCE_S", 0.1)
    store = make_store(durability="process")
    fill(store)
    store.commit()
    index, inside, out = store._index, threading.Event(), threading.Event()

    def read():
        with index.read():
            inside.set()
            out.wait(PATIENCE)

    thread, _ = in_thread(read)
    assert inside.wait(PATIENCE)
    store.close()
    opening, raised = in_thread(lambda: ReplayStore.open(store.path, mode="a", durability="power").close())
    time.sleep(0.2)
    out.set()
    thread.join(PATIENCE)
    opening.join(PATIENCE)
    assert raised == []
    with ReplayStore.open(store.path, mode="a") as again:
        assert again.durability == "power"
        assert again._index._environment._lmdb.flags()["sync"]


def test_an_index_that_was_closed_is_not_opened_again_by_who_still_has_it(make_store):
    """After a commit that failed it was, outside the list of open ones, and every new handle was refused."""
    store = make_store()
    fill(store)
    environment = store._index._environment
    with failing(counts=False), pytest.raises(ReplayError):
        store.commit()
    store.close()
    with pytest.raises(ReplayError, match="closed"), environment.transaction(write=False):
        pass
    with ReplayStore.open(store.path) as again:
        assert len(again) == 50


@pytest.mark.parametrize("how", ["seal", "step", "episode"])
def test_no_memory_for_another_segment(make_store, monkeypatch, how):
    """Whatever was not committed, of all streams, was lost."""
    store = make_store(segment_steps=16)
    fill(store, episodes=1, stream="b")
    store.commit()
    fill(store, episodes=1, stream="b", length=3)
    writer = store.writer("a")
    writer.reset(SEEN)
    for _ in range(15):
        writer.step(0, 0.0, False, False, SEEN)
    with monkeypatch.context() as patch:
        patch.setattr("diskreplay.storage.engine.Tail", mock.Mock(side_effect=MemoryError))
        none = np.zeros(40, np.bool_)
        with pytest.raises(MemoryError):
            {
                "seal": store.seal,
                "step": lambda: writer.step(0, 0.0, False, False, SEEN),
                "episode": lambda: writer.write_episode(
                    np.zeros((41, 3), np.float32), np.zeros(40, np.int64), np.zeros(40), none, none
                ),
            }[how]()
    store.commit()
    assert len(store) == 10 + 3 + 15
    writer.reset(SEEN)
    writer.step(0, 1.0, True, False, SEEN)
    store.seal()
    assert store.verify() == []
