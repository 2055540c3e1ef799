"""A lock dies with what took it, however that ended."""

from __future__ import annotations

import fcntl
import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diskreplay import StoreLockedError
from diskreplay.storage.locks import FileLock


def interrupting(monkeypatch, name, *, before=False):
    """Have the first lock of this name end in an interrupt as soon as it is taken, or just before."""
    real, hits = fcntl.flock, []

    def flock(fd, operation):
        mine = not hits and operation != fcntl.LOCK_UN and Path(f"/proc/self/fd/{fd}").readlink().name == name
        if not (mine and before):
            real(fd, operation)
        if mine:
            hits.append(fd)
            raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_an_interrupt_leaves_no_lock_behind(tmp_path, monkeypatch, before, shared):
    """It would be waited for by this very process, for ever."""
    interrupting(monkeypatch, "layout", before=before)
    lock = FileLock(tmp_path / "locks" / "layout", "the layout")
    files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(KeyboardInterrupt):
        lock.acquire(shared=shared)
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    with FileLock(tmp_path / "locks" / "layout", "the layout"), pytest.raises(StoreLockedError, match="layout is held"):
        lock.acquire()


def test_a_commit_that_was_interrupted_can_be_made_again(make_store, monkeypatch):
    store = make_store()
    with store.writer("a") as writer:
        observations = np.zeros((31, 3), np.float32)
        episode = observations, np.zeros(30, int), np.zeros(30), np.zeros(30, bool), np.zeros(30, bool)
        interrupting(monkeypatch, "layout")
        with pytest.raises(KeyboardInterrupt):  # a tail that is full is sealed at once
            writer.write_episode(*episode)
        store.commit()
    assert len(store) == 30
    assert store.verify() == []


def test_a_child_forked_while_a_lock_is_given_back_closes_nothing_else(tmp_path, monkeypatch):
    """The descriptor's number may be another file's by then."""
    children = []

    class File(io.FileIO):
        def close(self):
            fd = self.fileno()
            super().close()
            other = os.open("/dev/null", os.O_RDONLY)
            assert other == fd
            child = os.fork()
            if not child:
                os._exit(0 if os.path.exists(f"/proc/self/fd/{other}") else 1)  # noqa: PTH110
            children.append(child)
            os.close(other)

    monkeypatch.setattr("diskreplay.storage.locks.io", SimpleNamespace(FileIO=File))
    FileLock(tmp_path / "locks" / "it", "it").acquire().release()
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0]


def test_a_lock_file_of_somebody_else_names_nobody(tmp_path):
    """Whatever is in it."""
    (tmp_path / "locks").mkdir()
    for text in (b"[" * 4096, b"\xff", b"{}", b"[]"):
        (tmp_path / "locks" / "it").write_bytes(text)
        fd = os.open(tmp_path / "locks" / "it", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(StoreLockedError, match="is held by process"):
            FileLock(tmp_path / "locks" / "it", "it").acquire()
        os.close(fd)
