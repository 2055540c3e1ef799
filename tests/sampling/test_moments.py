"""What happens between two looks at a store: seals, cuts, evictions and commits, here and by other handles."""

from __future__ import annotations

import numpy as np
import pytest

from diskreplay import CorruptStoreError, PrioritizedSampler, ReplayLoader, ReplayStore
from tests.conftest import fill

ZEROS = np.zeros(3, np.float32)


def take_steps(writer, count):
    for _ in range(count):
        writer.step(0, 0.0, False, False, ZEROS)


def episodes_in(*stores):
    return [store.num_episodes for store in stores]


def test_a_block_that_does_not_sum_up_is_refused_each_time(make_store, monkeypatch):
    """It was served from the second time on, and the next commit made it look sound."""
    store = make_store()
    ids = fill(store)
    sampler = PrioritizedSampler(store, seed=0)
    sampler.set_priorities(ids, np.arange(len(ids)))
    store.commit()
    again = PrioritizedSampler(store, seed=0)
    honest = store.access.load_priorities
    monkeypatch.setattr(store.access, "load_priorities", lambda *args: [values * 2 for values in honest(*args)])
    for _ in range(3):
        with pytest.raises(CorruptStoreError, match="sum to"):
            again.priorities_of(ids[8:10])
    monkeypatch.undo()
    assert again.priorities_of(ids).tolist() == list(range(len(ids)))
    assert again.check_valid() == (True, "")


def test_a_seal_and_a_cut_taken_in_at_once(make_store):
    """The row that is cut is the sealed segment's last, not the last that the learner knew."""
    actor = make_store()
    writer = actor.writer("a")
    writer.reset(ZEROS)
    take_steps(writer, 5)
    actor.commit()
    with ReplayStore.open(actor.path, mode="a") as learner:
        sampler = PrioritizedSampler(learner, seed=0)
        take_steps(writer, 35)
        actor.commit()
        assert actor.quarantine(1, "damaged")
        actor.commit()
        learner.refresh()
        assert sampler.total == len(learner) == len(actor)
        assert sampler.check_valid() == (True, "")
        assert sampler.priorities_of(np.arange(15)).tolist() == [1.0] * 15
        assert episodes_in(actor, learner) == [1, 1]
        learner.commit()
        assert {problem.kind for problem in learner.verify()} == {"quarantined"}
    actor.close()


@pytest.mark.parametrize("loaded", [False, True])
def test_a_cut_that_is_met_before_it_is_taken_in(make_store, loaded):
    """Episode ends are read when they are needed; the sampler must still hear of the cut."""
    actor = make_store()
    fill(actor, episodes=1, length=4)
    fill(actor, episodes=1, length=40)
    actor.commit()
    with ReplayStore.open(actor.path, mode="a") as learner:
        sampler = PrioritizedSampler(learner, seed=0)
        learner.commit()
        del sampler
    with ReplayStore.open(actor.path, mode="a") as learner:
        sampler = PrioritizedSampler(learner, seed=0)
        if loaded:
            sampler.draw(256)
        actor.quarantine(1, "damaged")
        actor.commit()
        learner.read(np.arange(3))  # a window in the segment that is cut: its ends are read
        learner.refresh()
        assert sampler.total == len(learner) == len(actor)
        assert sampler.check_valid() == (True, "")
        assert episodes_in(actor, learner) == [3, 3]  # what follows the quarantined rows ends, too
        for _ in range(20):
            learner.read(sampler.draw(16).step_ids)
    actor.close()


def test_batches_that_were_called_back_hold_nothing_evicted(make_store):
    """A loader was closed with batches on their way, the store went on, and somebody draws by hand."""
    store = make_store()
    fill(store, episodes=8)
    store.commit()
    sampler = PrioritizedSampler(store, seed=0)
    batches = iter(ReplayLoader(sampler, batch_size=8, threads=0, prefetch=4))
    next(batches)
    batches.close()
    fill(store, episodes=8)
    store.seal()
    store.evict(60)
    for _ in range(6):
        draw = sampler.draw(8)
        assert store.access.can_sample(draw.step_ids).all()
        store.read(draw.step_ids)


def test_alpha_stays_as_the_sum_tree_was_made(make_store):
    sampler = PrioritizedSampler(make_store(), alpha=0.5)
    with pytest.raises(AttributeError):
        sampler.alpha = 0.6
    assert sampler.alpha == 0.5


def test_another_alpha_while_others_evict(make_store, monkeypatch):
    """All priorities are loaded then, which takes long enough for segments to go meanwhile."""
    actor = make_store()
    ids = fill(actor, episodes=30)
    actor.seal()
    with ReplayStore.open(actor.path, mode="a") as learner:
        sampler = PrioritizedSampler(learner, seed=0, alpha=0.6)
        sampler.set_priorities(ids, np.arange(len(ids)))
        learner.commit()
    with ReplayStore.open(actor.path, mode="a") as learner:
        load = learner.access.load_priorities

        def late(*args):
            monkeypatch.undo()
            actor.evict(50)
            return load(*args)

        monkeypatch.setattr(learner.access, "load_priorities", late)
        sampler = PrioritizedSampler(learner, seed=0, alpha=1.0)
        left = ids[-len(learner) :]
        assert sampler.priorities_of(left).tolist() == np.arange(len(ids))[-len(learner) :].tolist()
        assert sampler.total == sampler.priorities_of(left).sum()
        assert sampler.check_valid() == (True, "")
        learner.commit()
    with ReplayStore.open(actor.path) as reader:
        assert PrioritizedSampler(reader, seed=0, alpha=1.0).total == sampler.total
    actor.close()


def test_a_reader_made_while_the_owner_commits(make_store, monkeypatch):
    """The checkpoint may count rows that were not there when the store was looked at."""
    owner = make_store(segment_steps=128)
    writer = owner.writer("a")
    writer.reset(ZEROS)
    take_steps(writer, 50)
    sampler = PrioritizedSampler(owner, seed=0)
    sampler.set_priorities(np.arange(50), np.full(50, 9.0))
    sampler.set_priorities(np.arange(40), np.full(40, 0.5))
    owner.commit()
    with ReplayStore.open(owner.path) as reader:
        load = reader.access.load_sampler

        def late(name):
            monkeypatch.undo()
            take_steps(writer, 1)
            owner.commit()
            return load(name)

        monkeypatch.setattr(reader.access, "load_sampler", late)
        twin = PrioritizedSampler(reader, seed=0)
        assert twin.priorities_of(np.arange(51)).tolist() == sampler.priorities_of(np.arange(51)).tolist()
    owner.close()
