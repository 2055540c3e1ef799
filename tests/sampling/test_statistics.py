"""Draws follow the stated probabilities; weights follow the paper; seeds fix both."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from diskreplay import LinearSchedule, PrioritizedSampler, ReplayStore, UniformSampler
from diskreplay.sampling.sampler import Draw
from tests.conftest import fill

DRAWS = 100_000


def counts_of(sampler, ids, batch=1000):
    drawn = np.concatenate([sampler.draw(batch).step_ids for _ in range(DRAWS // batch)])
    place = np.searchsorted(ids, drawn)
    assert np.array_equal(ids[place], drawn)
    return np.bincount(place, minlength=len(ids))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("batch", [7, 1000])
def test_draws_follow_the_priorities(make_store, alpha, batch):
    """Chi-square of 10^5 draws against p_i^alpha / sum; the same test rejects another exponent."""
    store = make_store(segment_steps=32)
    ids = fill(store, episodes=20, length=10)
    sampler = PrioritizedSampler(store, alpha=alpha, seed=3)
    priorities = np.random.default_rng(0).gamma(1.0, size=len(ids)).astype(np.float32) + 0.01
    sampler.set_priorities(ids, priorities)
    counts = counts_of(sampler, ids, batch)
    expected = priorities.astype(np.float64) ** alpha
    expected *= counts.sum() / expected.sum()
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    other = priorities.astype(np.float64) ** (alpha + 0.1)
    assert stats.chisquare(counts, other * counts.sum() / other.sum()).pvalue < 1e-6


def test_uniform_draws_are_uniform(make_store):
    """Chi-square of 10^5 draws over sealed segments and tails of two streams."""
    store = make_store(segment_steps=32)
    ids = np.sort(
        np.concatenate([fill(store, episodes=9, length=11), fill(store, episodes=2, length=5, stream="b")]),
    )
    counts = counts_of(UniformSampler(store, seed=0), ids)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert UniformSampler(store, seed=0).draw(5).weight.tolist() == [1.0] * 5


def test_weights_follow_the_paper(make_store):
    """w_i = (N P(i))^-beta / max_j w_j, the maximum over the batch; beta follows its schedule."""
    store = make_store()
    ids = fill(store, episodes=6, length=10)
    schedule = LinearSchedule(0.4, 1.0, steps=4)
    sampler = PrioritizedSampler(store, alpha=0.7, beta=schedule, seed=0)
    priorities = np.linspace(0.1, 5, len(ids)).astype(np.float32)
    sampler.set_priorities(ids, priorities)
    for t in range(6):
        draw = sampler.draw(32)
        p = priorities.astype(np.float64) ** 0.7
        probability = (p / p.sum())[np.searchsorted(ids, draw.step_ids)]
        weight = (len(ids) * probability) ** -schedule(t)
        np.testing.assert_allclose(draw.weight, weight / weight.max(), rtol=1e-6)
        assert draw.weight.dtype == np.float32


@pytest.mark.parametrize("kept", [False, True])
def test_weights_of_steps_drawn_again_are_of_the_batch_that_they_join(make_store, kept):
    """One maximum for all of a batch, also where it was drawn before a restart: steps drawn again had another's."""
    store = make_store(segment_steps=16, capacity=160)
    fill(store, episodes=16, length=10)
    sampler = PrioritizedSampler(store, alpha=0.7, beta=0.5, seed=0)
    ids = store.step_ids_of(np.arange(len(store)))
    rare = ids < ids[len(ids) // 4]
    priorities = np.where(rare, 0.3, np.linspace(1.0, 5.0, len(ids))).astype(np.float32)
    sampler.set_priorities(ids, priorities)
    before = Draw.from_json(sampler.draw_ahead(128).to_json()) if kept else sampler.draw_ahead(128)
    assert (before.step_ids < ids[len(ids) // 4]).any()  # they are what the batch's weights are divided by
    fill(store, episodes=6, length=10, seed=1)
    store.commit()
    after, redrawn = sampler.mend(before, sampler.draw_again)
    assert 0 < redrawn < 128
    weight = (sampler.priorities_of(after.step_ids).astype(np.float64) ** 0.7) ** -0.5
    np.testing.assert_allclose(after.weight, weight / weight.max(), rtol=1e-5)


@pytest.mark.parametrize("kind", [UniformSampler, PrioritizedSampler])
def test_same_seed_same_store_same_batches(make_store, kind):
    """Twice in one process, and again after the store was opened anew."""
    store = make_store()
    fill(store, episodes=12, length=10)
    store.commit()
    first = [kind(store, seed=5).draw(20).step_ids.tolist() for _ in range(2)]
    assert first[0] == first[1]
    assert kind(store, seed=6).draw(20).step_ids.tolist() != first[0]
    store.commit()
    with ReplayStore.open(store.path) as other:
        assert kind(other, seed=5).draw(20).step_ids.tolist() == first[0]


def test_new_steps_get_the_largest_priority(make_store):
    """So that each is seen soon; the largest ever, not the largest now."""
    store = make_store()
    ids = fill(store, episodes=2, length=10)
    sampler = PrioritizedSampler(store, eps=0.0, seed=0)
    assert set(sampler.priorities_of(ids).tolist()) == {1.0}
    sampler.update_priorities(ids[:1], [-7.5])
    sampler.update_priorities(ids[:1], [2.0])
    fresh = fill(store, episodes=1, length=3)
    assert sampler.priorities_of(fresh).tolist() == [7.5] * 3


def test_the_last_of_repeated_ids_wins(make_store):
    """A batch drawn with replacement names a step more than once."""
    store = make_store()
    ids = fill(store, episodes=1, length=4)
    sampler = PrioritizedSampler(store, eps=0.0, seed=0)
    sampler.update_priorities([ids[1], ids[2], ids[1]], [5.0, 6.0, 7.0])
    assert sampler.priorities_of(ids).tolist() == [1.0, 7.0, 6.0, 1.0]
    assert sampler.check_valid() == (True, "")


def test_final_rows_are_never_drawn(make_store):
    """Whatever the priorities and however the rows fell into segments."""
    store = make_store(segment_steps=4)
    ids = set(fill(store, episodes=30, length=1).tolist())
    for sampler in (UniformSampler(store, seed=0), PrioritizedSampler(store, seed=0)):
        assert set(sampler.draw(2000).step_ids.tolist()) == ids
