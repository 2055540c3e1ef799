"""A small store of every kind of record, ways to damage it, and what must hold after a repair."""

from __future__ import annotations

import contextlib

import numpy as np

from diskreplay import PrioritizedSampler, ReplayStore, UniformSampler
from diskreplay.storage import layout
from diskreplay.storage.index import Index
from diskreplay.storage.upkeep.repair import apply, plan_repair
from tests.conftest import fill

STEPS = 16


def build(store):
    """Fill a store of 16-step segments: two streams, episodes across borders, tails of several records, samplers."""
    rng = np.random.default_rng(7)
    fill(store, episodes=4, length=10, stream="a", seed=1)
    fill(store, episodes=2, length=40, stream="b", seed=2)
    sampler = PrioritizedSampler(store, seed=0)
    UniformSampler(store, seed=1, name="uniform").draw(8)
    store.commit()
    for _ in range(4):
        draw = sampler.draw(16)
        sampler.update_priorities(draw.step_ids, rng.random(16))
    store.commit()
    with store.writer("a") as writer:
        writer.reset(rng.normal(size=3).astype(np.float32))
        for t in range(12):
            writer.step(t % 3, float(t), False, False, rng.normal(size=3).astype(np.float32))
            if t in (1, 3, 7):
                store.commit()
        sampler.draw_ahead(8)
        store.commit()
        path = store.path
        abandon(store)
    return path


def abandon(store):
    """Let go of a store as a killed process would."""
    store._closed = True
    store._engine.close()
    store._index.close()
    store._use.release()


def rows(path):
    """Return step id -> (observation, action, reward) of every step that can be sampled."""
    with ReplayStore.open(path) as store:
        ids = store.step_ids_of(np.arange(len(store)))
        batch = store.read(ids)
        return {
            int(i): (batch.observation[n].tobytes(), int(batch.action[n]), float(batch.reward[n]))
            for n, i in enumerate(ids)
        }


def priorities(path):
    """Return step id -> committed priority."""
    with ReplayStore.open(path) as store:
        sampler = PrioritizedSampler(store, seed=0)
        ids = store.step_ids_of(np.arange(len(store)))
        return dict(zip(ids.tolist(), sampler.priorities_of(ids).tolist(), strict=True))


class Records:
    """The index's records as they are; what a table must hold follows, as if they had been committed so."""

    def __init__(self, txn):
        self.txn = txn
        self.names = {id(db): name for name, db in txn.databases.items()}

    def get(self, key, db):
        found = self.txn.txn.get(key, db=db)
        return None if found is None else bytes(found)

    def put(self, key, value, db):
        self.txn._note(self.names[id(db)], self.txn.txn.get(key, db=db), value)
        self.txn.txn.put(key, value, db=db)

    def delete(self, key, db):
        self.txn.delete(self.names[id(db)], key)


@contextlib.contextmanager
def raw(path):
    """Change records of the index behind the engine's back: yields (records, databases)."""
    index = Index(path / layout.INDEX)
    try:
        with index.write() as txn:
            yield Records(txn), txn.databases
    finally:
        index.close()


def put(txn, databases, database, key, payload):
    """Write a record with the right checksum."""
    txn.put(key, layout.seal_record(database, key, payload), db=databases[database])


def spoil(path, database, key):
    """Flip a byte of a record."""
    with raw(path) as (txn, databases):
        value = bytearray(txn.get(key, db=databases[database]))
        value[len(value) // 2] ^= 0x20
        txn.put(key, bytes(value), db=databases[database])


def shard(path, field, segment):
    """Return the path of a segment's shard."""
    return next(p for p in (path / "steps" / field).iterdir() if p.name.split(".")[:2] == ["c", str(segment)])


def flip(file, at=0.5):
    """Flip a bit of a file."""
    data = bytearray(file.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


def verify(path, **options):
    """Return (kind, where, what) of what is wrong."""
    with ReplayStore.open(path) as store:
        return [(p.kind, p.where, p.what) for p in store.verify(**options)]


def repair(path):
    """Plan a repair and do it; the store must be sound and useful afterwards."""
    plan = plan_repair(path)
    assert not plan.empty
    done = apply(plan)
    check(path)
    return done


def check(path):
    """Expect a store that verifies clean, needs no repair, and can be read, sampled and appended to."""
    assert verify(path) == []
    assert plan_repair(path).empty
    rows(path)
    with ReplayStore.open(path, mode="a") as store:
        sampler = PrioritizedSampler(store)
        for _ in range(3):
            draw = sampler.draw(32)
            store.read(draw.step_ids, n_step=3, frame_stack=2)
            sampler.update_priorities(draw.step_ids, np.ones(32))
        assert sampler.check_valid() == (True, "")
        before = len(store)
        for name in store.streams:
            fill(store, episodes=2, length=9, stream=name)
        assert len(store) >= before + 18 * len(store.streams) - len(store.streams)
        store.seal()
        assert store.verify() == []
