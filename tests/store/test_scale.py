"""Opening and drawing cost what is touched, not what is stored."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

from diskreplay import PrioritizedSampler, ReplayStore, UniformSampler
from diskreplay.storage.engine import Engine
from diskreplay.storage.table import SegmentTable
from diskreplay.storage.transactions import Reading
from tests.conftest import fill
from tests.storage.fabricated import fabricate

SEGMENTS, STEPS = 1000, 65_536


def drawn(segments):
    """Return the segments that a first stratified draw of 32 with seed 0 falls on, all priorities being equal."""
    return set(((np.random.default_rng(0).random(32) + np.arange(32)) / 32 * segments).astype(int).tolist())


def test_a_first_batch_of_many_segments_loads_what_it_touches(tmp_path):
    """65 million steps: neither memory nor look-ups grow with them."""
    path = fabricate(tmp_path / "s.replay", SEGMENTS, segment_steps=STEPS, priorities=drawn(SEGMENTS))
    tracemalloc.start()
    with ReplayStore.open(path, mode="a") as store:
        assert len(store) == SEGMENTS * STEPS
        sampler = PrioritizedSampler(store, seed=0)
        ids = sampler.draw(32).step_ids
        assert set((ids // STEPS).tolist()) == drawn(SEGMENTS)
        assert int(sampler._priorities.tree.is_loaded(np.arange(SEGMENTS * 16)).sum()) == 32
        assert sampler.total == SEGMENTS * STEPS
        assert (UniformSampler(store, seed=0).draw(32).step_ids < SEGMENTS * STEPS).all()
        written = 12 * SEGMENTS * STEPS  # what the tree reserves, of which hardly a page is written
        assert tracemalloc.get_traced_memory()[1] < 1.1 * written + (32 << 20)
    tracemalloc.stop()


def test_the_table_of_files_is_long_enough_before_they_are_opened(tmp_path):
    """It would be lengthened again and again else, each time with a wait for all processors."""
    path = fabricate(tmp_path / "s.replay", SEGMENTS)
    opened = (
        f"import sys; from diskreplay import ReplayStore; store = ReplayStore.open({str(path)!r}); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", opened], stdin=subprocess.PIPE) as process:
        try:
            until = time.monotonic() + 60
            while _files_size(process.pid) < SEGMENTS * 5 and time.monotonic() < until:
                time.sleep(0.02)
            assert _files_size(process.pid) >= SEGMENTS * 5
        finally:
            process.communicate(b"")


def _files_size(pid):
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["FDSize"])


def test_a_step_more_costs_nothing_that_grows(tmp_path, monkeypatch):
    """Once a sampler is made, no draw looks at all segments."""
    path = fabricate(tmp_path / "s.replay", 50)
    with ReplayStore.open(path, mode="a") as store:
        prioritized, uniform = PrioritizedSampler(store, seed=0), UniformSampler(store, seed=0)
        prioritized.draw(4), uniform.draw(4)
        fill(store, episodes=1, length=3, stream="b")
        prioritized.draw(4), uniform.draw(4)
        monkeypatch.setattr(SegmentTable, "live", None)
        monkeypatch.setattr(store.access, "live_segments", None)
        with store.writer("b") as writer:
            writer.reset(np.zeros(3, np.float32))
            for _ in range(3):
                writer.step(1, 1.0, False, False, np.zeros(3, np.float32))
                prioritized.draw(4)
        monkeypatch.undo()
        assert prioritized.check_valid() == (True, "")


def test_evictions_of_another_process_are_taken_in_without_walking_the_catalogue(tmp_path, monkeypatch):
    path = fabricate(tmp_path / "s.replay", 50)
    with ReplayStore.open(path, mode="a") as store, ReplayStore.open(path) as other:
        other_sampler = PrioritizedSampler(other, seed=0)
        store.evict(3 * 4096)
        monkeypatch.setattr(Reading, "by_segment", None)
        assert other.refresh()
        assert len(other) == len(store) == 47 * 4096
        monkeypatch.undo()
        assert other_sampler.check_valid() == (True, "")


def test_an_eviction_that_was_missed_is_made_good(tmp_path, monkeypatch):
    """Whatever the counts say, in the end the catalogue decides."""
    path = fabricate(tmp_path / "s.replay", 20)
    with ReplayStore.open(path, mode="a") as store, ReplayStore.open(path) as other:
        store.evict(3 * 4096)
        monkeypatch.setattr(Engine, "_take_in_evictions", lambda *_: None)
        assert other.refresh()
        assert len(other) == 17 * 4096
