"""Folders under a temporary name: what is alive stays, what is dead goes, what is somebody else's is not touched."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from diskreplay import ReplayError, ReplayStore
from diskreplay.storage import layout, partial
from diskreplay.storage.durable import Disk
from diskreplay.storage.locks import FileLock
from diskreplay.storage.partial import partial_folder
from tests.conftest import fill


@pytest.fixture
def path(tmp_path):
    """Return where the folder is to be."""
    return tmp_path / "x.replay"


def left(path):
    return sorted(entry.name for entry in path.parent.iterdir())


def leave(path, name, age, *, lock=False):
    """Make what a dead process left, so many seconds ago."""
    folder = path.parent / name
    folder.mkdir()
    if lock:
        layout.lock_path(folder, "store").parent.mkdir()
        layout.lock_path(folder, "store").touch()
    now = folder.stat().st_mtime
    os.utime(folder, (now - age, now - age))
    return folder


def test_a_folder_without_a_lock_is_left_alone_for_a_while(path):
    young, old = leave(path, ".x.replay.00000000.partial", 1), leave(path, ".x.replay.11111111.partial", 3600)
    locked = leave(path, ".x.replay.22222222.partial", 1, lock=True)
    with partial_folder(path, Disk()):
        assert (young.exists(), old.exists(), locked.exists()) == (True, False, False)


def test_other_names_are_left_alone(path):
    names = [
        ".x.replay.mybackup.partial", ".x.replay.DEADBEEF.partial", ".x.replay.0000000.partial", ".x.replay.00000000",
        ".y.replay.00000000.partial", ".x.replay.y.00000000.partial", ".xzreplay.00000000.partial",
    ]  # fmt: skip
    for name in names:
        leave(path, name, 3600, lock=True)
    with partial_folder(path, Disk()):
        pass
    assert left(path) == sorted([*names, "x.replay"])


def test_names_of_any_kind(tmp_path):
    path = tmp_path / "a[b]*?+.replay"
    leave(path, f".{path.name}.00000000.partial", 1, lock=True)
    with partial_folder(path, Disk()):
        pass
    assert left(path) == [path.name]


CALLS = {
    "mkdir": (Disk, "make_directory"), "open": (FileLock, "_open"), "flock": (FileLock, "_lock"),
    "move": (Disk, "move"),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_folder_is_not_removed_before_it_is_locked(path, monkeypatch, call):
    """Whichever step of the locking another process's creation falls into."""
    owner, name = CALLS[call]
    original, busy = getattr(owner, name), []

    def swept(self, *args, **options):
        for after in (False, True):
            if after:
                found = original(self, *args, **options)
            if not busy:
                busy.append(True)
                partial._remove_dead(path)
                busy.clear()
        return found

    monkeypatch.setattr(owner, name, swept)
    with partial_folder(path, Disk()) as folder:
        (folder / "here").touch()
        partial._remove_dead(path)
    assert (path / "here").exists()
    assert left(path) == ["x.replay"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), OSError(errno.EIO, "broken")])
def test_an_error_or_an_interrupt_leaves_nothing(path, error):
    def fail():
        with partial_folder(path, Disk()) as folder:
            (folder / "here").touch()
            raise error

    with pytest.raises(type(error)):
        fail()
    assert left(path) == []


@pytest.mark.parametrize("what", ["backup", "create"])
def test_ctrl_c_leaves_nothing_and_may_be_tried_again(make_store, path, monkeypatch, what):
    store = make_store(segment_steps=16)
    fill(store, episodes=3, length=13)
    store.commit()

    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if what == "create":
            patched.setattr("diskreplay.storage.creation.Index", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.backup(path, progress=interrupt) if what == "backup" else ReplayStore.create(path, store.spec)
    assert left(path) == [store.path.name]
    store.backup(path)


def test_the_lock_goes_when_the_folder_is_there(path):
    with partial_folder(path, Disk()) as folder:
        assert sorted(entry.name for entry in folder.iterdir()) == [layout.LOCKS]
    FileLock(layout.lock_path(path, "store"), "it").acquire().release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_locks_it_goes_without(path, monkeypatch, number):
    """A backup may lie on any file system; what is being made there is never taken for dead."""

    def refuse(_fd, _how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with partial_folder(path, Disk()) as folder:
        partial._remove_dead(path)
        assert folder.exists()
    assert left(path) == ["x.replay"]


def test_a_lock_that_fails_otherwise_is_an_error(path, monkeypatch):
    def fail(_fd, _how):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(ReplayError, match="broken"), partial_folder(path, Disk()):
        pass
    assert left(path) == []
