"""Draws that are made in the background are those that would have been made at once."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from diskreplay import PrioritizedSampler, ReplayLoader, ReplayStore, UniformSampler
from diskreplay.loading.pipeline import Announcing
from tests.conftest import fill


def batches(store, *, slow, count=40):
    """Return the step ids of batches, each with updated priorities; drawing takes its time if `slow`."""
    sampler = PrioritizedSampler(store, seed=3)
    if slow:
        draw = sampler._draw

        def late(size):
            time.sleep(0.003)
            return draw(size)

        sampler._draw = late
    loader, found = ReplayLoader(sampler, batch_size=8, prefetch=3), []
    for number, batch in enumerate(loader):
        found.append(batch.step_ids.tolist())
        sampler.update_priorities(batch.step_ids, np.random.default_rng(number).random(8))
        if number == count // 2:
            sampler.beta = 0.7
        if number == count:
            break
    return found


@pytest.mark.parametrize("mode", ["r", "a"])
def test_an_update_waits_for_the_draws_before_it(make_store, mode):
    """However long a draw takes, it knows the priorities of when it was asked for, and no later ones."""
    store = make_store(segment_steps=16)
    fill(store, episodes=10, length=12)
    store.commit()
    store.close()
    with ReplayStore.open(store.path, mode=mode) as one:
        first = batches(one, slow=False)
    with ReplayStore.open(store.path, mode=mode) as two:
        if mode == "a":
            PrioritizedSampler(two, seed=3).forget_priorities()
        assert batches(two, slow=True) == first


def test_steps_that_come_are_not_in_the_draws_before_them(make_store):
    """With a writer open a draw is made at once; opening one, and eviction, make those that were asked for."""
    store = make_store(segment_steps=16)
    fill(store, episodes=10, length=12)
    store.commit()
    sampler = UniformSampler(store, seed=0)
    asked = [sampler.request(lambda: sampler.draw_ahead(64)) for _ in range(2)]
    assert asked[0].made is None
    with store.writer("b"):
        assert [request.made is not None for request in asked] == [True, True]
        assert not store.steady
    asked.append(sampler.request(lambda: sampler.draw_ahead(64)))
    store.evict(40)
    assert asked[-1].made is not None
    gone = int(min(store.access.live_segments()[0])) * 16
    assert (np.concatenate([request.result().step_ids for request in asked]) < gone).any()


def test_requests_are_served_in_order_by_any_thread(make_store):
    """Also by many at once."""
    store = make_store(segment_steps=16)
    fill(store, episodes=10, length=12)
    twin = UniformSampler(store, seed=1)
    expected = [twin.draw(4).step_ids.tolist() for _ in range(60)]
    sampler = UniformSampler(store, seed=1)
    requests = [sampler.request(lambda: sampler.draw_ahead(4)) for _ in range(60)]
    threads = [threading.Thread(target=sampler.serve) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [request.result().step_ids.tolist() for request in requests] == expected


class Plan:
    """Counts its announcements, and has something read now and then."""

    def __init__(self):
        self.announced = 0

    def announce(self):
        self.announced += 1


def test_warm_plans_are_announced_now_and_then(monkeypatch):
    """All of them again as soon as something was read."""
    read = [0]
    monkeypatch.setattr("diskreplay.loading.pipeline._blocks_read", lambda: read[0])
    announcing, plan = Announcing(), Plan()
    for _ in range(160):
        announcing.announce(plan)
    assert plan.announced == Announcing.WARM + (160 - Announcing.WARM) // Announcing.PROBE
    with announcing.fetching():
        read[0] += 8
    before = plan.announced
    for _ in range(Announcing.WARM):
        announcing.announce(plan)
    assert plan.announced == before + Announcing.WARM


@pytest.mark.parametrize(("batch_size", "ahead"), [(16, [7, 6, 5, 4, 7, 6, 5, 4, 7]), (4096, [7] * 9)])
def test_small_batches_are_asked_for_several_at_a_time(make_store, batch_size, ahead):
    """At moments that depend on nothing but how many were delivered, also by an iterator made later."""
    store = make_store()
    fill(store, episodes=4, length=20)
    sampler = UniformSampler(store, seed=0)
    seen = []
    for count in (3, 6):
        batches = iter(ReplayLoader(sampler, batch_size=batch_size, frame_stack=2, prefetch=8, threads=0))
        for _ in range(count):
            next(batches)
            seen.append(sampler.batches - sampler.batches_delivered)
        batches.close()
    assert seen == ahead
