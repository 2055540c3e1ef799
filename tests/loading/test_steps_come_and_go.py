"""A seed fixes the batches of a store that grows and evicts, however fast its threads or its learner are."""

from __future__ import annotations

import time

import numpy as np
import pytest

from diskreplay import PrioritizedSampler, ReplayLoader, UniformSampler
from tests.conftest import fill


def batches_of(store, kind, threads, pause):
    """Return 30 batches, between which episodes are written and others evicted, with a writer open or without."""
    writer = store.writer("b")
    fill(store, episodes=30)
    store.commit()
    found = []
    loader = iter(ReplayLoader(kind(store, seed=0), batch_size=16, n_step=3, threads=threads, prefetch=6))
    writer.reset(np.zeros(3, np.float32))
    for turn in range(30):
        batch = next(loader)
        found.append((batch.step_ids.tolist(), batch.reward.tolist(), batch.discount.tolist()))
        time.sleep(pause)
        if turn == 14:
            writer.close()
        elif turn < 14:
            writer.step(0, turn, False, False, np.zeros(3, np.float32))  # windows of the step before grow
        if turn % 4 == 3:
            fill(store, episodes=2, seed=turn)
            store.commit()
        elif turn % 7 == 6:
            store.evict(20)
    loader.close()
    return found


@pytest.mark.parametrize("kind", [UniformSampler, PrioritizedSampler])
def test_batches_do_not_depend_on_who_is_faster(make_store, kind):
    expected = batches_of(make_store("0", capacity=330), kind, 0, 0)
    for name, (threads, pause) in {"fast": (1, 0), "slow": (1, 0.01), "several": (3, 0)}.items():
        assert batches_of(make_store(name, capacity=330), kind, threads, pause) == expected, name
