"""The choice of codec and chunk length follows the data, and what was measured on them."""

from __future__ import annotations

import numpy as np
import pytest

from diskreplay import ReplayStore
from diskreplay.storage import coding
from diskreplay.storage.coding import MOST_BYTES, SMALL_ENOUGH, Trial, choose_coding, try_coding
from diskreplay.storage.fields import Coding, Field
from tests.conftest import fill


def observation(shape, dtype):
    return Field("observation", shape, dtype, "observation", hot=True)


def frames(count=512):
    """A small bright square that moves over a fixed background."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.integers(0, 60, (1, 84, 84)).astype(np.uint8), count, axis=0)
    for number, row in enumerate(rows):
        row[number % 80 : number % 80 + 4, 3 * number % 80 : 3 * number % 80 + 4] = 200
    return rows


def test_what_compresses_is_compressed():
    """And takes at most twice the room of the smallest way, or a fortieth of the raw rows'."""
    field, rows = observation((84, 84), "uint8"), frames()
    chosen = choose_coding(field, rows, segment_steps=512, compression="auto")
    assert chosen.codec != "none"
    assert 512 % chosen.chunk_steps == 0
    sizes = [try_coding(field, Coding("zstd", steps), rows).row_bytes for steps in (4, 8, 16, 32)]
    most = max(MOST_BYTES * min(sizes), SMALL_ENOUGH * field.row_bytes)
    assert try_coding(field, chosen, rows).row_bytes <= most * 1.01


@pytest.mark.parametrize(("shape", "dtype"), [((84, 84), "uint8"), ((17,), "float32"), ((4,), "float32")])
def test_noise_and_a_few_bytes_stay_raw(shape, dtype):
    """There is nothing to be gained."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (256, *shape)).astype(dtype) if dtype == "uint8" else rng.normal(size=(256, *shape))
    rows = rows.astype(dtype)
    assert choose_coding(observation(shape, dtype), rows, segment_steps=256, compression="auto").codec == "none"


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ({("zstd", 16): (100, 8.0), ("lz4", 16): (150, 5.0)}, Coding("lz4", 16)),  # faster, and small enough
        ({("zstd", 16): (100, 8.0), ("lz4", 16): (220, 5.0)}, Coding("zstd", 16)),  # faster, but too large
        ({("zstd", 16): (50, 8.0), ("lz4", 16): (170, 5.0)}, Coding("lz4", 16)),  # 176 are a fortieth of the raw ones
        ({("zstd", 16): (100, 8.2), ("zstd", 8): (140, 8.0)}, Coding("zstd", 16)),  # about as fast, and smaller
        ({("zstd", 16): (100, 9.0), ("zstd", 8): (140, 8.0)}, Coding("zstd", 8)),
        ({("zstd", 16): (5000, 9.0)}, Coding("none", 1)),  # hardly compresses
    ],
)
def test_the_rule(monkeypatch, trials, expected):
    """Fastest within twice the smallest; smallest among the about as fast."""
    field = observation((84, 84), "uint8")

    def measured(_field, tried, _rows):
        size, time = trials.get((tried.codec, tried.chunk_steps), (9999, 99.0))
        return Trial(tried, size, time)

    monkeypatch.setattr(coding, "try_coding", measured)
    assert choose_coding(field, frames(64), segment_steps=64, compression="auto") == expected


def test_the_user_decides(make_store):
    """`chunk_steps` and `compression` are taken as they are, for observations."""
    store = make_store(segment_steps=16, compression="zstd", chunk_steps=2)
    fill(store, episodes=4, length=10)
    store.commit()
    assert store._engine.codings["observation"] == Coding("zstd", 2)
    store.close()
    with ReplayStore.open(store.path, mode="a") as again:
        assert again.verify() == []


@pytest.mark.parametrize("chunk_steps", [0, 3, 32, True, 1.5])
def test_impossible_chunks_are_refused(make_store, chunk_steps):
    """A segment consists of whole chunks."""
    with pytest.raises(ValueError, match="chunk_steps must divide"):
        make_store(segment_steps=16, chunk_steps=chunk_steps)
