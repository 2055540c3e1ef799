"""Damage to LMDB's list of free pages is found, though nothing that is read needs it, and repair does without it."""

from __future__ import annotations

import random
import shutil
import struct

import numpy as np
import pytest

from diskreplay import PrioritizedSampler, ReplayStore
from diskreplay.storage import layout
from diskreplay.storage.index import Index
from diskreplay.storage.upkeep.free_pages import free_pages_trouble
from diskreplay.storage.upkeep.repair import repair_store
from diskreplay.storage.upkeep.verify import verify_path
from tests.conftest import fill
from tests.storage.damage import build, check, priorities, rows

PAGE = 4096


@pytest.fixture
def path(make_store):
    return build(make_store())


def newest(data):
    """Return the number of the newest transaction, and the root of the tree of free pages."""
    number, at = max((struct.unpack_from("<Q", data, at + 144)[0], at) for at in (0, PAGE))
    return number, struct.unpack_from("<Q", data, at + 80)[0]


def damage(path, change):
    """Change the page that the list of free pages begins with; return what it was."""
    file = path / layout.INDEX / "data.mdb"
    data = bytearray(file.read_bytes())
    _, root = newest(data)
    page = data[root * PAGE : (root + 1) * PAGE]
    change(page)
    data[root * PAGE : (root + 1) * PAGE] = page
    file.write_bytes(data)


def first_record(page):
    """Return where the first record of a leaf says how many pages it names."""
    (at,) = struct.unpack_from("<H", page, 16)
    return at + 16


def no_leaf(page):
    page[10] = 1


def in_use(page):
    """Have the list name pages 2, 3, 4: they are the store's tables."""
    at = first_record(page)
    (count,) = struct.unpack_from("<Q", page, at)
    struct.pack_into(f"<{count}Q", page, at + 8, *range(1 + count, 1, -1))


def beyond(page):
    struct.pack_into("<Q", page, first_record(page) + 8, 1 << 40)


def in_no_order(page):
    at = first_record(page)
    one, two = struct.unpack_from("<QQ", page, at + 8)
    struct.pack_into("<QQ", page, at + 8, two, one)


def too_many(page):
    struct.pack_into("<Q", page, first_record(page), 1 << 30)


def zeroes(page):
    page[:] = bytes(PAGE)


@pytest.mark.parametrize("change", [no_leaf, beyond, in_no_order, too_many, zeroes, in_use])
def test_a_damaged_list_is_found_and_left_behind(path, change):
    wanted, held = rows(path), priorities(path)
    damage(path, change)
    found = verify_path(path)
    assert [p.where for p in found.problems] == ["index: free pages"]
    assert verify_path(path, quick=True).sound == (change is in_use)
    done = repair_store(path)
    assert done.plan.losses == []
    assert (done.aside / layout.INDEX / "data.mdb").exists()
    assert rows(path) == wanted
    assert priorities(path) == held
    check(path)


def test_no_busy_index_is_accused(make_store):
    """Readers that hold old states, eviction, priorities: the list grows, splits and shrinks."""
    store = make_store(segment_steps=16, capacity=600, durability="process")
    sampler, chance, readers = PrioritizedSampler(store, seed=0), random.Random(1), []
    for i in range(120):
        fill(store, episodes=chance.randint(1, 8), length=chance.randint(1, 40), stream="ab"[i % 2], seed=i)
        store.commit()
        sampler.update_priorities(sampler.draw(64).step_ids, np.ones(64))
        store.commit()
        if i % 7 == 0:
            readers.append(ReplayStore.open(store.path))
        if len(readers) > 3:
            readers.pop(0).close()
        assert free_pages_trouble(store._index) == ""
    for reader in readers:
        reader.close()


def test_a_list_of_many_pages(tmp_path):
    """Its records are longer than a page, and its tree has branches."""
    index = Index(tmp_path / "index.lmdb", create=True, synced=False)
    for _ in range(2):
        with index.write() as txn:
            for i in range(6000):
                txn.put("garbage", layout.segment_key(i), bytes(3000))
    with index.read() as held:
        assert held.count("garbage")
        with index.write() as txn:
            txn.delete_prefix("garbage", b"\0")
        for i in range(400):
            with index.write() as txn:
                txn.put("garbage", layout.segment_key(i), bytes(3000))
        assert free_pages_trouble(index) == ""
    index.close()
    shutil.rmtree(tmp_path / "index.lmdb")
