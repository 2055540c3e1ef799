"""A backup is a store of one moment, made while others write, evict and sample; it shares nothing that changes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from diskreplay import CorruptStoreError, PrioritizedSampler, ReplayStore
from diskreplay.errors import ReplayError, StoreExistsError, StoreNotFoundError
from diskreplay.storage import layout
from diskreplay.storage.upkeep.repair import plan_repair
from tests.conftest import fill
from tests.storage.damage import check, priorities, put, raw, rows, shard, verify


@pytest.fixture
def store(make_store):
    store = make_store(segment_steps=16)
    fill(store, episodes=6, length=13)
    sampler = PrioritizedSampler(store, seed=0)
    store.commit()
    sampler.update_priorities(sampler.draw(32).step_ids, np.arange(32))
    store.commit()
    return store


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_backup_holds_what_was_committed(store, tmp_path, mode):
    dest = tmp_path / "copy.replay"
    with ReplayStore.open(store.path, mode=mode) as opened:
        done = opened.backup(dest)
    assert (done.path, done.transitions, done.copied) == (dest, 78, 0)
    assert done.linked == 7 * done.segments
    assert verify(dest) == []
    assert rows(dest) == rows(store.path)
    assert priorities(dest) == priorities(store.path)
    assert plan_repair(dest).empty
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.replay", "test.replay"]


def test_what_is_done_to_a_backup_does_not_touch_the_store(store, tmp_path):
    dest, before = tmp_path / "copy.replay", rows(store.path)
    documents = {path: path.read_bytes() for path in store.path.rglob("zarr.json")}
    store.backup(dest)
    check(dest)  # appends, seals, draws
    with ReplayStore.open(dest, mode="a") as copy:
        fill(copy, episodes=20, length=40)
        copy.commit()
        copy.evict(100)
    assert rows(store.path) == before
    assert {path: path.read_bytes() for path in documents} == documents
    assert store.verify() == []


def test_rows_not_committed_are_not_in_it(store, tmp_path):
    fill(store, episodes=1, length=3, stream="b")
    assert store.backup(tmp_path / "copy.replay").transitions == 78
    assert len(rows(tmp_path / "copy.replay")) == 78


def test_an_empty_store(make_store, tmp_path):
    make_store().backup(tmp_path / "copy.replay")
    assert verify(tmp_path / "copy.replay") == []
    with ReplayStore.open(tmp_path / "copy.replay", mode="a") as copy:
        fill(copy)
        copy.commit()
        assert copy.verify() == []


def test_where_links_are_refused_files_are_copied(store, tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise OSError(errno.EXDEV, "other file system")

    monkeypatch.setattr(os, "link", refuse)
    done = store.backup(tmp_path / "copy.replay")
    assert (done.linked, done.copied) == (0, 7 * done.segments)
    assert verify(tmp_path / "copy.replay") == []


def test_backups_while_others_write_and_evict(make_store, tmp_path):
    """Each is of one moment: it verifies clean, and its rows are whole episodes of some commit."""
    store = make_store(segment_steps=8, capacity=150)
    fill(store, episodes=10, length=13)
    store.commit()
    stop, failed, commits = threading.Event(), [], []

    def write():
        try:
            with ReplayStore.open(store.path, mode="a") as other:
                while not stop.is_set():
                    fill(other, episodes=3, length=5 + len(commits) % 7, stream="w", seed=len(commits))
                    other.commit()
                    commits.append(1)
        except Exception as err:  # noqa: BLE001
            failed.append(err)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with ReplayStore.open(store.path) as reader:
            made = 0
            while len(commits) < 40 and not failed:
                reader.backup(tmp_path / f"{made}.replay")
                made += 1
    finally:
        stop.set()
        thread.join()
    assert failed == []
    for number in range(max(0, made - 8), made):
        assert verify(tmp_path / f"{number}.replay") == []
    store.refresh()
    assert store.stats().steps_evicted > 0


def test_segments_evicted_after_the_index_was_copied(store, tmp_path, monkeypatch):
    """The index is copied again, and what is new since is added."""
    from diskreplay.storage.upkeep import backup

    copied = []
    original = backup._Copying._copy_index

    def copy_index(self):
        catalogue = original(self)
        copied.append(set(catalogue.segments))
        if len(copied) < 3:
            fill(store, episodes=4, length=13, seed=len(copied))
            store.commit()
            store.evict(40)
        return catalogue

    monkeypatch.setattr(backup._Copying, "_copy_index", copy_index)
    done = store.backup(tmp_path / "copy.replay")
    assert len(copied) == 3
    assert not copied[0] & copied[2]
    assert done.segments == len(copied[2])
    assert verify(tmp_path / "copy.replay") == []
    assert rows(tmp_path / "copy.replay") == rows(store.path)


def test_a_missing_shard_is_no_eviction(store, tmp_path):
    file = shard(store.path, "reward", 2)
    file.rename(tmp_path / "aside")
    with pytest.raises(CorruptStoreError, match=r"c\.2"):
        store.backup(tmp_path / "copy.replay")
    (tmp_path / "aside").rename(file)
    assert [path.name for path in tmp_path.iterdir()] == ["test.replay"]


def test_where_it_cannot_be(store, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(StoreExistsError):
        store.backup(tmp_path / "there")
    with pytest.raises(StoreNotFoundError):
        store.backup(tmp_path / "none" / "copy")
    with pytest.raises(ReplayError, match="inside"):
        store.backup(store.path / "copy")
    assert store.verify() == []


def test_a_backup_is_restored_by_copying_it_back(store, tmp_path):
    before = rows(store.path)
    store.backup(tmp_path / "copy.replay")
    shutil.copytree(tmp_path / "copy.replay", tmp_path / "restored.replay")
    assert rows(tmp_path / "restored.replay") == before
    check(tmp_path / "restored.replay")


def lasting(work):
    """Run `work` in a forked child that is killed as soon as it says so; return once it is dead."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            work(lambda: (os.write(write, b"."), time.sleep(60)))
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"."
    os.close(read)
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("what", ["backup", "create"])
def test_what_a_killed_one_left_the_next_removes_but_not_what_one_makes(store, tmp_path, monkeypatch, what):
    dest = tmp_path / "copy.replay"
    path = store.path
    store.close()

    def work(stop):
        if what == "backup":
            with ReplayStore.open(path) as opened:
                opened.backup(dest, progress=lambda *_: stop())
        else:
            monkeypatch.setattr("diskreplay.storage.creation.np.zeros", lambda *_: stop())
            ReplayStore.create(dest, store.spec)

    dead, living = lasting(work), lasting(work)
    kill(dead)
    assert len(list(tmp_path.glob(".copy.replay.*.partial"))) == 2
    monkeypatch.setattr("diskreplay.storage.partial.UNLOCKED_S", -1)
    (tmp_path / ".copy.replay.01234567.partial").mkdir()  # killed before it could lock it
    (tmp_path / ".other.replay.01234567.partial").mkdir()
    with ReplayStore.open(path) as opened:
        opened.backup(dest)
    assert len(list(tmp_path.glob(".copy.replay.*.partial"))) == 1
    kill(living)
    shutil.rmtree(dest)
    with ReplayStore.open(path) as opened:
        opened.backup(dest)
    assert list(tmp_path.glob(".copy.replay.*")) == []
    assert (tmp_path / ".other.replay.01234567.partial").exists()
    check(dest)


