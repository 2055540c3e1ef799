"""Damage met while sampling: an error that says where, or, by choice, a segment less and training goes on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from diskreplay import (
    CorruptionWarning,
    CorruptStoreError,
    PrioritizedSampler,
    ReplayLoader,
    ReplayStore,
    UniformSampler,
)

S = 16


def shards(path, segment):
    return sorted(path.glob(f"steps/*/c.{segment}*"))


def break_shard(store, segment, field="observation"):
    file = next(store.path.glob(f"steps/{field}/c.{segment}*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0xFF
    file.write_bytes(data)
    return file


def batches(store, sampler, count, **options):
    loader = ReplayLoader(sampler, batch_size=64, **options)
    iterator = iter(loader)
    got = list(itertools.islice(iterator, count))
    iterator.close()
    loader.close()
    return loader, got


@pytest.mark.parametrize("workers", [0, 1])
def test_by_default_the_error_names_segment_field_and_file(store, workers):
    """In threads and in worker processes alike."""
    file = break_shard(store, 3)
    with pytest.raises(CorruptStoreError) as caught:
        batches(store, UniformSampler(store, seed=0), 30, num_workers=workers)
    assert caught.value.segment == 3
    for what in ("segment 3", "field observation", str(file)):
        assert what in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [UniformSampler, PrioritizedSampler])
@pytest.mark.parametrize("damage", ["flip", "missing"])
def test_skipping_leaves_the_segment_out_and_goes_on(store, kind, workers, damage):
    """No row of it is delivered afterwards, and every row that is, is right."""
    truth = store.read(store.step_ids_of(np.arange(len(store))), n_step=3)
    known = dict(zip(truth.step_ids.tolist(), truth.observation, strict=True))
    file = break_shard(store, 3)
    if damage == "missing":
        file.unlink()
    sampler = kind(store, seed=0)
    with pytest.warns(CorruptionWarning, match="segment 3"):
        loader, got = batches(store, sampler, 30, on_corruption="skip", n_step=3, num_workers=workers)
    assert list(loader.skipped) == [3] == list(store.quarantined)
    for batch in got:
        ids = batch.step_ids.numpy()
        assert not (ids // S == 3).any()
        np.testing.assert_array_equal(batch.observation.numpy(), [known[i] for i in ids.tolist()])
    assert len(store) == len(truth.step_ids) - _transitions(store, truth.step_ids)
    if kind is PrioritizedSampler:
        assert sampler.check_valid() == (True, "")
    store.commit()
    assert [p.kind for p in store.verify()] == ["quarantined"]


def _transitions(store, ids):
    """Return how many transitions go with segment 3: its own, and the last of segment 2, which has no next one."""
    return int((ids // S == 3).sum()) + int(3 * S - 1 in ids)


def test_what_was_left_out_stays_so_and_others_hear_of_it(store):
    """The commit makes it durable; a handle opened before takes it in with refresh()."""
    ids = store.step_ids_of(np.arange(len(store)))
    with ReplayStore.open(store.path) as other:
        sampler = PrioritizedSampler(other, seed=1)
        sampler.draw(64)
        assert store.quarantine(3, "test")
        assert not store.quarantine(3, "test")
        store.commit()
        assert other.refresh()
        for handle in (other, ReplayStore.open(store.path)):
            left = handle.step_ids_of(np.arange(len(handle)))
            assert set(ids) - set(left) == {i for i in ids.tolist() if i // S == 3 or i == 3 * S - 1}
            assert handle.num_episodes == store.num_episodes
            batch = handle.read(left, n_step=5, frame_stack=2)
            assert np.isfinite(batch.observation).all()
        assert sampler.check_valid() == (True, "")
        handle.close()


def test_an_episode_that_is_cut_bootstraps_where_its_rows_end(store):
    """As an interrupted one does: gamma^m at the last observation that is left."""
    last = 3 * S - 1  # its row is inside an episode
    assert last in store.step_ids_of(np.arange(len(store)))
    before = store.read([last - 1], n_step=5, gamma=0.5)
    store.quarantine(3, "test")
    after = store.read([last - 1], n_step=5, gamma=0.5)
    assert before.discount[0] < after.discount[0] == 0.5
    store.commit()
    store.close()
    with ReplayStore.open(store.path) as again:
        assert again.read([last - 1], n_step=5, gamma=0.5).discount[0] == 0.5
        table = again.episodes()
        cut = table.first_step_id == _first(again, last)
        assert cut.sum() == 1
        assert not table.terminated[cut][0]


def _first(store, step_id):
    """Return the step id at which the episode of a step begins."""
    return int(store._engine.reader.rows("episode", *_place(store, step_id))[0])


def _place(store, step_id):
    return store._engine.table.slots_of(np.array([step_id]))


def test_a_damaged_index_record_can_be_skipped_too(store):
    """Files, checks and episodes of a segment, and priorities."""
    sampler = PrioritizedSampler(store, seed=0)
    store.commit()
    store.close()
    from diskreplay.storage import layout
    from diskreplay.storage.index import Index

    index = Index(store.path / layout.INDEX)
    with index.write() as txn:
        for segment, database in ((1, "files"), (4, "checks"), (6, "episodes")):
            key = layout.segment_key(segment)
            value = bytearray(txn.txn.get(key, db=txn.databases[database]))
            value[0] ^= 1
            txn.txn.put(key, bytes(value), db=txn.databases[database])
        key = layout.priority_key(sampler.name, 8, 0)
        txn.txn.put(key, b"nonsense", db=txn.databases["priorities"])
        txn.transaction.changed = True
    index.close()
    with ReplayStore.open(store.path, mode="a") as again:
        sampler = PrioritizedSampler(again, seed=0)
        with pytest.warns(CorruptionWarning):
            loader, got = batches(again, sampler, 30, on_corruption="skip")
        assert sorted(loader.skipped) == [1, 4, 6, 8]
        assert all(torch.isfinite(batch.observation).all() for batch in got)
        assert sampler.check_valid() == (True, "")
        again.commit()
        assert sum(map(len, again.priorities())) == len(again)


def test_neighbours_that_are_all_damaged(store):
    """The segment before a hole is read to end its episode; if it is damaged as well, it goes too."""
    for segment in (2, 3, 4):
        break_shard(store, segment, "reward")
        break_shard(store, segment, "episode")
    with pytest.warns(CorruptionWarning):
        batches(store, UniformSampler(store, seed=0), 30, on_corruption="skip")
    assert set(store.quarantined) == {2, 3, 4}
    store.commit()
    store.close()
    with ReplayStore.open(store.path) as again:
        assert not {2, 3, 4} & set((again.step_ids_of(np.arange(len(again))) // S).tolist())


def test_only_two_ways(store):
    """Anything else is refused at once."""
    with pytest.raises(ValueError, match="on_corruption"):
        ReplayLoader(UniformSampler(store), on_corruption="ignore")


def test_an_update_of_the_step_before_the_hole_is_dropped(store):
    """It was drawn before what followed it was found damaged; a learner must not stop at that."""
    sampler = PrioritizedSampler(store, seed=0)
    assert sampler.priorities_of([47]) == [1.0]
    store.quarantine(3, "for the test")
    sampler.update_priorities([46, 47, 48], [2.0, 2.0, 2.0])
    assert sampler.stale == 2
    assert sampler.priorities_of([46]) > 2
    store.commit()
    with ReplayStore.open(store.path) as again:  # nor after a restart
        reader = PrioritizedSampler(again, seed=0)
        reader.update_priorities([47], [5.0])
        assert reader.stale == 1
        with pytest.raises(ValueError, match="43"):
            reader.update_priorities([43], [5.0])  # an episode's last observation never was a transition
