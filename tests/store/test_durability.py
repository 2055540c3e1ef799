"""What a store's durability means: which calls are synced, who may change it, and that it is said."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from diskreplay import ReadOnlyError, ReplayStore, StoreLockedError
from diskreplay.storage.durable import Disk
from tests.conftest import fill


@pytest.fixture
def syncs(monkeypatch):
    """Count fsyncs of our own."""
    done = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(fd), real(fd))[1])
    return done


@pytest.mark.parametrize(("durability", "synced"), [("power", True), ("process", False)])
def test_files_and_index_are_synced_or_not(make_store, syncs, durability, synced):
    """LMDB's own syncs follow the flags of its environment."""
    store = make_store(durability=durability)
    fill(store)
    store.commit()
    assert bool(syncs) is synced
    environment = store._index._environment
    assert environment.synced is synced
    assert environment._lmdb.flags()["sync"] is synced
    assert store.stats().durability == durability


def test_closing_or_sync_makes_a_process_durable_store_power_durable(make_store, monkeypatch):
    """One sync of the file system for all of it."""
    asked = []
    monkeypatch.setattr(Disk, "sync_everything", lambda self, path: asked.append(path))
    store = make_store(durability="process")
    fill(store)
    store.commit()
    assert asked == []
    store.sync()
    assert asked == [store.path]
    store.close()
    assert asked == [store.path] * 2
    power = make_store("other.replay")
    power.sync()
    power.close()
    assert len(asked) == 2


def test_it_is_the_stores_and_can_be_changed_by_one_who_is_alone(make_store):
    """A weaker promise must not be given behind the back of somebody who relies on a stronger one."""
    store = make_store(durability="process")
    fill(store)
    store.commit()
    with pytest.raises(StoreLockedError, match=f"process {os.getpid()}"):
        ReplayStore.open(store.path, mode="a", durability="power")
    store.close()
    with pytest.raises(ReadOnlyError):
        ReplayStore.open(store.path, durability="power")
    with ReplayStore.open(store.path, mode="a", durability="power") as again:
        assert again.durability == "power"
        assert again._index._environment.synced
        assert len(again) == 50
    with ReplayStore.open(store.path, mode="a") as again:
        assert again.durability == "power"
        assert again.verify() == []
    with pytest.raises(ValueError, match="durability"):
        ReplayStore.open(store.path, mode="a", durability="none")
    with pytest.raises(ValueError, match="durability"):
        make_store("other.replay", durability=True)


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_killed_process_loses_nothing_either_way(tmp_path, durability):
    """What "process" promises."""
    code = f"""
import os, signal, numpy as np
from diskreplay import ArraySpec, ReplayStore, StepSpec
spec = StepSpec(ArraySpec("observation", (3,), "float32"), ArraySpec("action", (), "int64", "discrete", n=3))
store = ReplayStore.create({str(tmp_path / "s.replay")!r}, spec, segment_steps=16, durability={durability!r})
writer = store.writer()
writer.reset(np.zeros(3, np.float32))
for t in range(100):
    writer.step(0, t, False, False, np.full(3, t + 1, np.float32))
store.commit()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    with ReplayStore.open(tmp_path / "s.replay") as store:
        assert len(store) == 100
        assert store.read(np.arange(100)).reward.tolist() == list(range(100))
        assert [p for p in store.verify() if p.kind != "orphan"] == []
