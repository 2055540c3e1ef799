"""Pages of the index that are another's, or its own of earlier, hold sound records: counts and order tell."""

from __future__ import annotations

from itertools import cycle

import pytest

from diskreplay import CorruptStoreError, PrioritizedSampler, ReplayStore
from diskreplay.storage import layout, transactions
from diskreplay.storage.environment import SLACK, Transaction
from diskreplay.storage.index import Index
from diskreplay.storage.transactions import Reading
from tests.conftest import close_with_priorities, fill


@pytest.fixture
def path(make_store):
    return close_with_priorities(make_store(segment_steps=16))


@pytest.mark.parametrize("database", ["segments", "streams", "tails", "meta"])
def test_a_table_that_lacks_a_record_is_noticed_at_open(path, monkeypatch, database):
    """Here each seems to count one more than there are."""
    real = Reading.count
    monkeypatch.setattr(Reading, "count", lambda self, name: real(self, name) + (name == database))
    with pytest.raises(CorruptStoreError, match="counts"):
        ReplayStore.open(path)


@pytest.mark.parametrize("database", ["samplers", "sums"])
def test_a_sampler_notices_too(path, monkeypatch, database):
    """When it is made, for that is when it reads these tables."""
    with ReplayStore.open(path) as store:
        real = Reading.count
        monkeypatch.setattr(Reading, "count", lambda self, name: real(self, name) + (name == database))
        with pytest.raises(CorruptStoreError, match="counts"):
            PrioritizedSampler(store)


def test_records_out_of_order_are_noticed(path, monkeypatch):
    """Two swapped pages of one table."""
    real = Reading.raw_items
    monkeypatch.setattr(Reading, "raw_items", lambda self, *where: reversed(list(real(self, *where))))
    index = Index(path / layout.INDEX)
    with index.read() as txn, pytest.raises(CorruptStoreError, match="not in its place"):
        list(txn.items("meta"))
    index.close()


@pytest.mark.parametrize("others", [("priorities", "priorities"), ("files", "episodes")])
def test_exchanged_values_are_not_taken_for_each_other(path, others):
    """Large values lie on pages of their own, without their keys; a sound value under another key is damage."""
    index = Index(path / layout.INDEX)
    with index.write() as txn:
        one, two = others
        first = next(iter(txn.raw_items(one)))
        second = next(item for item in txn.raw_items(two) if (two, item[0]) != (one, first[0]) and item[1] != first[1])
        for database, (key, _), (_, value) in ((one, first, second), (two, second, first)):
            txn.txn.put(key, value, db=txn.databases[database])
        txn.transaction.changed = True
    with index.read() as txn:
        for database in others:
            with pytest.raises(CorruptStoreError, match="checksum"):
                list(txn.items(database))
    index.close()


def test_a_sampler_whose_state_is_lost_does_not_begin_afresh(path):
    """Its priorities would be forgotten in silence."""
    index = Index(path / layout.INDEX)
    with index.write() as txn:
        txn.delete("samplers", b"prioritized")
    index.close()
    with ReplayStore.open(path) as store:
        with pytest.raises(CorruptStoreError, match="its state is missing"):
            PrioritizedSampler(store)
        assert PrioritizedSampler(store, name="another").total > 0


def test_a_record_that_claims_more_than_the_file_has_is_not_touched():
    """Touching it would be SIGBUS."""
    transaction = Transaction(None, {}, within=lambda _: False)
    assert transaction.copied(memoryview(b"abc")) == b"abc"
    with pytest.raises(CorruptStoreError, match="claims"):
        transaction.copied(memoryview(bytes(SLACK + 1)))


def test_large_records_of_the_map_and_of_an_open_transaction_pass(make_store):
    """The latter lie in memory that the file does not have yet."""
    store = make_store(segment_steps=65536)
    fill(store, episodes=1, length=9000)
    store.commit()
    environment = store._index._environment
    assert environment._base > 0
    with store._index.read() as txn:
        sizes = [len(value) for _, value in txn.raw_items("tails")]
    assert max(sizes) > SLACK
    with store._index.write() as txn:
        txn.put("tails", b"x" * 16, bytes(40 * SLACK))
        assert len(txn.raw("tails", b"x" * 16)) == 40 * SLACK + 4
        txn.delete("tails", b"x" * 16)


