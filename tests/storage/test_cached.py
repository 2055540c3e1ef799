"""Small raw fields and whole shards in memory: the same as on disk, only where they fit, never a damaged one."""

from __future__ import annotations

import numpy as np
import pytest

from diskreplay import CorruptStoreError, ReplayStore
from diskreplay.storage import cached, mapping, native
from diskreplay.storage.cached import USES, fields_to_keep, memory_limit, rooms
from diskreplay.storage.fields import Coding, Field
from diskreplay.storage.reading import FileCache
from tests.conftest import fill

SMALL = Field("reward", (), "float32", "outcome", hot=True)
VECTOR = Field("observation", (17,), "float32", "observation", hot=True)
COLD = Field("episode", (), "int64", "mark", hot=False)
RAW, CODED = Coding("none", 16), Coding("zstd", 16)


def test_the_smallest_fields_are_kept_as_far_as_they_fit():
    """Not those that a batch does not read, nor coded ones that do not fit as they are, which count all the same."""
    fields = [VECTOR, SMALL, COLD]
    codings = {"observation": RAW, "reward": RAW, "episode": CODED}
    assert fields_to_keep(fields, codings, 1000, 72_001, budget=72_000) == ["reward", "observation"]
    assert fields_to_keep(fields, codings, 1000, 72_001, budget=71_999) == ["reward"]
    assert fields_to_keep(fields, codings, 1000, 72_001, budget=3_999) == []
    assert fields_to_keep(fields, {**codings, "reward": CODED}, 1000, 72_001, budget=72_000) == ["observation"]


def test_coded_fields_are_kept_as_they_are_if_the_whole_store_fits():
    fields = [VECTOR, SMALL, COLD]
    codings = {"observation": CODED, "reward": RAW, "episode": CODED}
    assert fields_to_keep(fields, codings, 1000, 9_000, budget=13_000) == ["observation", "reward"]
    assert fields_to_keep(fields, codings, 1000, 9_000, budget=12_999) == ["observation"]
    assert fields_to_keep(fields, codings, 1000, 9_000, budget=8_999) == ["reward"]


def test_the_limit_is_that_of_the_control_group(tmp_path, monkeypatch):
    """If it has one that is below the machine's memory."""
    machine = memory_limit()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(cached, "CGROUP_LIMITS", (limit, tmp_path / "none"))
    limit.write_text("max\n")
    assert memory_limit() == machine
    limit.write_text("1048576\n")
    assert memory_limit() == 1 << 20


def test_small_rows_of_a_step_lie_side_by_side():
    """In their fields' order; rows that are not small have room of their own."""
    frame = Field("observation.camera", (84, 84), "uint8", "observation", hot=True)
    room = rooms([frame, VECTOR, SMALL], 10)
    assert {name: rows.shape for name, rows in room.items()} == {
        "observation": (10, 68), "reward": (10, 4), "observation.camera": (10, 84 * 84),
    }  # fmt: skip
    assert room["reward"].strides[0] == room["observation"].strides[0] == 72
    assert room["reward"].ctypes.data - room["observation"].ctypes.data == 68
    assert room["observation.camera"].strides[0] == 84 * 84
    assert rooms([], 10) == {}


def spoil(shard):
    """Flip a bit of a shard's first chunk."""
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)


@pytest.fixture(params=[True, False])
def compiled(request, monkeypatch):
    """Both read paths."""
    if request.param and not native.AVAILABLE:
        pytest.skip("needs the compiled path")
    monkeypatch.setattr(native, "AVAILABLE", request.param)


