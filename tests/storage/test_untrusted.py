"""Stores made to do harm: absurd sizes are refused before memory is asked for, names stay inside, nothing is run."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import struct
import time

import numpy as np
import pytest
from numcodecs import Zstd

from diskreplay import (
    ArraySpec,
    CorruptStoreError,
    PrioritizedSampler,
    ReplayError,
    ReplayStore,
    SpecMismatchError,
    StepSpec,
)
from diskreplay.storage import layout
from diskreplay.storage.cached import read_rows
from diskreplay.storage.fields import Coding, Field
from diskreplay.storage.index import Index
from diskreplay.storage.probe import probe
from diskreplay.storage.upkeep.repair import repair_store
from diskreplay.storage.upkeep.verify import verify_path
from tests.conftest import fill
from tests.storage.test_environment import in_child

ROOM = 768 << 20


@pytest.fixture
def path(make_store):
    """Return the path of a closed store with sealed segments, a tail and priorities."""
    store = make_store(segment_steps=16)
    sampler = PrioritizedSampler(store, seed=0)
    fill(store, episodes=7, length=9)
    store.commit()
    sampler.update_priorities([0, 1, 2], [1.0, 2.0, 3.0])
    store.commit()
    store.close()
    return store.path


def use(path):
    """Do what a user does; an error of ours is what may come of it."""
    with ReplayStore.open(path, mode="a") as store:
        store.read(store.step_ids_of(np.arange(len(store))), n_step=3)
        sampler = PrioritizedSampler(store, seed=0)
        store.read(sampler.draw(256).step_ids)
        store.stats()
        fill(store, episodes=4, length=9)
        store.commit()
        store.commit()


def memory_now():
    """Return the bytes of data that this process has."""
    data = next(line for line in open("/proc/self/status") if line.startswith("VmData"))  # noqa: PTH123, SIM115
    return int(data.split()[1]) * 1024


def refused(path, match=None):
    """Use a store in a child with little memory: it must raise an error of ours, soon."""

    def work():
        limit = memory_now() + ROOM
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        with pytest.raises(ReplayError, match=match):
            use(path)

    started = time.monotonic()
    assert in_child(work, patience=30) == 0
    assert time.monotonic() - started < 20


def describe(path, change):
    file = layout.group_path(path)
    data = json.loads(file.read_bytes())
    change(data["attributes"][layout.GROUP_KEY])
    file.write_text(json.dumps(data))


def rewrite(path, database, key, change):
    index = Index(path / layout.INDEX)
    with index.write() as txn:
        found = txn.get(database, key)
        txn.put(database, key, change(found))
    index.close()


def rewrite_json(path, database, key, **changes):
    rewrite(path, database, key, lambda old: json.dumps({**json.loads(old), **changes}).encode())


def nested(depth):
    tree = {"array": {"shape": [3], "dtype": "float32", "kind": "box"}}
    for _ in range(depth):
        tree = {"tuple": [tree]}
    return tree


@pytest.mark.parametrize(
    "changes",
    [
        {"segment_steps": 1 << 60},
        {"segment_steps": -16},
        {"segment_steps": 1e300},
        {"segment_steps": "16"},
        {"segment_steps": [16]},
        {"capacity": {"steps": "many", "bytes": None}},
        {"capacity": 7},
        {"compression": "pickle"},
        {"durability": "none"},
        {"spec": {"observation": {"array": {"shape": [1 << 40], "dtype": "float32", "kind": "box"}}, "action": 1}},
        {"spec": {"observation": {"array": {"shape": [1e400], "dtype": "float32", "kind": "box"}}, "action": 1}},
        {"spec": {"observation": {"array": {"shape": [3], "dtype": "object", "kind": "box"}}, "action": 1}},
        {"spec": {"observation": nested(400), "action": nested(0)}},
        {"spec": None},
        {"uuid": None, "created": "yesterday"},
        {"format_version": 2},
    ],
)
def test_a_description_out_of_range(path, changes):
    """Opening says what is wrong; nothing is allocated."""
    describe(path, lambda data: data.update(changes))
    refused(path)


def test_a_description_of_many_large_fields(path):
    """Each is allowed, all together are not."""
    leaf = {"array": {"shape": [1 << 20], "dtype": "float64", "kind": "box"}}
    tree = {"dict": [[f"k{i}", leaf] for i in range(9000)]}
    describe(path, lambda data: data["spec"].update(observation=tree))
    refused(path, "description is damaged")


def test_descriptions_that_are_no_descriptions(path):
    """Deep, long, or another thing."""
    file = layout.group_path(path)
    for text in (b"[" * 100_000, b"[]", b"\xff\xfe", b'{"attributes": []}', b'{"attributes": {"diskreplay": 3}}'):
        file.write_bytes(text)
        refused(path)
    os.truncate(file, 1 << 40)
    refused(path, "far too long")


@pytest.mark.parametrize("segment", [1 << 40, (1 << 63) - 1, -5, 1000])
def test_segments_that_cannot_be(path, segment):
    """A look-up table over the ids would take terabytes."""
    index = Index(path / layout.INDEX)
    with index.write() as txn:
        record = txn.array("segments", layout.segment_key(0), layout.SEGMENT).copy()
        record[0]["segment"] = segment
        txn.put("segments", layout.segment_key(abs(segment)), record.tobytes())
    index.close()
    refused(path, "impossible record")


def test_far_ids_that_can_be(path):
    """The counter allows them, so they are looked up without a table over the span."""
    index = Index(path / layout.INDEX)
    far = 1 << 40
    with index.write() as txn:
        counters = txn.counters()
        counters["next_segment"] = far + 1
        txn.put_counters(counters)
        for database in ("segments", "files", "checks", "episodes"):
            txn.put(database, layout.segment_key(far), txn.get(database, layout.segment_key(1)))
        record = txn.array("segments", layout.segment_key(far), layout.SEGMENT).copy()
        record[0]["segment"], record[0]["previous"] = far, -1
        txn.put("segments", layout.segment_key(far), record.tobytes())
    index.close()
    refused(path)  # its files are not there


@pytest.mark.parametrize("tails", [[1 << 70], [-1], "abc", None, [[1]], {"a": 1}])
def test_streams_that_cannot_be(path, tails):
    """Names and numbers of a stream's record."""
    rewrite_json(path, "streams", layout.stream_key(0), tails=tails)
    refused(path)


