"""Ctrl-C at one moment, each of which once left something: CPython takes it when a function begins or a C call ends."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import traceback
from itertools import count

import numpy as np
import pytest

from diskreplay import PrioritizedSampler, ReplayError, ReplayStore, WriterStateError
from diskreplay.storage.locks import FileLock
from tests.conftest import failing, fill

PATIENCE = 20


@contextlib.contextmanager
def interrupted(event, within, called=None, nth=1):
    """Have what is done within interrupted the nth time that a function begins, or that one which it called ends.

    A function is named as its code is, or by the module that it is in: then all of it.
    """
    left = nth

    def see(frame, what, arg):
        nonlocal left
        here = frame.f_code.co_qualname == within or frame.f_code.co_filename.endswith(within)
        if what == event and here and called in (None, getattr(arg, "__name__", None)):
            left -= 1
            if not left:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(see)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        sys.setprofile(None)
    assert left <= 0, "there was no such moment"


def in_time(function):
    """Call it in a thread, and return what it returns, unless it waits for ever."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert found, "it hangs"
    return found[0]


def with_priorities(store, length=60, episodes=40):
    """Fill a store; return a sampler whose priorities are committed, and the step ids."""
    ids = fill(store, episodes=episodes, length=length)
    sampler = PrioritizedSampler(store, seed=0)
    sampler.set_priorities(ids, np.ones(len(ids)))
    store.commit()
    return sampler, ids


@pytest.mark.parametrize("called", ["items", "len"])
def test_what_was_committed_but_not_heard_of_is_not_deleted(make_store, called):
    """The next commit joined the record before the last one, and took away what lay between."""
    store = make_store(segment_steps=4096)
    sampler, ids = with_priorities(store)
    sampler.set_priorities(ids[10:13], [3.0, 3.0, 3.0])
    store.commit()
    sampler.set_priorities(ids[:3], [5.0, 5.0, 5.0])
    with interrupted("c_return", "Changes.committed", called):
        store.commit()
    sampler.set_priorities(ids[100:101], [2.0])
    store.commit()
    assert store.verify() == []
    with ReplayStore.open(store.path) as again:
        found = PrioritizedSampler(again, resume=True).priorities_of(ids[[0, 1, 2, 10, 11, 100]])
    assert found.tolist() == [5.0, 5.0, 5.0, 3.0, 3.0, 2.0]


def test_priorities_forgotten_in_part(make_store):
    """The sampler went on with what was left, and said nothing."""
    store = make_store(segment_steps=16)
    sampler, ids = with_priorities(store, length=7, episodes=10)
    sampler.set_priorities(ids, np.full(len(ids), 4.0))
    store.commit()
    with interrupted("call", "SegmentPriorities._clear", nth=3):
        sampler.forget_priorities()
    for refused in (lambda: sampler.draw(8), lambda: sampler.set_priorities(ids[:1], [2.0]), sampler.forget_priorities):
        with pytest.raises(ReplayError, match="interrupted half-way"):
            refused()
    again = PrioritizedSampler(store, resume=True)
    store.commit()
    assert store.verify() == []
    assert (again.priorities_of(ids) == 4.0).all()


@pytest.mark.parametrize("event", ["call", "c_return"])
@pytest.mark.parametrize("module", ["segment_priorities.py", "sum_tree.py"])
def test_a_block_that_was_being_loaded_is_loaded_again(make_store, event, module):
    """It counted as loaded before its priorities were there: the next commit wrote zeros in their place."""
    store = make_store(segment_steps=4096)
    _, ids = with_priorities(store, length=30, episodes=10)
    store.close()
    expected = np.array([3.0] * 200 + [1.0] * 100)
    for nth in count(1):
        with ReplayStore.open(shutil.copytree(store.path, store.path.with_name(f"{nth}.replay")), mode="a") as copy:
            sampler = PrioritizedSampler(copy, resume=True)
            try:
                with interrupted(event, module, nth=nth):
                    sampler.draw(8)
            except AssertionError:  # there was no such moment
                break
            sampler.set_priorities(ids[:200], np.full(200, 3.0))
            copy.commit()
            assert copy.verify() == []
            assert np.array_equal(sampler.priorities_of(ids), expected)
    assert nth > 5


