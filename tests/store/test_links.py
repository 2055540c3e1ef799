"""A store from elsewhere may hold links and pipes: none is followed, none waited for, nothing outside is touched."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from diskreplay import CorruptStoreError, PrioritizedSampler, ReplayStore
from diskreplay.storage.upkeep.repair import plan_repair
from diskreplay.storage.upkeep.verify import verify_path
from tests.conftest import close_with_priorities, fill

OUTSIDE = b"precious"


@pytest.fixture
def path(make_store):
    return close_with_priorities(make_store(segment_steps=16))


@pytest.fixture
def outside(tmp_path):
    """Return a file outside the store, which must stay what it is."""
    file = tmp_path / "outside"
    file.write_bytes(OUTSIDE)
    yield file
    assert file.read_bytes() == OUTSIDE


def use(path):
    """Do what people do with a store."""
    with ReplayStore.open(path, mode="a") as store:
        sampler = PrioritizedSampler(store, seed=0)
        fill(store, episodes=2, length=9)
        store.commit()
        store.read(store.step_ids_of(np.arange(len(store))))
        assert sampler.draw(8)
        store.seal()


FILES = [
    "zarr.json", "index.lmdb/data.mdb", "index.lmdb/lock.mdb", "locks/store", "locks/stream-0", "locks/layout",
    "locks/sampler-prioritized", "steps/reward/c.2", "steps/observation/zarr.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_file_that_is_none_is_refused(path, outside, name, kind):
    (path / name).unlink()
    if kind == "link":
        (path / name).symlink_to(outside)
    else:
        os.mkfifo(path / name)
    with pytest.raises(CorruptStoreError, match="no regular file") as caught:
        use(path)
    assert name in str(caught.value)
    assert "link" in caught.value.hint
    if not name.startswith("locks"):
        assert not verify_path(path).sound


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_the_watermark_too(path, outside, kind):
    """It is a help, not a need."""
    (path / "index.lmdb" / "watermark").unlink()
    if kind == "link":
        (path / "index.lmdb" / "watermark").symlink_to(outside)
    else:
        os.mkfifo(path / "index.lmdb" / "watermark")
    use(path)


@pytest.mark.parametrize("name", ["index.lmdb", "locks", "steps", "steps/reward", "lost+found"])
def test_a_folder_that_is_a_link_is_refused(path, tmp_path, name):
    """Eviction would remove files where it leads."""
    elsewhere = tmp_path / "elsewhere"
    if (path / name).exists():
        shutil.move(path / name, elsewhere)
    else:
        elsewhere.mkdir()
    (path / name).symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    with pytest.raises(CorruptStoreError, match="no folder"):
        use(path)
    with pytest.raises(CorruptStoreError, match="no folder"):
        plan_repair(path)
    assert sorted(elsewhere.iterdir()) == before


def test_a_store_may_itself_be_reached_by_a_link(path, tmp_path):
    """It is only inside that links lead out of it."""
    (tmp_path / "link.replay").symlink_to(path)
    use(tmp_path / "link.replay")
