"""Whatever does not agree with the rest is found, and nothing else is; while others write, too."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest

from diskreplay import PrioritizedSampler, ReplayStore
from diskreplay.errors import StoreNotFoundError
from diskreplay.storage import layout
from diskreplay.storage.upkeep.verify import verify_path
from tests.conftest import fill
from tests.storage.damage import STEPS, build, flip, put, raw, shard, spoil, verify

INCONSISTENT = "inconsistent"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    from diskreplay import ArraySpec, StepSpec

    spec = StepSpec(ArraySpec("observation", (3,), "float32"), ArraySpec("action", (), "int64", "discrete", n=3))
    path = tmp_path_factory.mktemp("sound") / "s.replay"
    return build(ReplayStore.create(path, spec, segment_steps=STEPS))


@pytest.fixture
def path(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "s.replay")


@pytest.fixture(autouse=True)
def _walk_seldom(request, monkeypatch):
    """Spare the tests that do not damage the index itself the process that walks it."""
    if "index" not in request.node.name:
        monkeypatch.setattr("diskreplay.storage.upkeep.verify.probe", lambda _: "")


def forge(path, database, key, change):
    """Change a record and give it the right checksum."""
    with raw(path) as (txn, databases):
        payload = txn.get(key, db=databases[database])[:-4]
        put(txn, databases, database, key, change(bytes(payload)))


def record(dtype, **fields):
    def change(payload):
        array = np.frombuffer(payload, dtype).copy()
        for name, value in fields.items():
            array[name][-1] = value
        return array.tobytes()

    return change


def document(**fields):
    return lambda payload: json.dumps({**json.loads(payload), **fields}).encode()


BLOCK_0 = layout.priority_key("prioritized", 4, 0)
SEGMENT_4 = layout.segment_key(4)
FORGERIES = {
    "rows": ("segments", SEGMENT_4, record(layout.SEGMENT, rows=15), None),
    "previous": ("segments", SEGMENT_4, record(layout.SEGMENT, previous=1), "follows 1"),
    "other stream": ("segments", SEGMENT_4, record(layout.SEGMENT, stream=7), "not in the index"),
    "ends": ("segments", layout.segment_key(0), record(layout.SEGMENT, ends=2), "other episodes"),
    "impossible": ("segments", SEGMENT_4, record(layout.SEGMENT, rows=STEPS + 1), "impossible"),
    "size": ("segments", SEGMENT_4, record(layout.SEGMENT, bytes_on_disk=5), "another size"),
    "seal": ("segments", SEGMENT_4, record(layout.SEGMENT, seal=44), "seal"),
    "length": ("episodes", layout.segment_key(1), record(layout.EPISODE, length=11), "another length"),
    "return": ("episodes", layout.segment_key(1), record(layout.EPISODE, episode_return=1e3), "sum of its rewards"),
    "first step": ("episodes", layout.segment_key(1), record(layout.EPISODE, first_step_id=3), "other steps"),
    "flags": ("episodes", layout.segment_key(1), record(layout.EPISODE, flags=2), "another way"),
    "end row": ("episodes", layout.segment_key(1), record(layout.EPISODE, end_row=6), "is_last"),
    "crc": ("files", SEGMENT_4, record(layout.FILE, crc32=1), "crc32"),
    "check": ("checks", SEGMENT_4, lambda p: p[:-4] + b"\1\2\3\4", None),
    "last segment": ("streams", layout.stream_key(1), document(last_segment=5), "last sealed"),
    "tails": ("streams", layout.stream_key(1), document(tails=[]), "no open segment"),
    "sealed tail": ("streams", layout.stream_key(1), document(tails=[7, 8]), "open and sealed"),
    "name": ("streams", layout.stream_key(1), document(name="a"), "is called 'a' too"),
    "no name": ("streams", layout.stream_key(1), document(name="a", tails=3), "cannot be"),
    "next segment": ("meta", b"counters", record(layout.COUNTERS, next_segment=8), "next segment is 8"),
    "next stream": ("meta", b"counters", record(layout.COUNTERS, next_stream=1), "next stream is 1"),
    "seals": ("meta", b"counters", record(layout.COUNTERS, seals=4), "4 seals"),
    "negative": ("meta", b"counters", record(layout.COUNTERS, evictions=-1), "evictions cannot be"),
    "transitions": ("meta", b"counters", record(layout.COUNTERS, transitions=1), "transitions"),
    "bytes": ("meta", b"counters", record(layout.COUNTERS, bytes_on_disk=1), "bytes_on_disk"),
    "fields": ("meta", b"fields", document(reward={"codec": "zip", "chunk_steps": 16}), "impossible coding"),
    "description": ("meta", b"description", document(created=1.0), "another copy"),
    "sealed order": ("seals", layout.segment_key(2), lambda _: layout.segment_key(5), "sealed as number"),
    "nan": ("priorities", BLOCK_0, lambda p: p[:8] + b"\0\0\xc0\x7f" + p[12:], "finite"),
    "priority": ("priorities", BLOCK_0, lambda p: p[:8] + b"\0\0\0\x41" + p[12:], "sum to"),
    "unsampled": ("priorities", BLOCK_0, lambda p: p[:8] + b"\0\0\x80\xbf" + p[12:], "last"),
    "later": ("priorities", BLOCK_0, lambda p: b"\7" + p[1:], "later time"),
    "short": ("priorities", BLOCK_0, lambda p: p[:-4], "15 priorities"),
    "total": ("sums", layout.sum_key("prioritized", 4), record(layout.SUM, total=1.0), "sum to"),
    "place": ("sums", layout.sum_key("prioritized", 4), record(layout.SUM, place=0), "same place"),
    "sum's rows": ("sums", layout.sum_key("prioritized", 4), record(layout.SUM, rows=3), "counts 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_record_is_found(path, name):
    """Its checksum is right: what it says is wrong."""
    database, key, change, says = FORGERIES[name]
    forge(path, database, key, change)
    found = verify_path(path)
    assert not found.sound
    text = " ".join(problem.what for problem in found.problems)
    assert says is None or says in text


@pytest.mark.parametrize(
    ("database", "key"),
    [
        ("meta", b"counters"), ("meta", b"fields"), ("meta", b"metadata"), ("streams", layout.stream_key(0)),
        ("segments", SEGMENT_4), ("files", SEGMENT_4), ("checks", SEGMENT_4), ("episodes", SEGMENT_4),
        ("seals", layout.segment_key(1)), ("tails", layout.tail_key(0, 9, 4)), ("samplers", b"prioritized"),
        ("sums", layout.sum_key("prioritized", 4)), ("priorities", layout.priority_key("prioritized", 4, 0)),
    ],
)  # fmt: skip
def test_a_damaged_record_is_named(path, database, key):
    spoil(path, database, key)
    for quick in (False, True):
        found = verify_path(path, quick=quick)
        assert not found.sound
        assert "damaged record" in {problem.kind for problem in found.problems}
    with raw(path) as (txn, databases):
        txn.delete(key, db=databases[database])
    if (database, key) not in (("meta", b"metadata"), ("priorities", layout.priority_key("prioritized", 4, 0))):
        assert not verify_path(path).sound or database == "samplers"


def test_records_that_belong_to_nothing(path):
    with raw(path) as (txn, databases):
        for database in ("files", "checks", "episodes"):
            put(txn, databases, database, layout.segment_key(50), b"")
        put(txn, databases, "sums", layout.sum_key("nobody", 1), b"")
        put(txn, databases, "priorities", layout.priority_key("prioritized", 50, 0), bytes(8))
    found = verify_path(path).problems
    assert {problem.kind for problem in found} == {INCONSISTENT}
    assert len(found) >= 5


def test_quick_reads_no_contents(path):
    for field in ("observation", "reward"):
        flip(shard(path, field, 4))
    assert verify(path, quick=True) == []
    assert len(verify(path)) == 2
    shard(path, "reward", 5).unlink()
    shard(path, "action", 6).write_bytes(b"")
    assert [kind for kind, _, _ in verify(path, quick=True)] == ["missing file", "damaged file"]


def test_progress_counts_the_bytes(path):
    seen = []
    with ReplayStore.open(path) as store:
        store.verify(progress=lambda done, total: seen.append((done, total)))
        size = store.stats().bytes_on_disk
    assert seen[-1][0] == seen[-1][1] <= size
    found = verify_path(path)
    assert found.bytes == seen[-1][1]
    assert found.to_json()["gigabytes_per_second"] > 0


def test_an_index_that_kills_whoever_reads_it_is_a_finding(path):
    data = path / "index.lmdb" / "data.mdb"
    content = data.read_bytes()
    for damaged in (content[: len(content) // 4], content[:8192] + b"\0" * (len(content) - 8192), b""):
        data.write_bytes(damaged)
        found = verify_path(path)
        assert not found.sound
        assert found.problems[0].kind == "damaged record"
    data.unlink()
    assert not verify_path(path).sound


def test_a_store_without_a_description_is_a_finding(path):
    (path / "zarr.json").write_text("{")
    assert [p.where for p in verify_path(path).problems] == [str(path / "zarr.json")]
    spoil(path, "meta", b"description")
    assert not verify_path(path).sound


def test_what_is_no_store(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(StoreNotFoundError):
            verify_path(path)


@pytest.mark.parametrize("where", ["steps/reward/c.70", "steps/reward/x", "steps/reward/zarr.json.partial", "steps/y"])
def test_leftovers_are_notes(path, where):
    (path / where).write_bytes(b"x")
    found = verify_path(path)
    assert [(p.kind, p.where) for p in found.problems] == [("orphan", str(path / where))]
    assert found.sound


def test_shards_that_are_explained_are_no_leftovers(path):
    """To be removed, in quarantine, or of a segment that its writer has not committed."""
    for segment in (70, 71, 9):
        (path / "steps" / "reward" / f"c.{segment}").write_bytes(b"x")
    (path / "steps" / "reward" / "c.9.partial").write_bytes(b"x")
    with raw(path) as (txn, databases):
        put(txn, databases, "garbage", layout.segment_key(70), b"")
    forge(path, "streams", layout.stream_key(0), document(taken=[71]))
    forge(path, "meta", b"counters", record(layout.COUNTERS, next_segment=80))
    shutil.copytree(path / "steps", path / layout.LOST / "old")
    assert verify(path) == []


def test_verifying_while_others_write_and_evict(make_store):
    """What comes and goes meanwhile is no damage."""
    store = make_store(segment_steps=8, capacity=200)
    fill(store, episodes=10, length=13)
    PrioritizedSampler(store, seed=0)
    store.commit()
    stop, failed = threading.Event(), []

    def write(stream):
        try:
            with ReplayStore.open(store.path, mode="a") as other:
                n = 0
                while not stop.is_set():
                    fill(other, episodes=2, length=5 + n % 7, stream=stream, seed=n)
                    other.commit()
                    n += 1
        except Exception as err:  # noqa: BLE001
            failed.append(err)

    threads = [threading.Thread(target=write, args=(f"w{i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    try:
        with ReplayStore.open(store.path) as reader:
            for quick in [True, False] * 6:
                assert [p for p in reader.verify(quick=quick) if not p.harmless] == []
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    store.refresh()
    assert store.stats().steps_evicted > 0


def test_no_transaction_is_open_while_files_are_read(path):
    """A long reader keeps LMDB from using pages again."""
    seen = []
    with ReplayStore.open(path) as store:
        environment = store._index._use()

        def progress(done, total):
            seen.append(list(environment._lmdb.readers().splitlines())[1:])

        store.verify(progress=progress)
        busy = [line for lines in seen for line in lines if line.split()[-1] != "-"]
    assert seen
    assert any(seen)
    assert busy == []


def test_a_stream_made_while_one_verifies_is_no_finding(make_store):
    """Nor are the priorities of its steps."""
    store = make_store()
    sampler = PrioritizedSampler(store, seed=0)
    ids = fill(store)
    store.commit()

    def go_on(*_):
        if "another" not in store.streams:
            fill(store, episodes=1, stream="another")
            store.commit()
            sampler.update_priorities(ids[:1], [2.0])
            store.commit()

    assert verify_path(store.path, progress=go_on).problems == []
    assert "another" in store.streams


@pytest.mark.parametrize("large", [1e10, 1e15])
def test_a_small_return_behind_a_large_one(make_store, large):
    """Each episode is summed by itself."""
    store = make_store()
    flags = np.array([False, False, True])
    with store.writer("a") as writer:
        for reward in (large, 0.1, 0.1):
            seen = np.zeros((4, 3), np.float32)
            writer.write_episode(seen, np.zeros(3, int), np.full(3, reward, np.float32), flags, np.zeros(3, bool))
    store.seal()
    assert store.verify() == []
