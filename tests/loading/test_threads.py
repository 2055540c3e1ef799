"""Readers: more threads while they wait for a disk, and every batch planned and read once, whatever their number."""

from __future__ import annotations

import threading
import time

import pytest

from diskreplay.loading.pipeline import Announcing
from diskreplay.loading.threads import Coming, Readers
from diskreplay.sampling.sampler import Request


def names():
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("diskreplay-read-")}


@pytest.mark.parametrize("flips", [(), (True,), (True, False), (True, False, True, False)])
def test_every_batch_is_planned_and_read_once(flips):
    planned, read = [], []

    def fetch(coming):
        time.sleep(0.001)
        read.append(coming)
        coming.finish((None, None))

    readers = Readers(2, 5, planned.append, fetch)
    before = names()
    asked = []
    for wide in (None, *flips):
        if wide is not None:
            readers.widen(wide=wide)
        asked.append([Coming(Request(lambda: None)) for _ in range(60)])
        for coming in asked[-1]:
            readers.ask(coming)
        for coming in asked[-1]:
            coming.result()
        assert len(names() - before) in ((5,) if wide else range(2, 6))
    every = [id(coming) for some in asked for coming in some]
    assert sorted(map(id, planned)) == sorted(map(id, read)) == sorted(every)
    readers.stop()
    assert names() == before
    readers.widen(wide=True)
    assert names() == before


def test_threads_beyond_the_cores_leave_once_nothing_waits_for_the_disk():
    readers = Readers(1, 4, lambda coming: None, lambda coming: coming.finish((None, None)))
    before = names()

    def go():
        coming = Coming(Request(lambda: None))
        readers.ask(coming)
        coming.result()

    go()
    assert len(names() - before) == 1
    readers.widen(wide=True)
    assert len(names() - before) == 4
    readers.widen(wide=False)
    until = time.monotonic() + 10
    while len(names() - before) > 1 and time.monotonic() < until:
        go()
    assert len(names() - before) == 1
    readers.stop()


def test_reads_are_cold_from_the_first_that_waits_until_many_did_not(monkeypatch):
    blocks = [0]
    monkeypatch.setattr("diskreplay.loading.pipeline._blocks_read", lambda: blocks[0])

    class Plan:
        def announce(self):
            blocks[0] += self.reads

    def announce(reads):
        plan = Plan()
        plan.reads = reads
        announcing.announce(plan)
        return announcing.cold

    announcing = Announcing()
    assert not announce(0)
    assert announce(8)
    assert all(announce(0) for _ in range(Announcing.WARM - 1))
    assert not announce(0)
    with announcing.fetching():
        blocks[0] += 1
    assert announcing.cold