def test_a_tail_that_decodes_to_terabytes(path):
    """The frame's own claim is not believed."""
    frame = bytearray(Zstd(level=1).encode(bytes(1 << 20)))
    assert frame[4] & 0xC0 == 0x80  # a frame header with 4 bytes of content size
    struct.pack_into("<I", frame, 5, (1 << 32) - 1)
    index = Index(path / layout.INDEX)
    with index.write() as txn:
        key, payload = next(txn.items("tails"))
        (size,) = struct.unpack_from("<I", payload)
        header = json.loads(payload[4 : 4 + size])
        name, _, length = header["blobs"][0]
        header["blobs"][0] = [name, "zstd", len(frame)]
        text = json.dumps(header).encode()
        rest = payload[4 + size + length :]
        txn.put("tails", key, struct.pack("<I", len(text)) + text + bytes(frame) + rest)
    index.close()
    refused(path, "tail")


@pytest.mark.parametrize(
    "coding",
    [{"codec": "zstd", "chunk_steps": 1 << 40}, {"codec": "pickle", "chunk_steps": 16}, {"codec": "zstd"}, 3, None],
)
def test_codings_that_cannot_be(path, coding):
    """Chunk lengths decide how much memory a read asks for."""
    rewrite_json(path, "meta", b"fields", observation=coding)
    refused(path)


@pytest.mark.parametrize("place", [(1 << 31) - 1, -1])
def test_places_in_the_tree_that_cannot_be(path, place):
    """The tree would have to be as large; where places are only far apart, others are given."""
    key = layout.sum_key("prioritized", 0)

    def change(old):
        record = np.frombuffer(old, layout.SUM).copy()
        record["place"] = place
        return record.tobytes()

    rewrite(path, "sums", key, change)
    if place < 0:
        refused(path, "place")
    else:
        assert in_child(lambda: use(path), patience=30) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [0, 3]},
        {"shape": [1 << 50, 3]},
        {"data_type": "float64"},
        {"shape": [256, 4]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]},
        {"codecs": [{"name": "pickle", "configuration": {}}]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 40, 3]}}},
        {"fill_value": 7},
    ],
)
def test_arrays_that_are_not_what_the_index_says(path, change):
    """What would be written through them could not be read; a length alone is mended."""
    file = path / "steps" / "observation" / "zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **change}))
    if list(change) == ["shape"] and change["shape"][1] == 3:
        assert in_child(lambda: use(path), patience=30) == 0
    else:
        refused(path, "observation")