TABLES = [("segments", b""), ("files", b""), ("sums", b"prioritized\0"), ("sums", b"other\0"), ("sums", b"none\0")]


@pytest.fixture
def both_ways(path, monkeypatch):
    """An index with two samplers of names of different length, of which any table is worth compiled code."""
    with ReplayStore.open(path, mode="a") as store:
        sampler = PrioritizedSampler(store, name="other")
        sampler.draw(1)
        store.commit()
    monkeypatch.setattr(transactions, "MANY", 0)
    index = Index(path / layout.INDEX)
    yield index
    index.close()


def parts(found):
    segments, payload, lengths = found
    return segments.tolist(), payload, lengths.tolist()


@pytest.mark.parametrize(("database", "prefix"), TABLES)
def test_records_by_segment_are_the_same_compiled_and_plain(both_ways, database, prefix):
    with both_ways.read() as txn:
        compiled = txn._by_segment_compiled(database, prefix)
        plain = txn._by_segment(database, prefix)
        assert parts(compiled) == parts(plain) == parts(txn.by_segment(database, prefix))
        assert (len(plain[0]) > 1) == (prefix != b"none\0")


def spoil_value(txn, database, items):
    key, value = items[1]
    txn.txn.put(key, bytes([value[0] ^ 1]) + value[1:], db=txn.databases[database])


def spoil_checksum(txn, database, items):
    key, value = items[-1]
    txn.txn.put(key, value[:-1] + bytes([value[-1] ^ 128]), db=txn.databases[database])


def cut_short(txn, database, items):
    txn.txn.put(items[0][0], b"abc", db=txn.databases[database])


def exchange(txn, database, items):
    for (key, _), (_, value) in zip(items[:2], items[1::-1], strict=True):
        txn.txn.put(key, value, db=txn.databases[database])


def lose(txn, database, items):
    txn.txn.delete(items[1][0], db=txn.databases[database])


def put_older(txn, database, items):
    """A sound record, but not the one that was committed."""
    value = layout.seal_record(database, items[0][0], items[1][1][:-4])
    txn.txn.put(items[0][0], value, db=txn.databases[database])


def put_longer_key(txn, database, items):
    """Sound and counted, but no segment's."""
    txn.put(database, items[0][0] + b"\0", items[0][1][:-4])
    txn.finish()


@pytest.mark.parametrize(("database", "prefix"), [TABLES[0], TABLES[2]])
@pytest.mark.parametrize("spoil", [spoil_value, spoil_checksum, cut_short, exchange, lose, put_older, put_longer_key])
def test_damage_is_noticed_by_segment_compiled_and_plain(both_ways, database, prefix, spoil):
    with both_ways.write() as txn:
        spoil(txn, database, [item for item in txn.raw_items(database) if item[0].startswith(prefix)])
        txn.transaction.changed = True
    with both_ways.read() as txn:
        assert txn._by_segment_compiled(database, prefix) is None
        with pytest.raises(CorruptStoreError):
            txn.by_segment(database, prefix)


def test_pages_that_lead_round_in_circles_are_left_to_the_plain_way(both_ways, monkeypatch):
    """Which notices that a key is not in its place."""
    with both_ways.read() as txn:
        items = list(txn.raw_items("segments"))

        class Circle:
            def cursor(self, **_):
                return self

            def first(self):
                return True

            def __iter__(self):
                return ((memoryview(key), memoryview(value)) for key, value in cycle(items))

        monkeypatch.setattr(txn, "txn", Circle())
        assert txn._by_segment_compiled("segments", b"") is None


def test_large_records_are_left_to_the_plain_way(both_ways):
    with both_ways.write() as txn:
        txn.put("files", layout.segment_key(1 << 40), bytes(2 * SLACK))
    with both_ways.read() as txn:
        assert txn._by_segment_compiled("files", b"") is None
        assert txn.by_segment("files")[2][-1] == 2 * SLACK
