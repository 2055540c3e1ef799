"""Whatever the loader serves equals what a plain in-memory twin computes, element by element."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diskreplay import ArraySpec, PrioritizedSampler, ReplayLoader, ReplayStore, StepSpec, UniformSampler
from diskreplay.storage import native
from tests.models.replay_twin import ReplayTwin

SPECS = {
    "vector": StepSpec(
        ArraySpec("observation", (3,), "float32"),
        ArraySpec("action", (), "int64", "discrete", n=9),
    ),
    "image": StepSpec(
        ArraySpec("observation", (12, 12), "uint8"),
        ArraySpec("action", (2,), "float32", low=-1.0, high=1.0),
    ),
}
SCRIPT = st.lists(
    st.one_of(
        st.tuples(
            st.just("episode"),
            st.integers(0, 2),
            st.integers(1, 25),
            st.sampled_from(["end", "cut", "open"]),
        ),
        st.tuples(
            st.just("steps"),
            st.integers(0, 2),
            st.integers(0, 12),
            st.sampled_from(["end", "cut", "open"]),
        ),
        st.tuples(st.sampled_from(["commit", "seal", "reopen"])),
    ),
    min_size=1,
    max_size=12,
)


class Player:
    """Play a script on a store and on its twin alike."""

    def __init__(self, path, kind, **options):
        self.path, self.spec = path, SPECS[kind]
        self.store = ReplayStore.create(path, self.spec, **options)
        self.twin, self.rng, self.writers = ReplayTwin(), np.random.default_rng(0), {}

    def writer(self, stream):
        if stream not in self.writers:
            self.writers[stream] = self.store.writer(f"s{stream}")
        return self.writers[stream]

    def observation(self):
        leaf = self.spec.observation
        if leaf.dtype == "uint8":
            return (self.rng.integers(4, size=leaf.shape) * (self.rng.random() < 0.5)).astype(np.uint8)
        return self.rng.normal(size=leaf.shape).astype(np.float32)

    def action(self):
        if self.spec.action.kind == "discrete":
            return self.rng.integers(9)
        return self.rng.uniform(-1, 1, size=2).astype(np.float32)

    def play(self, script):
        for operation, *arguments in script:
            getattr(self, operation)(*arguments)

    def episode(self, stream, length, how):
        seen = [self.observation() for _ in range(length + 1)]
        acts = [self.action() for _ in range(length)]
        gains = self.rng.normal(size=length).astype(np.float32)
        last = np.arange(length) == length - 1
        ids = self.writer(stream).write_episode(
            np.stack(seen),
            np.stack(acts),
            gains,
            last & (how == "end"),
            last & (how == "cut"),
        )
        self.twin.reset(stream, seen[0])
        for t, step_id in enumerate(ids.tolist()):
            ended = bool(how == "end" and last[t])
            self.twin.step(stream, step_id, acts[t], gains[t], ended, seen[t + 1])

    def steps(self, stream, length, how):
        writer, first = self.writer(stream), self.observation()
        writer.reset(first)
        self.twin.reset(stream, first)
        for t in range(length):
            act, gain, seen = self.action(), float(np.float32(self.rng.normal())), self.observation()
            ended, cut = how == "end" and t == length - 1, how == "cut" and t == length - 1
            step_id = writer.step(act, gain, ended, cut, seen)
            self.twin.step(stream, step_id, act, gain, ended, seen)

    def commit(self):
        self.store.commit()

    def seal(self):
        self.store.seal()

    def reopen(self):
        self.store.commit()
        self.store.close()
        self.store, self.writers = ReplayStore.open(self.path, mode="a"), {}


def compare(batch, expected):
    names = ("observation", "action", "reward", "discount", "next_observation")
    for name, values in zip(names, expected, strict=True):
        given = np.asarray(getattr(batch, name))
        assert given.dtype == values.dtype, name
        np.testing.assert_array_equal(given, values, err_msg=name)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "python"])
@settings(max_examples=60, deadline=None)
@given(
    script=SCRIPT,
    kind=st.sampled_from(sorted(SPECS)),
    segment_steps=st.sampled_from([1, 2, 3, 8, 16, 64]),
    compression=st.sampled_from(["auto", "zstd", "lz4", "lz4hc", "none"]),
    n_step=st.integers(1, 7),
    gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    frame_stack=st.integers(1, 5),
    padding=st.sampled_from(["first", "zeros"]),
    prioritized=st.booleans(),
)
def test_loader_serves_what_the_twin_computes(
    compiled,
    script,
    kind,
    segment_steps,
    compression,
    n_step,
    gamma,
    frame_stack,
    padding,
    prioritized,
):
    """Any mix of streams, episode ends, commits, seals and restarts; any window; either read path."""
    folder = Path(tempfile.mkdtemp())
    before, native.AVAILABLE = native.AVAILABLE, compiled and native.AVAILABLE
    try:
        player = Player(folder / "x.replay", kind, segment_steps=segment_steps, compression=compression)
        player.play(script)
        store, twin = player.store, player.twin
        assert len(store) == len(twin.place)
        assert store.verify() == [] or all(p.kind == "orphan" for p in store.verify())
        window = {"n_step": n_step, "gamma": gamma, "frame_stack": frame_stack, "padding": padding}
        if twin.place:
            every = np.array(sorted(twin.place))
            np.testing.assert_array_equal(store.step_ids_of(np.arange(len(store))), every)
            compare(store.read(every, **window), twin.read(every, **window))
            sampler = (PrioritizedSampler if prioritized else UniformSampler)(store, seed=1)
            loader = ReplayLoader(sampler, batch_size=32, prefetch=2, **window)
            for batch, _ in zip(loader, range(2), strict=False):
                compare(batch, twin.read(batch.step_ids.tolist(), **window))
            if prioritized:
                assert sampler.check_valid() == (True, "")
        store.close()
    finally:
        native.AVAILABLE = before
        shutil.rmtree(folder)
