"""The loader is a torch DataLoader whose batches a seed fixes, whoever reads them: threads or worker processes."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
import torch

from diskreplay import (
    ArraySpec,
    CorruptStoreError,
    NotEnoughStepsError,
    PrioritizedSampler,
    ReplayLoader,
    StepSpec,
    UniformSampler,
)
from diskreplay.storage.reading import WindowPlan
from tests.conftest import fill

NAMES = ("observation", "action", "reward", "discount", "next_observation", "weight", "step_ids")


def take(loader, count):
    """Return the first batches and let go of the loader's iterator."""
    iterator = iter(loader)
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def assert_same(one, two):
    for left, right in zip(one, two, strict=True):
        for name in NAMES:
            assert torch.equal(getattr(left, name), getattr(right, name)), name


@pytest.fixture
def image_store(make_store):
    """Return a store with sealed segments and tails of small images."""
    spec = StepSpec(ArraySpec("observation", (10, 10), "uint8"), ArraySpec("action", (), "int64", "discrete", n=3))
    store = make_store(given=spec, segment_steps=32, compression="zstd")
    rng = np.random.default_rng(0)
    with store.writer("a") as writer:
        for length in (3, 40, 20, 15):
            writer.write_episode(
                rng.integers(5, size=(length + 1, 10, 10)).astype(np.uint8),
                rng.integers(3, size=length),
                rng.normal(size=length),
                np.arange(length) == length - 1,
                np.zeros(length, bool),
            )
    store.commit()
    return store


def test_it_is_a_data_loader(image_store):
    """Shapes, dtypes and names are those the documentation gives."""
    loader = ReplayLoader(UniformSampler(image_store, seed=0), batch_size=8, n_step=3, gamma=0.9, frame_stack=4)
    assert isinstance(loader, torch.utils.data.DataLoader)
    assert loader.batch_size == 8
    with pytest.raises(TypeError, match="for ever"):
        len(loader)
    (batch,) = take(loader, 1)
    assert batch.observation.shape == batch.next_observation.shape == (8, 4, 10, 10)
    assert batch.observation.dtype == torch.uint8
    assert batch.action.dtype == batch.step_ids.dtype == torch.int64
    for name in ("reward", "discount", "weight"):
        assert getattr(batch, name).dtype == torch.float32
        assert getattr(batch, name).shape == (8,)
    assert loader.wait_seconds > 0


@pytest.mark.parametrize("kind", [UniformSampler, PrioritizedSampler])
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_worker_processes_serve_the_same_batches(image_store, kind, context):
    """Workers get read plans with the rows of tails in them, and open neither store nor index."""
    options = {"batch_size": 16, "n_step": 3, "frame_stack": 3}
    here = take(ReplayLoader(kind(image_store, seed=4), **options), 5)
    there = ReplayLoader(kind(image_store, seed=4), num_workers=2, multiprocessing_context=context, **options)
    assert_same(take(there, 5), here)
    there.close()


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("prefetch", [1, 5])
def test_threads_and_prefetch_do_not_change_uniform_batches(image_store, threads, prefetch):
    """The calling thread draws, in order."""
    one = take(ReplayLoader(UniformSampler(image_store, seed=4), batch_size=16), 6)
    other = ReplayLoader(UniformSampler(image_store, seed=4), batch_size=16, threads=threads, prefetch=prefetch)
    assert_same(take(other, 6), one)


def test_batches_stay_as_they_are(make_store):
    """Buffers are used again only when nobody holds a batch any more, or a view of a part of one."""
    spec = StepSpec(ArraySpec("observation", (64, 64), "uint8"), ArraySpec("action", (), "int64", "discrete", n=3))
    store = make_store(given=spec, segment_steps=64)
    frames = np.random.default_rng(0).integers(256, size=(301, 64, 64)).astype(np.uint8)
    with store.writer() as writer:
        no = np.zeros(300, bool)
        ids = writer.write_episode(frames, np.zeros(300, int), np.zeros(300), no, no)
    place = {step_id: t for t, step_id in enumerate(ids.tolist())}
    loader = ReplayLoader(UniformSampler(store, seed=0), batch_size=32, frame_stack=2, prefetch=3)
    kept = []
    for batch, _ in zip(loader, range(30), strict=False):
        if len(kept) < 4:
            kept.append((batch.step_ids, batch.next_observation[3:5].flatten(1)[:, ::2]))
        del batch
    for step_ids, part in kept:
        for row, step_id in zip(part, step_ids[3:5].tolist(), strict=True):
            t = place[step_id]
            expected = np.stack([frames[t], frames[t + 1]]).reshape(-1)[::2]
            np.testing.assert_array_equal(row.numpy(), expected)