def test_a_lock_whose_release_was_interrupted_is_given_back(make_store):
    """This process, and all others while it lived, waited for it for ever."""
    store = make_store()
    fill(store)
    with interrupted("call", "FileLock.release"):
        store.seal()
    in_time(lambda: store.seal() or True)
    assert store.verify() == []


def test_a_lock_that_is_interrupted_while_it_is_collected(tmp_path, monkeypatch):
    """Nothing else knew of its file, which kept the lock as long as the process lived."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # pytest's own keeps what it is told of
    lock = FileLock(tmp_path / "it", "it").acquire()
    with interrupted("call", "FileLock.release"):
        del lock
    FileLock(tmp_path / "it", "it").acquire().release()


@pytest.mark.parametrize("within", ["ReplayStore._writer_closed", "Engine.keep_until_committed", "Stream.dirty"])
def test_a_stream_whose_writer_was_interrupted_as_it_closed(make_store, within):
    """The writer was closed, and the stream its own for as long as the store was open."""
    store = make_store()
    fill(store)
    writer = store.writer("a")
    with interrupted("call", within):
        writer.close()
    writer.close()
    store.writer("a").close()
    store.commit()
    with ReplayStore.open(store.path, mode="a") as other:
        other.writer("a").close()


def test_a_writer_whose_making_was_interrupted(make_store):
    """Likewise."""
    store = make_store()
    with interrupted("call", "StreamWriter.__init__"):
        store.writer("a")
    fill(store)
    store.commit()
    with ReplayStore.open(store.path, mode="a") as other:
        other.writer("a").close()


@pytest.mark.parametrize("within", ["Gate.leave", "Visit.__exit__", "Gate.enter"])
def test_a_thread_that_left_the_index_without_saying_so(make_store, within):
    """After a failed commit the index could not be opened again for as long as the process lived."""
    store = make_store()
    fill(store)
    store.commit()
    with interrupted("call", within):
        store.refresh()
    fill(store)
    with failing(counts=False), pytest.raises(ReplayError):
        store.commit()
    store.commit()
    assert store.verify() == []


def test_a_store_is_opened_after_a_close_that_was_interrupted(make_store):
    """The list of open indexes stayed locked."""
    store = make_store()
    with interrupted("call", "_leave"):
        store.close()
    in_time(lambda: ReplayStore.open(store.path).close() or True)
    store.close()


def test_closing_again_does_what_an_interrupted_close_did_not(make_store):
    """Streams and store stayed locked until the process ended."""
    store = make_store()
    ids = fill(store)
    store.commit()
    store.writer("b")
    with interrupted("call", "Engine.close"):
        store.close()
    with pytest.raises(ReplayError, match="closed"):
        store.writer("a")
    store.close()
    with ReplayStore.open(store.path, mode="a", durability="process") as again, again.writer("b"):
        assert len(again) == len(ids)
        assert again.verify() == []


@pytest.mark.parametrize("call", ["commit", "seal", "evict", "close"])
def test_a_signal_handler_in_the_midst_of_a_commit_is_refused(make_store, call):
    """At whichever moment it comes: in LMDB's transaction it ended in an error of LMDB's, or closed its file."""
    store = make_store(segment_steps=32)
    refused, moments = 0, 0

    def handle(frame, what, arg):
        nonlocal refused, moments
        if what != "call" or "diskreplay/storage" not in frame.f_code.co_filename:
            return
        moments += 1
        sys.setprofile(None)
        try:
            if moments % 7 == 0 and any(f.f_code.co_name == "work" for f, _ in traceback.walk_stack(frame)):
                with pytest.raises(WriterStateError, match="signal handler"):
                    store.evict(1) if call == "evict" else getattr(store, call)()
                refused += 1
        finally:
            sys.setprofile(handle)

    for _ in range(3):
        fill(store, episodes=2, length=40)
        sys.setprofile(handle)
        try:
            store.commit()
        finally:
            sys.setprofile(None)
    assert refused > 20
    steps = len(store)
    store.close()
    with ReplayStore.open(store.path) as again:
        assert len(again) == steps > 200
        assert again.verify() == []
