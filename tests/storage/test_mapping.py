"""Raw shards are read through maps, and what a map does not give is an error like any other."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

from diskreplay import CorruptStoreError, ReplayStore
from diskreplay.storage import cached, gather, mapping, native
from diskreplay.storage.cached import USES
from diskreplay.storage.fields import Coding
from tests.conftest import fill

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="needs the compiled path")
RAW = ("observation", "action", "reward")


@pytest.fixture
def mapped(make_store, monkeypatch):
    """A store whose only segment is mapped: it has been read a few times, and nothing of it is kept in memory."""
    monkeypatch.setattr(cached, "MEMORY_SHARE", 0)
    store = make_store(segment_steps=1024, compression="none")
    fill(store, episodes=8, length=113)
    store.seal()
    for _ in range(USES):
        store.read(np.arange(100))
    places = store._engine.table.by_field
    slot = store._engine.table.slot(0)
    assert all(places[name].coded[slot] and not places[name].base[slot] for name in RAW)
    return store


def shard(store, name):
    """Return the path of the segment's shard."""
    (path,) = (store.path / "steps" / name).glob("c.0*")
    return path


def test_what_is_read_is_what_was_read_before(mapped):
    """Compiled, in plain Python, and in another process's hands."""
    ids = np.array([3, 4, 90, 500, 700])
    plan = mapped.plan(ids, frame_stack=3)
    plan.announce()
    assert all((pieces.address < -1).all() for pieces in plan.observations)
    with ReplayStore.open(mapped.path, mode="r") as again:
        expected = again.read(ids, frame_stack=3)
    found = plan.fetch()
    np.testing.assert_array_equal(found.observation[0], expected.observation)
    np.testing.assert_array_equal(found.reward, expected.reward)
    for pieces in plan.pieces():
        out = np.empty((*pieces.leading, *pieces.geometry.shape), pieces.geometry.dtype)
        assert gather.gather_python(pieces, out.reshape(-1).view(np.uint8)) == -1
        np.testing.assert_array_equal(out, pieces.fetch())
    assert all(not (pieces.address < -1).any() for pieces in plan.portable().observations)


@pytest.mark.parametrize("name", RAW)
def test_a_shard_cut_off_while_it_is_mapped(mapped, name):
    """No SIGBUS: the rest of its pages read as zeros, and pread says what is wrong."""
    path = shard(mapped, name)
    os.truncate(path, 0)
    with pytest.raises(CorruptStoreError, match=f"field {name}.*is cut off") as caught:
        mapped.read([700])
    assert caught.value.segment == 0
    mapped.close()


def test_a_shard_damaged_while_it_is_mapped(mapped):
    path = shard(mapped, "reward")
    data = bytearray(path.read_bytes())
    data[1500] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    with pytest.raises(CorruptStoreError, match=r"field reward.*checksum"):
        mapped.read(np.arange(345, 450))
    data[1500] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    assert len(mapped.read(np.arange(345, 450)).reward) == 105


def test_a_page_that_comes_back_is_read_from_the_file(mapped):
    """A map keeps the zeros that were put into it; the file itself is asked then."""
    path = shard(mapped, "observation")
    data = path.read_bytes()
    expected = mapped.read([700]).observation
    os.truncate(path, 0)
    with pytest.raises(CorruptStoreError):
        mapped.read([700])
    with path.open("r+b") as file:
        file.write(data)
    np.testing.assert_array_equal(mapped.read([700]).observation, expected)


def test_maps_go_with_their_segments(mapped):
    """With its plans, and not before."""
    guard = mapping._guard
    used = len(guard.free)
    plan = mapped.plan([0])
    expected = mapped.read([0])
    mapped.evict(1)
    mapped.commit()
    np.testing.assert_array_equal(plan.fetch().observation[0], expected.observation)
    assert len(guard.free) == used
    del plan
    assert len(guard.free) == used + len(RAW)
    assert not guard.ranges[guard.free].any()


def test_no_more_maps_than_there_may_be(tmp_path, monkeypatch):
    file = tmp_path / "it"
    file.write_bytes(b"x" * 10_000)
    fd = os.open(file, os.O_RDONLY)
    one = mapping.map_file(fd, 10_000)
    assert ctypes.string_at(one.address + 9_000, 3) == b"xxx"
    one.close()
    one.close()
    monkeypatch.setattr(mapping._guard, "free", [])
    assert mapping.map_file(fd, 10_000) is None
    os.close(fd)
    monkeypatch.setattr(mapping._guard, "free", [0])
    assert mapping.map_file(fd, 10_000) is None
    assert mapping._guard.free == [0]


FOREIGN = """
import mmap, sys
from diskreplay.storage import mapping
file = open(sys.argv[1], "r+b")
own = mapping.map_file(file.fileno(), 20_000)
{before}
other = mmap.mmap(file.fileno(), 20_000)
file.truncate(0)
print("now", flush=True)
other[15_000]
"""


@pytest.mark.parametrize("before", ["", "import faulthandler; faulthandler.enable()"])
def test_other_faults_are_none_of_its_business(tmp_path, before):
    """Whoever maps a file himself gets the signal as if there were no handler."""
    (tmp_path / "it").write_bytes(b"x" * 20_000)
    command = [sys.executable, "-c", FOREIGN.format(before=before), str(tmp_path / "it")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (-7, "now"), done.stderr


def test_only_what_the_page_cache_can_hold_is_mapped(make_store):
    """Raw fields that batches read, all of them or none."""
    fields = list(make_store(segment_steps=32)._engine.residency.fields.values())
    codings = {field.name: Coding("none", 32) for field in fields}
    size = sum(field.row_bytes for field in fields if field.hot)
    assert mapping.fields_to_map(fields, codings, 10, 10 * size) == frozenset(RAW)
    assert mapping.fields_to_map(fields, codings, 10, 10 * size - 1) == frozenset()
    codings["observation"] = Coding("zstd", 32)
    assert mapping.fields_to_map(fields, codings, 10, 10 * size) == {"action", "reward"}