@pytest.mark.parametrize("key", ["../../evil", "/etc/evil", "..", ".", "a/b", "a\0b", "c.0"])
def test_field_names_stay_inside_the_store(tmp_path, key):
    """Whatever a Dict space calls its parts; and whoever wrote the description."""
    spec = StepSpec({key: ArraySpec("observation.x", (3,), "float32")}, ArraySpec("action", (), "int64", n=3))
    data = {**spec.to_json()}
    rebuilt = StepSpec.from_json(data)
    (name,) = [leaf.name for leaf in rebuilt.observation_leaves]
    assert "/" not in name
    assert "\0" not in name
    assert name.startswith("observation.")
    with ReplayStore.create(tmp_path / "s.replay", rebuilt, segment_steps=4) as store:
        with store.writer() as writer:
            flags = np.arange(8) == 7
            seen = {key: np.zeros((9, 3), np.float32)}
            writer.write_episode(seen, np.zeros(8, int), np.zeros(8), flags, flags & False)
        store.seal()
        assert store.verify() == []
    assert [p.name for p in tmp_path.iterdir()] == ["s.replay"]


def test_a_name_too_long_for_a_file_is_refused_when_the_store_is_made(tmp_path):
    """And not when the first segment is sealed."""
    spec = StepSpec(ArraySpec("observation." + "x" * 300, (3,), "float32"), ArraySpec("action", (), "int64", n=3))
    with pytest.raises(SpecMismatchError, match="at most"):
        ReplayStore.create(tmp_path / "s.replay", spec)
    assert list(tmp_path.iterdir()) == []


def test_symbolic_links_are_not_followed_when_shards_are_replaced(path, tmp_path):
    """A shard's name may be one; what it points to stays as it is."""
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    for segment in range(4, 12):
        (path / "steps" / "reward" / f"c.{segment}").unlink(missing_ok=True)
        (path / "steps" / "reward" / f"c.{segment}").symlink_to(target)
        (path / "steps" / "reward" / f"c.{segment}.partial").symlink_to(target)
    copy = tmp_path / "copy.replay"
    shutil.copytree(path, copy, symlinks=True)

    def work():
        with contextlib.suppress(ReplayError):
            use(copy)

    assert in_child(work, patience=30) == 0
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("file", ["zarr.json", "steps/zarr.json", "steps/reward/zarr.json"])
def test_json_nested_beyond_what_python_follows_is_a_finding(path, file):
    """It ended in a RecursionError."""
    (path / file).write_text("[" * 200_000)
    assert file in " ".join(problem.where for problem in verify_path(path).problems)
    repair_store(path)
    assert verify_path(path).problems == []


def test_a_folder_in_the_place_of_the_readers_table_does_not_cost_the_index(path):
    """`repair` said that the index should be made anew, without tails and priorities."""
    (path / "index.lmdb" / "lock.mdb").unlink()
    (path / "index.lmdb" / "lock.mdb").mkdir()
    with pytest.raises(CorruptStoreError, match="no regular file") as caught:
        repair_store(path)
    assert "rebuild" not in caught.value.hint


def test_looking_at_a_store_imports_nothing_from_it(path, monkeypatch):
    """The walk of an index is a Python process of its own, and the current folder may be the store."""
    (path / "lmdb.py").write_text("open('was-run', 'w').close(); raise SystemExit(0)")
    monkeypatch.chdir(path)
    assert probe(path / layout.INDEX) == ""
    assert not (path / "was-run").exists()


