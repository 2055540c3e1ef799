"""What is encoded while a segment fills is what would have been encoded when it is full."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diskreplay import ArraySpec, ReplayStore, StepSpec
from diskreplay.storage import ahead, native
from diskreplay.storage.ahead import Ahead
from diskreplay.storage.fields import Coding, Field
from diskreplay.storage.shard import encode_shard
from diskreplay.storage.tail import Tail
from tests.conftest import fill

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="needs compiled code")
SPEC = StepSpec(ArraySpec("observation", (3,), "float32"), ArraySpec("action", (), "int64", "discrete", n=3))
STEPS = 48


@pytest.fixture
def small_blocks(monkeypatch):
    """Begin a thread every few rows, for fields of more than 8 bytes."""
    monkeypatch.setattr(ahead, "BLOCK_BYTES", 8 * STEPS)


@pytest.mark.usefixtures("small_blocks")
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_it_is_the_same_shard(data):
    """However the rows come, whatever the chunks; a copied field and a small one are left for the end."""
    codecs = st.sampled_from(["none", "zstd", "lz4", "lz4hc"])
    codings = {name: Coding(data.draw(codecs), data.draw(st.sampled_from([1, 2, 3, 8, 48]))) for name in "abc"}
    fields = [Field("a", (3,), "float32", "observation", hot=True), Field("b", (2,), "int64", "action", hot=True),
              Field("c", (), "int64", "mark", hot=False)]  # fmt: skip
    tail, rng = Tail(0, fields, STEPS), np.random.default_rng(0)
    for field in fields:
        tail.arrays[field.name][:] = rng.integers(0, 2, (STEPS, *field.shape))
    tail.ahead = Ahead(tail, fields, codings)
    for more in data.draw(st.lists(st.integers(1, 20), max_size=12)):
        tail.rows = min(tail.rows + more, STEPS)
        if tail.ahead.due(tail.rows):
            tail.ahead.begin(tail.rows)
        if data.draw(st.booleans()):
            tail.ahead.wait()
    tail.rows = tail.rows or 1
    for field in fields:
        rows, done = tail.arrays[field.name][: tail.rows], tail.ahead.parts(field.name)
        if field.name == "c" or codings[field.name].codec == "none":
            assert not done
        for one, other in zip(
            encode_shard(field, codings[field.name], rows, STEPS, ahead=done),
            encode_shard(field, codings[field.name], rows, STEPS),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)


def written(folder, **options):
    """Return the bytes of all shards of a store, written in several ways."""
    with ReplayStore.create(folder, SPEC, segment_steps=STEPS, compression="lz4", chunk_steps=8, **options) as store:
        fill(store, episodes=9, length=20)
        with store.writer("b") as writer:
            rng = np.random.default_rng(1)
            for length in (100, 3, 70):
                observations = rng.integers(0, 9, (length + 1, 3)).astype(np.float32)
                writer.write_episode(observations, np.zeros(length, int), np.ones(length), np.zeros(length, bool),
                                     np.zeros(length, bool))  # fmt: skip
            for t in range(400):
                if t % 25 == 0:
                    writer.reset(np.zeros(3, np.float32))
                writer.step(t % 3, 0.5, False, t % 25 == 24, np.full(3, t, np.float32))
                if t % 90 == 0:
                    store.commit()
        store.seal()
        assert store.verify() == []
    assert not any(thread.name == "diskreplay-ahead" for thread in threading.enumerate())
    return {path.relative_to(folder): path.read_bytes() for path in folder.glob("steps/*/c.*")}


@pytest.fixture
def expected(tmp_path, monkeypatch):
    """Return what is written if nothing is encoded ahead."""
    with monkeypatch.context() as patch:
        patch.setattr(Ahead, "due", lambda *_: False)
        return written(tmp_path / "late.replay")


@pytest.mark.usefixtures("small_blocks")
def test_a_store_is_the_same(tmp_path, expected, monkeypatch):
    """Step by step, by episodes longer than a segment, several streams, and short segments."""
    begun, encode = [], Ahead._encode
    monkeypatch.setattr(Ahead, "_encode", lambda *args: begun.append(args) or encode(*args))
    assert written(tmp_path / "early.replay") == expected
    assert len(begun) > 10


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("what", ["no memory", "no threads"])
def test_what_fails_is_done_when_the_segment_is_full(tmp_path, expected, monkeypatch, what):
    """A block without memory or a thread for it is not missed."""

    def fail(*_):
        raise MemoryError if what == "no memory" else RuntimeError("can't start new thread")

    if what == "no memory":
        monkeypatch.setattr(ahead, "encode_chunks", fail)
    else:
        start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda one: fail() if "ahead" in one.name else start(one))
    assert written(tmp_path / "early.replay") == expected


def test_a_block_that_was_begun_twice_counts_once():
    """As an interrupt can have it."""
    fields, chunk, half = [Field("a", (), "int64", "observation", hot=True)], 1 << 12, 1 << 18
    tail = Tail(0, fields, 2 * half)
    early = Ahead(tail, fields, {"a": Coding("zstd", chunk)})
    tail.rows = half
    early._encode(0, half)
    early._encode(0, half)
    tail.rows = 2 * half - 1
    assert early.due(tail.rows)
    early.begin(tail.rows)
    assert sum(len(part.lengths) for part in early.parts("a")) == 2 * half // chunk - 1
