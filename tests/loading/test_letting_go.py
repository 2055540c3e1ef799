"""What is closed goes at once, all of it: the cycle collector counts objects, not bytes.

Buffers, a sum tree or a segment's rows in a cycle may wait for it for hours.
"""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from diskreplay import ArraySpec, PrioritizedSampler, ReplayLoader, ReplayStore, StepSpec, UniformSampler
from diskreplay.errors import CorruptionWarning, CorruptStoreError, NotEnoughStepsError
from diskreplay.loading.pipeline import Pipeline
from diskreplay.storage import ahead
from diskreplay.storage.tail import Tail
from tests.conftest import fill

SPEC = StepSpec(ArraySpec("observation", (3,), "float32"), ArraySpec("action", (), "int64", "discrete", n=3))


@pytest.fixture
def _no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def made(monkeypatch):
    """Return weak references to the pipelines and tails that are made."""
    references: list[weakref.ref] = []
    for kind in (Pipeline, Tail):

        def init(self, *args, begin=kind.__init__, **options):
            references.append(weakref.ref(self))
            begin(self, *args, **options)

        monkeypatch.setattr(kind, "__init__", init)
    return references


def check_gone(path, made, use, **options):
    """Use a store in a way that returns its sampler's reference: sampler, store and what was made are gone at once."""
    with ReplayStore.create(path / "a.replay", SPEC, **options) as store:
        sampler = use(store)
        assert sampler() is None
        gone = weakref.ref(store)
    del store
    assert [reference() for reference in (gone, *made)] == [None] * (1 + len(made))


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("kind", [UniformSampler, PrioritizedSampler])
def test_a_loader_that_is_closed(tmp_path, made, kind, threads):
    """Its buffers, its sampler with the sum tree, and then the store."""

    def use(store):
        fill(store)
        sampler = kind(store, seed=0)
        batches = iter(ReplayLoader(sampler, batch_size=4, threads=threads, prefetch=3))
        next(batches)
        batches.close()
        return weakref.ref(sampler)

    check_gone(tmp_path, made, use, segment_steps=16)


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("threads", [0, 2])
def test_a_loader_that_failed(tmp_path, made, monkeypatch, threads):
    """The error's traceback holds frames, they hold the batch; nothing holds the error but who caught it."""

    def fail(*_, **__):
        raise OSError("no such disk")

    def use(store):
        fill(store)
        sampler = PrioritizedSampler(store, seed=0)
        batches = iter(ReplayLoader(sampler, batch_size=4, threads=threads, prefetch=3))
        with monkeypatch.context() as patch:
            patch.setattr(ReplayStore, "plan", fail)
            with pytest.raises(OSError, match="no such disk"):
                next(batches)
        return weakref.ref(sampler)

    check_gone(tmp_path, made, use, segment_steps=16)


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("kind", [UniformSampler, PrioritizedSampler])
def test_a_draw_that_failed(tmp_path, made, kind, threads):
    """A request keeps what went wrong for the one who asked; of the others nobody asks."""

    def use(store):
        sampler = kind(store, seed=0)
        batches = iter(ReplayLoader(sampler, batch_size=4, threads=threads, prefetch=3))
        with pytest.raises(NotEnoughStepsError):
            next(batches)
        return weakref.ref(sampler)

    check_gone(tmp_path, made, use)


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("mode", ["raise", "skip"])
def test_a_damaged_chunk(tmp_path, made, mode, threads):
    """Whether the error reaches the user or the segment is left out."""

    def use(store):
        fill(store, episodes=8)
        store.seal()
        shard = min((store.path / "steps" / "observation").glob("c.*"))
        shard.write_bytes(bytes(byte ^ 1 for byte in shard.read_bytes()))
        sampler = PrioritizedSampler(store, seed=0)
        batches = iter(ReplayLoader(sampler, batch_size=64, threads=threads, prefetch=3, on_corruption=mode))
        with pytest.raises(CorruptStoreError) if mode == "raise" else pytest.warns(CorruptionWarning):
            next(batches)
        batches.close()
        return weakref.ref(sampler)

    check_gone(tmp_path, made, use, segment_steps=16)


@pytest.mark.usefixtures("_no_collector")
def test_a_segment_that_is_sealed(tmp_path, made, monkeypatch):
    """Its rows, some of which were encoded while it filled."""
    monkeypatch.setattr(ahead, "BLOCK_BYTES", 8)
    with ReplayStore.create(tmp_path / "a.replay", SPEC, segment_steps=16, compression="zstd", chunk_steps=4) as store:
        with store.writer("a") as writer:
            for _ in range(5):
                no = np.zeros(12, bool)
                writer.write_episode(np.zeros((13, 3), np.float32), np.zeros(12, int), np.ones(12), no, no)
        store.commit()
        assert [reference() is None for reference in made[-4:]] == [True, True, True, False]