def test_a_shard_of_another_length_is_not_backed_up(store, tmp_path):
    file = shard(store.path, "reward", 2)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptStoreError, match="were committed") as caught:
        store.backup(tmp_path / "copy.replay")
    assert f"segment 2, field reward: {file}: " in str(caught.value)
    assert (caught.value.path, caught.value.segment) == (file, 2)
    assert "verify" in caught.value.hint
    assert "repair" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.replay"]
    store.close()


def test_lengths_are_compared_where_files_are_copied(store, tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise OSError(errno.EXDEV, "other file system")

    monkeypatch.setattr(os, "link", refuse)
    file = shard(store.path, "observation", 1)
    with file.open("ab") as longer:
        longer.write(b"x")
    with pytest.raises(CorruptStoreError, match="segment 1, field observation"):
        store.backup(tmp_path / "copy.replay")
    store.close()


@pytest.mark.parametrize("damage", ["none", "short"])
def test_a_segment_whose_files_are_not_listed_is_not_backed_up(store, tmp_path, damage):
    path, key = store.path, layout.segment_key(2)
    store.close()
    with raw(path) as (txn, databases):
        payload = layout.open_record("files", key, txn.get(key, db=databases["files"]))
        txn.delete(key, db=databases["files"])
        if damage == "short":
            put(txn, databases, "files", key, payload[: -layout.FILE.itemsize])
    with ReplayStore.open(path) as opened, pytest.raises(CorruptStoreError, match="segment 2") as caught:
        opened.backup(tmp_path / "copy.replay")
    assert caught.value.segment == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.replay"]


@pytest.mark.parametrize("name", ["steps/reward/c.2", "zarr.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_are_not_backed_up(store, tmp_path, name, kind):
    file, outside = store.path / name, tmp_path / "outside"
    file.rename(outside)
    if kind == "link":
        file.symlink_to(outside)
    else:
        os.mkfifo(file)
    with pytest.raises(CorruptStoreError, match="no regular file"):
        store.backup(tmp_path / "copy.replay")
    assert not (tmp_path / "copy.replay").exists()
    store.close()


@pytest.mark.parametrize("name", ["zarr.json", "steps/zarr.json", "steps/reward/zarr.json"])
def test_a_missing_description_is_said(store, tmp_path, name):
    """It was left out in silence, and the copy could not be read by zarr."""
    (store.path / name).rename(tmp_path / "kept")
    with pytest.raises(CorruptStoreError, match="is missing"):
        store.backup(tmp_path / "copy.replay")
    assert not (tmp_path / "copy.replay").exists()
    (tmp_path / "kept").rename(store.path / name)


def test_a_store_without_segments_has_no_arrays_to_copy(make_store, tmp_path):
    store = make_store()
    fill(store, episodes=1, length=3)
    store.commit()
    store.backup(tmp_path / "copy.replay")
    assert verify(tmp_path / "copy.replay") == []
