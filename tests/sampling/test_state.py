"""Priorities and sampler state are committed with the data, and come back; eviction and growth are followed."""

from __future__ import annotations

import numpy as np
import pytest

from diskreplay import (
    NotEnoughStepsError,
    PrioritizedSampler,
    ReplayError,
    ReplayLoader,
    ReplayStore,
    SpecMismatchError,
    StoreLockedError,
    UniformSampler,
)
from tests.conftest import fill


def test_priorities_come_back_exactly(make_store):
    """Of the last commit, not of the moment of closing; blocks are loaded when they are touched."""
    store = make_store(segment_steps=2500)
    ids = fill(store, episodes=60, length=100)
    sampler = PrioritizedSampler(store, seed=0)
    rng = np.random.default_rng(0)
    sampler.update_priorities(ids, rng.normal(size=len(ids)))
    store.commit()
    expected, total = sampler.priorities_of(ids), sampler.total
    sampler.update_priorities(ids[:5], np.full(5, 99.0))
    store.close()
    with ReplayStore.open(store.path, mode="a") as again:
        loaded = PrioritizedSampler(again, seed=0)
        assert not loaded._priorities.tree.is_loaded([0])[0]
        assert loaded.total == total
        np.testing.assert_array_equal(loaded.priorities_of(ids), expected)
        assert loaded.total == total
        assert loaded.largest == expected.max()
        assert loaded.check_valid() == (True, "")


@pytest.mark.parametrize("kind", [UniformSampler, PrioritizedSampler])
def test_a_run_that_is_cut_goes_on_with_the_same_batches(make_store, kind):
    """Batches in flight are committed too: the loader of the next process delivers them first."""
    store = make_store(segment_steps=64)
    fill(store, episodes=30, length=20)

    def learn(sampler, batch):
        if kind is PrioritizedSampler:
            sampler.update_priorities(batch.step_ids, batch.reward)

    def run(at, count, **options):
        sampler = kind(at, **options)
        seen = []
        for batch, _ in zip(ReplayLoader(sampler, batch_size=16, prefetch=4), range(count), strict=False):
            seen.append(batch.step_ids.tolist())
            learn(sampler, batch)
            if len(seen) == count:
                at.commit()
                break
        return seen

    store.commit()
    before = {p.name: p.read_bytes() for p in (store.path / "index.lmdb").iterdir()}
    whole = run(store, 12, seed=0)
    store.close()
    for name, data in before.items():
        (store.path / "index.lmdb" / name).write_bytes(data)
    with ReplayStore.open(store.path, mode="a") as one:
        first = run(one, 5, seed=0)
    with ReplayStore.open(store.path, mode="a") as two:
        second = run(two, 7, seed=0, resume=True)
    assert first + second == whole


def test_another_alpha_recomputes_the_tree(make_store):
    """Priorities are stored, not their powers."""
    store = make_store()
    ids = fill(store, episodes=5, length=10)
    PrioritizedSampler(store, alpha=0.6, seed=0).set_priorities(ids, np.arange(1, 51))
    store.commit()
    one = PrioritizedSampler(store, alpha=0.6, seed=0)
    one.set_priorities(ids, np.arange(1, 51))
    store.commit()
    with ReplayStore.open(store.path) as other:
        two = PrioritizedSampler(other, alpha=1.0, seed=0)
        assert two.priorities_of(ids).tolist() == list(range(1, 51))
        assert two.total == pytest.approx(sum(range(1, 51)))
        assert two.check_valid() == (True, "")


def test_growth_and_eviction_are_followed(make_store):
    """The tree knows exactly the live transitions, with their priorities, through 40 rounds."""
    store = make_store(segment_steps=16, capacity=100)
    sampler = PrioritizedSampler(store, eps=0.0, seed=0)
    rng, known = np.random.default_rng(0), {}
    for round_ in range(40):
        fresh = fill(store, episodes=1, length=int(rng.integers(1, 30)), seed=round_, stream=f"s{round_ % 2}")
        known |= dict.fromkeys(fresh.tolist(), float(sampler.largest))
        drawn = np.unique(sampler.draw(8).step_ids)
        values = rng.gamma(1.0, size=len(drawn)).astype(np.float32)
        sampler.set_priorities(drawn, values)
        known |= dict(zip(drawn.tolist(), values.tolist(), strict=True))
        store.commit()
        live = store.step_ids_of(np.arange(len(store)))
        assert len(store) <= 100
        assert sampler.check_valid() == (True, "")
        assert sampler.priorities_of(live).tolist() == [known[i] for i in live.tolist()]
    assert store.stats().steps_evicted > 300
    with ReplayStore.open(store.path) as other:
        again = PrioritizedSampler(other, seed=0)
        assert again.priorities_of(live).tolist() == [known[i] for i in live.tolist()]
        np.testing.assert_array_equal(
            again.draw(64).step_ids,
            PrioritizedSampler(store, seed=0).draw(64).step_ids,
        )


