"""A damaged or missing byte is an error that names the file, never a row."""

from __future__ import annotations

import numpy as np
import pytest

from diskreplay import CorruptStoreError, ReplayStore
from diskreplay.storage import native
from tests.conftest import fill


@pytest.fixture(params=[True, False], ids=["compiled", "python"])
def path(request, make_store, monkeypatch):
    """Return the path of a closed store with one sealed segment."""
    monkeypatch.setattr(native, "AVAILABLE", request.param and native.AVAILABLE)
    store = make_store(segment_steps=64)
    fill(store, episodes=6, length=12)
    store.seal()
    store.close()
    return store.path


def shard(path, field="observation"):
    return next((path / "steps" / field).glob("c.*"))


def read_everything(path):
    with ReplayStore.open(path) as store:
        return store.read(store.step_ids_of(np.arange(len(store))), n_step=2, frame_stack=2)


@pytest.mark.parametrize("field", ["observation", "action", "reward"])
def test_every_flipped_byte_is_noticed(path, field):
    """Flip single bytes all over a shard: reading raises and names the file, verify lists it."""
    file = shard(path, field)
    data = file.read_bytes()
    good = read_everything(path)
    for position in range(0, len(data), max(1, len(data) // 60)):
        file.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        try:
            batch = read_everything(path)
        except CorruptStoreError as err:
            assert file.name in str(err)  # noqa: PT017  padding and unread fields may be damaged unseen
        else:
            np.testing.assert_array_equal(batch.observation, good.observation)
            np.testing.assert_array_equal(batch.reward, good.reward)
        with ReplayStore.open(path) as store:
            assert str(file) in {problem.where for problem in store.verify()}
    file.write_bytes(data)
    assert read_everything(path).reward.tolist() == good.reward.tolist()


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "long"])
def test_a_file_of_another_length_is_noticed(path, damage):
    """By default zarr would read a missing chunk as zeros; we do not."""
    file = shard(path)
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "short": data[:-7], "long": data + b"x"}[damage])
    with pytest.raises(CorruptStoreError, match=file.name):
        read_everything(path)
    with ReplayStore.open(path) as store:
        assert [p.where for p in store.verify()] == [str(file)]


def test_swapped_shards_are_noticed(make_store):
    """Two sound shards in each other's place are as wrong as damaged ones."""
    store = make_store(segment_steps=16)
    fill(store, episodes=6, length=12)
    store.seal()
    store.close()
    one, two = sorted((store.path / "steps" / "observation").glob("c.*"))[:2]
    one_data, two_data = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_data)
    two.write_bytes(one_data)
    with ReplayStore.open(store.path) as again:
        assert {p.where for p in again.verify()} >= {str(one), str(two)}
        with pytest.raises(CorruptStoreError, match="checksum"):
            again.read(again.step_ids_of(np.arange(len(again))))


def test_an_index_cut_to_nothing_is_not_made_anew(path):
    """LMDB would make an empty database of an empty file."""
    data = path / "index.lmdb" / "data.mdb"
    data.write_bytes(b"")
    with pytest.raises(CorruptStoreError, match="index"):
        ReplayStore.open(path)
    assert data.read_bytes() == b""


def test_a_record_changed_in_the_index_is_noticed(path):
    """LMDB has no checksums, so every record of ours has one."""
    data = path / "index.lmdb" / "data.mdb"
    content = data.read_bytes()
    at = content.rindex(b'"name":"a"')
    data.write_bytes(content[:at] + b'"name":"b"' + content[at + 10 :])
    with pytest.raises(CorruptStoreError, match="checksum"):
        ReplayStore.open(path)
