"""Copies past the caches are copies: of any length, from and to any address, and of what a batch reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from diskreplay import ArraySpec, StepSpec
from diskreplay.storage import gather, native
from diskreplay.storage.streaming_kernels import fence, stream

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="needs the compiled path")
SOURCE = np.random.default_rng(0).integers(0, 256, 2000).astype(np.uint8)


@njit
def _copy(target, to, source, start, size):
    stream(np.uint64(target.ctypes.data + to), np.uint64(source.ctypes.data + start), np.uint64(size))
    fence()


@settings(max_examples=300, deadline=None)
@given(to=st.integers(0, 200), start=st.integers(0, 200), size=st.integers(0, 1000))
def test_a_stream_is_a_copy(to, start, size):
    """Nothing before it or behind it changes."""
    target, expected = np.full(1400, 7, np.uint8), np.full(1400, 7, np.uint8)
    expected[to : to + size] = SOURCE[start : start + size]
    _copy(target, to, SOURCE, start, size)
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("compression", ["none", "zstd", "lz4"])
@pytest.mark.parametrize("shape", [(3, 7), (84, 84)])
def test_batches_read_past_the_caches_are_the_same(make_store, monkeypatch, compression, shape):
    """From files, from memory and from tails; whatever the rows' length."""
    spec = StepSpec(ArraySpec("observation", shape, "uint8"), ArraySpec("action", (), "int64", "discrete", n=3))
    store = make_store(given=spec, segment_steps=32, compression=compression, chunk_steps=8)
    rng = np.random.default_rng(1)
    with store.writer("a") as writer:
        for length in (30, 50, 9):
            frames = np.repeat(rng.integers(0, 256, (length + 1, 1, shape[1])), shape[0], axis=1).astype(np.uint8)
            ends = np.arange(length) == length - 1
            writer.write_episode(frames, rng.integers(3, size=length), np.ones(length, np.float32), ends, ~ends & False)
    store.commit()
    ids = rng.permutation(store.step_ids_of(np.arange(len(store))))
    expected = store.read(ids, frame_stack=4, n_step=2)
    monkeypatch.setattr(gather, "PAST_BYTES", 0)
    for _ in range(6):  # first from files, then from what is kept of them
        found = store.read(ids, frame_stack=4, n_step=2)
        np.testing.assert_array_equal(found.observation, expected.observation)
        np.testing.assert_array_equal(found.next_observation, expected.next_observation)