def test_repair_does_not_read_through_links(path, tmp_path):
    """What a link names is not the store's, and would be copied into `lost+found`."""
    (tmp_path / "secret").write_text("not to be seen")
    document = path / "steps" / "reward" / "zarr.json"
    document.unlink()
    document.symlink_to(tmp_path / "secret")
    repair_store(path)
    kept = [file for file in (path / "lost+found").rglob("*") if file.is_file() and not file.is_symlink()]
    assert kept
    assert not any(b"not to be seen" in file.read_bytes() for file in kept)
    assert verify_path(path).sound


@pytest.mark.parametrize("number", [4_000_000_000_000_000_000, 9_999_999_999_999_999_999])
def test_a_foreign_file_with_an_impossible_number(path, number):
    """Repair moves it aside; the next segment is not numbered after it."""
    (path / "steps" / "reward" / f"c.{number}").write_bytes(b"x")
    repair_store(path)
    use(path)
    assert verify_path(path).sound


@pytest.mark.parametrize("table", ["segments", "files", "checks", "episodes", "tails"])
@pytest.mark.parametrize("bit", [0x80, 0x40, 0x20])
def test_a_flipped_bit_of_a_key(path, table, bit):
    """It names a segment far beyond all others. After repair the store goes on."""
    with Index(path / layout.INDEX).read() as txn:
        *_, (key, value) = txn.raw_items(table)
    data = bytearray((path / layout.INDEX / "data.mdb").read_bytes())
    at = [i for i in range(len(data)) if data.startswith(key + value, i)]
    assert at
    for i in at:
        data[i + (4 if table == "tails" else 0)] ^= bit
    (path / layout.INDEX / "data.mdb").write_bytes(data)
    assert not verify_path(path).sound
    repair_store(path)
    use(path)
    assert verify_path(path).sound


def test_a_shard_of_fewer_chunks_than_its_segment_has_rows(path):
    """Rows behind the last chunk are not served out of whatever lies there in memory."""
    field = Field("reward", (), "float32", "outcome", hot=True)
    rows = np.arange(32, dtype=np.float32)
    shard = path / "shard"
    shard.write_bytes(b"".join(layout.seal_value(rows[i : i + 16].tobytes()) for i in (0, 16)) + bytes(2 * 16 + 4))
    checks = np.array([layout.record_checksum(layout.seal_value(rows[i : i + 16].tobytes())) for i in (0, 16)], "<u4")
    with shard.open("rb") as file:
        arguments = file.fileno(), field, Coding("none", 16), checks, shard.stat().st_size
        kept = np.empty((32, 4), np.uint8)
        assert read_rows(*arguments, kept)
        assert kept.reshape(-1).view(np.float32).tolist() == rows.tolist()
        assert not read_rows(*arguments, np.empty((33, 4), np.uint8))


@pytest.mark.parametrize(
    "file",
    [
        "zarr.json", "steps/zarr.json", "steps/reward/zarr.json", "steps/reward/c.1", "steps/observation/c.1.0",
        "index.lmdb/data.mdb", "index.lmdb/lock.mdb", "index.lmdb/watermark", "locks/store", "locks/stream-0",
    ],
)  # fmt: skip
def test_files_that_claim_terabytes(path, file):
    """It was a MemoryError. What a file says is read as far as its records, or its kind, allow."""
    os.truncate(path / file, 1 << 42)

    def work():
        limit = memory_now() + ROOM
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        for mode in ("use", "verify", "repair", "verify", "use", "rebuild", "use"):
            with contextlib.suppress(ReplayError):
                if mode == "use":
                    use(path)
                elif mode == "verify":
                    verify_path(path)
                else:
                    repair_store(path, rebuild_index=mode == "rebuild")
        assert verify_path(path).sound or file == "index.lmdb/lock.mdb"

    assert in_child(work, patience=60) == 0


def test_a_shard_whose_record_claims_terabytes_too(path):
    """The record's checksum is right: what a shard can have at most is known."""
    os.truncate(path / "steps" / "reward" / "c.1", 1 << 42)

    def change(old):
        files = np.frombuffer(old, layout.FILE).copy()
        files["length"][2] = 1 << 42
        return files.tobytes()

    rewrite(path, "files", layout.segment_key(1), change)
    refused(path)

    def work():
        limit = memory_now() + ROOM
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        assert not verify_path(path).sound
        repair_store(path)
        assert verify_path(path).sound

    assert in_child(work, patience=60) == 0