def test_fresh_steps_are_served_at_once(make_store):
    """Before any commit, in the process that writes them."""
    store = make_store()
    sampler = UniformSampler(store, seed=0)
    loader = ReplayLoader(sampler, batch_size=512, prefetch=1)
    with pytest.raises(NotEnoughStepsError):
        next(iter(loader))
    writer = store.writer("a")
    writer.reset(np.zeros(3, np.float32))
    iterator = None
    for t in range(20):
        writer.step(0, t, False, False, np.full(3, t + 1, np.float32))
        iterator = iterator or iter(loader)
        batch = next(iterator)
    assert set(batch.step_ids.tolist()) >= set(range(15))
    assert batch.next_observation[:, 0].tolist() == (batch.step_ids + 1).tolist()


def test_steps_evicted_between_draw_and_read_are_drawn_again(make_store):
    """A draw that waited while its segments went is mended, not an error."""
    store = make_store(segment_steps=16, capacity=64)
    fill(store, episodes=6, length=10)
    sampler = UniformSampler(store, seed=0)
    loader = ReplayLoader(sampler, batch_size=32)
    sampler.recall([sampler.draw_ahead(32)])
    fill(store, episodes=12, length=10, seed=1)
    store.commit()
    live = set(store.step_ids_of(np.arange(len(store))).tolist())
    (batch,) = take(loader, 1)
    assert set(batch.step_ids.tolist()) <= live
    assert loader.redrawn > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_reaches_the_learner_as_our_error(make_store, workers):
    """From a thread or from a worker process, with the file's name."""
    store = make_store(segment_steps=64)
    fill(store, episodes=5, length=12)
    store.seal()
    file = next((store.path / "steps" / "observation").glob("c.*"))
    data = bytearray(file.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    file.write_bytes(data)
    loader = ReplayLoader(UniformSampler(store, seed=0), batch_size=64, num_workers=workers)
    with pytest.raises(CorruptStoreError, match=file.name):
        next(iter(loader))
    loader.close()
    store.close()


def test_two_iterators_share_a_sampler(image_store):
    """Letting go of one puts back its own batches in flight, and leaves the other's alone."""
    sampler = UniformSampler(image_store, seed=7)
    expected = [sampler.draw(16).step_ids.tolist() for _ in range(9)]
    loader = ReplayLoader(UniformSampler(image_store, seed=7), batch_size=16, prefetch=3)
    one, two = iter(loader), iter(loader)
    seen = [next(one).step_ids.tolist(), next(two).step_ids.tolist()]
    assert seen == [expected[0], expected[3]]
    one.close()
    assert [next(two).step_ids.tolist() for _ in range(2)] == expected[4:6]
    assert [next(two).step_ids.tolist() for _ in range(2)] == expected[1:3]


def test_workers_serve_one_iterator_at_a_time(image_store):
    """A second would take the first one's batches for its own."""
    loader = ReplayLoader(UniformSampler(image_store, seed=7), batch_size=16, num_workers=1)
    one = iter(loader)
    next(one)
    with pytest.raises(ValueError, match="one iterator at a time"):
        next(iter(loader))
    one.close()
    two = iter(loader)
    next(two)
    two.close()
    loader.close()
    with pytest.raises(ValueError, match="in_order"):
        ReplayLoader(UniformSampler(image_store, seed=7), num_workers=1, in_order=False)


def test_options_that_make_no_sense(image_store):
    """Each is named."""
    sampler = UniformSampler(image_store, seed=0)
    for options in ({"batch_size": 0}, {"prefetch": 0}, {"threads": -1}, {"n_step": 0}, {"padding": "no"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ReplayLoader(sampler, **options)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_a_closed_iterator_lets_go_of_its_plans_at_once(image_store, threads):
    """A plan holds its files open; those of evicted segments stayed open until the garbage collector came."""
    gc.collect()
    gc.disable()
    try:
        batches = iter(ReplayLoader(PrioritizedSampler(image_store, seed=0), batch_size=8, prefetch=4, threads=threads))
        next(batches)
        assert threads or any(type(each) is WindowPlan for each in gc.get_objects())
        batches.close()
        assert not any(type(each) is WindowPlan for each in gc.get_objects())
    finally:
        gc.enable()