def test_updates_of_evicted_steps_are_dropped_and_counted(make_store):
    """They come late from a learner that drew ahead."""
    store = make_store(segment_steps=16, capacity=32)
    old = fill(store, episodes=2, length=10)
    sampler = PrioritizedSampler(store, seed=0)
    new = fill(store, episodes=6, length=10)
    store.commit()
    assert len(store) <= 32
    before = sampler.total
    sampler.update_priorities(old[:5], np.full(5, 50.0))
    assert sampler.stale == 5
    assert sampler.total <= before
    sampler.update_priorities(np.concatenate([old[:1], new[-1:]]), [1.0, 2.0])
    assert sampler.stale == 6


def test_two_learners_are_kept_apart(make_store):
    """One process owns a sampler's priorities; the second is told who."""
    import subprocess
    import sys

    store = make_store()
    fill(store)
    store.commit()
    sampler = PrioritizedSampler(store, seed=0)
    script = (
        "import sys; from diskreplay import *\n"
        "s = ReplayStore.open(sys.argv[1], mode='a')\n"
        "try: PrioritizedSampler(s)\n"
        "except StoreLockedError as err: print(err)\n"
        "PrioritizedSampler(s, name='other')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(store.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "sampler 'prioritized' is held by process" in done.stdout
    assert StoreLockedError("x").hint
    del sampler


def test_a_reader_draws_again_what_its_owner_set_to_0_meanwhile(make_store):
    """A block's sum, known since the reader opened, is no promise that it still holds anything once it is read."""
    store = make_store(segment_steps=64)
    ids = fill(store, episodes=10, length=63)
    learner = PrioritizedSampler(store, eps=0.0, seed=0)
    learner.set_priorities(ids, np.ones(len(ids)))
    store.commit()
    with ReplayStore.open(store.path, mode="r") as other:
        reader = PrioritizedSampler(other, seed=0)
        kept = ids[-63:]
        learner.set_priorities(ids[:-63], np.zeros(len(ids) - 63))
        store.commit()
        for _ in range(3):
            draw = reader.draw(32)
            assert np.isin(draw.step_ids, kept).all()
            assert np.isfinite(draw.weight).all()
        learner.set_priorities(kept, np.zeros(63))
        store.commit()
        late = PrioritizedSampler(other, seed=1)
        with pytest.raises(NotEnoughStepsError, match="every priority is 0"):
            late.draw(32)


@pytest.mark.parametrize("resume", [None, False, True])
def test_another_kind_of_sampler_leaves_the_state_alone(make_store, resume):
    """It overwrote what the priorities needed; and a sampler that could not be made was committed all the same."""
    store = make_store()
    ids = fill(store, episodes=4, length=10)
    sampler = PrioritizedSampler(store, seed=0, alpha=0.3)
    sampler.set_priorities(ids, np.full(len(ids), 7.0))
    store.commit()
    before = store.access.load_state("prioritized")
    del sampler
    with pytest.raises(SpecMismatchError, match="PrioritizedSampler") as caught:  # whose traceback holds it
        UniformSampler(store, name="prioritized", seed=1, resume=resume)
    fill(store, episodes=1, length=3)
    store.commit()
    assert caught.value.hint
    assert store.access.load_state("prioritized") == before
    assert list(store.verify()) == []
    with pytest.raises(SpecMismatchError, match="not a sampler"):
        PrioritizedSampler(store).load_state_dict({**before, "batches": float("inf")})


@pytest.mark.parametrize("kind", [UniformSampler, PrioritizedSampler])
def test_batches_that_do_not_fit_a_new_size_count_as_delivered(make_store, kind):
    """Else a run that is resumed later asks for its batches at other moments than one that was not."""
    store = make_store()
    fill(store)
    sampler = kind(store, seed=0)
    waiting = [sampler.draw_ahead(8) for _ in range(3)]
    sampler.recall(waiting)
    sampler.draw_ahead(4)
    assert sampler.batches_delivered == sampler.batches - 1


def test_a_state_that_is_refused_changes_nothing(make_store):
    store = make_store()
    fill(store)
    sampler, twin = UniformSampler(store, seed=0), UniformSampler(store, seed=0, name="twin")
    state = UniformSampler(store, seed=9, name="third").state_dict()
    with pytest.raises(SpecMismatchError):
        sampler.load_state_dict({**state, "batches": 77, "in_flight": [["", "", "nonsense"]]})
    assert sampler.batches == 0
    assert np.array_equal(sampler.draw(16).step_ids, twin.draw(16).step_ids)


def test_an_alpha_that_no_leaf_can_hold(make_store):
    """It was a ValueError that named neither store nor alpha."""
    store = make_store()
    ids = fill(store)
    sampler = PrioritizedSampler(store, alpha=1.0, seed=0)
    sampler.set_priorities(ids, np.full(len(ids), 1e20))
    store.commit()
    with pytest.raises(ReplayError, match="alpha=4"):
        PrioritizedSampler(store, alpha=4.0, resume=True)
    assert (PrioritizedSampler(store, alpha=1.0, resume=True).priorities_of(ids) == np.float32(1e20)).all()