@pytest.mark.usefixtures("compiled")
def test_what_is_kept_is_what_is_read(make_store):
    """Also of short segments, and after eviction and its slots' use by others."""
    store = make_store(segment_steps=32)
    fill(store, episodes=9, length=13)
    store.seal()
    path = store.path
    store.close()
    with ReplayStore.open(path, mode="a") as again:
        ids = again.step_ids_of(np.arange(len(again)))
        first = again.read(ids)
        for _ in range(USES):
            again.read(ids)
        table = again._engine.table
        assert all((table.by_field[name].base[table.live()] != 0).all() for name in ("observation", "action", "reward"))
        kept = again.read(ids)
        for name in ("observation", "action", "reward", "discount", "next_observation"):
            np.testing.assert_array_equal(getattr(first, name), getattr(kept, name))
        again.evict(40)
        fill(again, episodes=4, length=13, stream="b", seed=5)
        again.seal()
        for _ in range(USES + 1):
            found = again.read(ids[-20:])
        assert (found.reward == first.reward[-20:]).all()
        assert again.verify() == []


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("compression", ["zstd", "lz4", "lz4hc"])
def test_shards_that_are_kept_are_what_is_read(make_store, compression):
    """By the process that has them and by one that executes its plans, which has none of them."""
    store = make_store(segment_steps=32, compression=compression, chunk_steps=8)
    fill(store, episodes=9, length=13)
    store.seal()
    path = store.path
    store.close()
    with ReplayStore.open(path, mode="a") as again:
        ids = again.step_ids_of(np.arange(len(again)))
        first = again.read(ids, frame_stack=3)
        for _ in range(USES):
            again.read(ids)
        places = again._engine.table.by_field["observation"]
        live = again._engine.table.live()
        assert (places.coded[live] != 0).all()
        assert not places.base[live].any()
        plan = again.plan(ids, frame_stack=3)
        plan.announce()
        kept = plan.fetch()
        np.testing.assert_array_equal(kept.observation[0], first.observation)
        moved = again.plan(ids, frame_stack=3).portable()
        assert all(not (pieces.address < -1).any() for pieces in moved.observations)
        here = moved.resolved(FileCache()).fetch()
        np.testing.assert_array_equal(here.next_observation[0], first.next_observation)
        again.evict(40)
        fill(again, episodes=4, length=13, stream="b", seed=5)
        again.seal()
        for _ in range(USES + 1):
            found = again.read(ids[-20:])
        np.testing.assert_array_equal(found.observation, again.read(ids[-20:]).observation)
        assert (found.reward == first.reward[-20:]).all()


@pytest.mark.usefixtures("compiled")
def test_a_damaged_coded_shard_is_not_kept(make_store):
    store = make_store(segment_steps=64, compression="lz4", chunk_steps=8)
    fill(store, episodes=5, length=13)
    store.seal()
    path = store.path
    store.close()
    spoil(path / "steps" / "observation" / "c.0.0")
    with ReplayStore.open(path) as again:
        for _ in range(USES + 1):
            assert len(again.read([40, 50]).reward) == 2
        table = again._engine.table
        assert not table.by_field["observation"].coded[table.slot(0)]
        with pytest.raises(CorruptStoreError, match="observation"):
            again.read([1])


@pytest.mark.usefixtures("compiled")
def test_a_damaged_shard_is_not_kept(make_store):
    """Its sound rows are still served, its damaged ones never."""
    store = make_store(segment_steps=1024, compression="none")
    fill(store, episodes=9, length=113)
    store.seal()
    path = store.path
    store.close()
    spoil(path / "steps" / "reward" / "c.0")
    with ReplayStore.open(path) as again:
        sound, spoilt = [600, 700], [1]
        for _ in range(USES + 1):
            assert len(again.read(sound).reward) == 2
        table = again._engine.table
        assert table.by_field["action"].base[table.slot(0)]
        assert not table.by_field["reward"].base[table.slot(0)]
        with pytest.raises(CorruptStoreError, match="reward"):
            again.read(spoilt)


def test_nothing_is_kept_without_room(make_store, monkeypatch):
    """Data larger than the share of memory are read as before."""
    monkeypatch.setattr(cached, "MEMORY_SHARE", 0)
    monkeypatch.setattr(mapping, "MEMORY_SHARE", 0)
    store = make_store(segment_steps=32)
    fill(store, episodes=9, length=13)
    store.seal()
    for _ in range(USES + 2):
        store.read([0, 40])
    table = store._engine.table
    assert not any(places.base.any() or places.coded.any() for places in table.by_field.values())


def test_how_much_is_kept_is_the_callers_to_say(make_store):
    """The smallest fields, as far as they fit; the batches are the same."""
    store = make_store(segment_steps=32)
    fill(store, episodes=9, length=13)
    store.seal()
    expected = store.read(store.step_ids_of(np.arange(len(store))))
    path = store.path
    store.close()
    for memory, names in (
        (0, set()),
        (4 * 32 * 4, {"reward"}),
        ("1 MB", {"action", "observation", "reward"}),
        (None, {"action", "observation", "reward"}),
    ):
        with ReplayStore.open(path, memory=memory) as again:
            for _ in range(USES + 1):
                found = again.read(again.step_ids_of(np.arange(len(again))))
            table = again._engine.table
            live = table.live()
            assert {name for name, places in table.by_field.items() if places.base[live].any()} == names
            assert {name for name, places in table.by_field.items() if places.base[live].all()} == names
        np.testing.assert_array_equal(found.observation, expected.observation)
        np.testing.assert_array_equal(found.reward, expected.reward)


@pytest.mark.parametrize("memory", ["many", "-1GB", -1, 0.5, True, "8 XB"])
def test_a_size_of_memory_that_is_none(make_store, memory):
    path = make_store().path
    with pytest.raises(ValueError, match="memory must be"):
        ReplayStore.open(path, memory=memory)
