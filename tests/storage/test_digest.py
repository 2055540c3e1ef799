"""Pages of the index that are older than the rest: sound records, in their places, in the right number."""

from __future__ import annotations

import numpy as np
import pytest

from diskreplay import CorruptStoreError, PrioritizedSampler, ReplayStore
from diskreplay.storage import layout
from diskreplay.storage.digest import Digest, parse_digest
from diskreplay.storage.index import Index
from diskreplay.storage.upkeep.repair import apply, plan_repair
from diskreplay.storage.upkeep.verify import verify_path
from tests.conftest import fill
from tests.storage.damage import check, raw

PAGE = 4096


@pytest.fixture
def path(make_store):
    """Return the path of a closed store with sealed segments, a tail and priorities, committed several times."""
    store = make_store(segment_steps=16)
    sampler = PrioritizedSampler(store, seed=0)
    for _ in range(6):
        fill(store, episodes=2, length=9)
        draw = sampler.draw(16)
        sampler.update_priorities(draw.step_ids, np.ones(16))
        store.commit()
    store.close()
    return store.path


def pages_with(path, key):
    """Return the pages of the index that hold a key, by what they hold."""
    data = (path / "index.lmdb" / "data.mdb").read_bytes()
    return [at for at in range(2, len(data) // PAGE) if key in data[at * PAGE : (at + 1) * PAGE]]


def exchange(path, one, two):
    """Let two pages of the index change places."""
    file = path / "index.lmdb" / "data.mdb"
    data = bytearray(file.read_bytes())
    first, second = (slice(at * PAGE, (at + 1) * PAGE) for at in (one, two))
    data[first], data[second] = data[second], data[first]
    file.write_bytes(data)


def newest(path, key, *pages):
    """Return which of these pages the index uses: the one whose exchange with another changes what is read."""
    index = Index(path / layout.INDEX)
    with index.read() as txn:
        value = txn.raw("meta", key)
    index.close()
    data = (path / "index.lmdb" / "data.mdb").read_bytes()
    return [at for at in pages if value in data[at * PAGE : (at + 1) * PAGE]]


def test_counters_of_an_earlier_commit_are_not_taken_for_the_newest(path):
    """Two leaf pages of the index change places; one of them is the same page, a commit or more ago."""
    pages = pages_with(path, b"counters")
    current = newest(path, b"counters", *pages)
    old = [at for at in pages if at not in current]
    assert current
    assert old
    exchange(path, current[-1], old[-1])
    with pytest.raises(CorruptStoreError, match="older"):
        ReplayStore.open(path)
    assert not verify_path(path, quick=True).sound
    plan = plan_repair(path)
    assert not plan.empty
    apply(plan)
    assert plan_repair(path).empty


@pytest.mark.parametrize("database", ["meta", "streams", "segments", "tails", "samplers", "sums"])
def test_a_table_of_which_a_record_is_older_is_refused(path, database):
    age(path, database)
    with pytest.raises(CorruptStoreError, match="older"), ReplayStore.open(path) as store:
        PrioritizedSampler(store, seed=0)
    check_aged(path, database)


def test_priorities_of_an_earlier_commit_are_not_served(path):
    """The sum of these is the same."""
    index = Index(path / layout.INDEX)
    with index.write() as txn:
        key = next(txn.keys("priorities"))
        folded, values = layout.parse_priorities(txn.get("priorities", key), "it")
        assert values[0] != values[4]
        values = values.copy()
        values[[0, 4]] = values[[4, 0]]
        before = txn.raw("priorities", key)
        value = layout.seal_record("priorities", key, layout.priorities_payload(folded, values))
        txn._note("priorities", before, value)
        txn.txn.put(key, value, db=txn.databases["priorities"])
    index.close()
    for mode in ("r", "a"):
        with ReplayStore.open(path, mode=mode) as store:
            sampler = PrioritizedSampler(store, seed=0)
            with pytest.raises(CorruptStoreError, match="not the one that was committed"):
                sampler.priorities_of([0, 4])
    assert "not those that were committed" in verify_path(path).problems[0].what
    plan = plan_repair(path)
    assert [loss.what for loss in plan.losses] == ["priorities of sampler 'prioritized' in segment 0"]
    apply(plan)
    check(path)


@pytest.mark.parametrize("database", ["seals", "files", "checks", "episodes", "priorities"])
def test_of_tables_that_opening_does_not_read_verify_says_so(path, database):
    age(path, database)
    ReplayStore.open(path).close()
    check_aged(path, database)


def age(path, database):
    """Have a record of a table be what it was before it was committed last: sound, and in its place."""
    index = Index(path / layout.INDEX)
    with index.write() as txn:
        keys = list(txn.keys(database))
        key = b"counters" if database == "meta" else keys[-1]
        before = txn.raw(database, key)
        payload = before[:-4]
        txn.put(database, key, payload[:-1] + bytes([payload[-1] ^ 1]))
    with index.write() as txn:
        txn.txn.put(key, before, db=txn.databases[database])
        txn.transaction.changed = True
    index.close()


def check_aged(path, database):
    """Expect that verify says which table it is, and that repair takes it as it is and says so."""
    assert [problem.where for problem in verify_path(path).problems] == [f"index: {database}"]
    plan = plan_repair(path)
    assert [loss.what for loss in plan.losses] == ["what was committed last"]
    apply(plan)
    check(path)


def test_a_root_of_an_earlier_commit_is_refused(path):
    """All tables are then of that commit, and go together."""
    index = Index(path / layout.INDEX)
    with index.write() as txn:
        txn.put_counters(txn.counters())
    with index.write() as txn:  # a transaction that says it was an earlier one
        was = txn.digest()
        payload = Digest(was.transaction - 2, was.sums).payload()
        txn.txn.put(b"tables", layout.seal_record("digest", b"tables", payload), db=txn.databases["digest"])
    index.close()
    with pytest.raises(CorruptStoreError, match="not the newest"):
        ReplayStore.open(path)
    assert not verify_path(path, quick=True).sound
    apply(plan_repair(path))
    check(path)


@pytest.mark.parametrize("how", ["spoiled", "gone"])
def test_a_digest_that_is_damaged_itself_is_made_anew(path, how):
    with raw(path) as (txn, databases):
        value = bytearray(txn.get(b"tables", db=databases["digest"]))
        value[3] ^= 1
    index = Index(path / layout.INDEX)
    with index.write() as txn:
        if how == "gone":
            txn.txn.delete(b"tables", db=txn.databases["digest"])
        else:
            txn.txn.put(b"tables", bytes(value), db=txn.databases["digest"])
    index.close()
    with pytest.raises(CorruptStoreError):
        ReplayStore.open(path)
    assert not verify_path(path, quick=True).sound
    plan = plan_repair(path)
    assert plan.losses == []
    apply(plan)
    check(path)


def test_a_copy_that_lmdb_made_is_sound(path, tmp_path):
    """Its transactions count from 1 again."""
    with ReplayStore.open(path) as store:
        store.backup(tmp_path / "copy.replay")
    assert verify_path(tmp_path / "copy.replay").problems == []
    check(tmp_path / "copy.replay")


def test_what_a_digest_says_is_read_back():
    sums = {"meta": (1 << 64) - 1, "tails": 3}
    digest = parse_digest(Digest(7, sums).payload())
    assert digest.transaction == 7
    assert digest.agrees("meta", -1)
    assert digest.agrees("tails", 3)
    assert not digest.agrees("tails", 4)
    assert digest.changed(8, {"tails": -3, "meta": 1}).agrees("meta", 0)
    with pytest.raises(CorruptStoreError, match="missing"):
        parse_digest(None)
