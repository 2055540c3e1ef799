"""Fixtures: small specs, stores that are verified when a test is done with them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from unittest import mock

import lmdb
import numpy as np
import pytest
from hypothesis import settings

from diskreplay import ArraySpec, PrioritizedSampler, ReplayStore, StepSpec
from diskreplay.storage.environment import Environment

if "TMPDIR" not in os.environ and Path("/dev/shm").is_dir():
    # Thousands of fsyncs on a real disk would take minutes and prove nothing here; TMPDIR=/somewhere to have them.
    os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"


# How long an example takes says what else the machine does.
settings.register_profile("calm", deadline=None)
settings.load_profile("calm")


@pytest.fixture
def spec():
    """Return the spec of a small vector environment."""
    return StepSpec(
        ArraySpec("observation", (3,), "float32"),
        ArraySpec("action", (), "int64", "discrete", n=3),
    )


@pytest.fixture
def make_store(tmp_path, spec):
    """Return a function that makes stores; each is verified at the end if it is still open."""
    made = []

    def make(name="test.replay", given=None, **options):
        options.setdefault("segment_steps", 16)
        store = ReplayStore.create(tmp_path / name, given or spec, **options)
        made.append(store)
        return store

    yield make
    for store in made:
        if not store._closed:
            store.commit()
            assert [p for p in store.verify() if p.kind != "orphan"] == []
            store.close()


def fill(store, *, episodes=5, length=10, stream="a", terminated=True, seed=0):
    """Write episodes whose observations say which step they are; return the step ids."""
    rng = np.random.default_rng(seed)
    ids = []
    with store.writer(stream) as writer:
        for _ in range(episodes):
            observations = rng.normal(size=(length + 1, 3)).astype(np.float32)
            last = np.arange(length) == length - 1
            ids.append(
                writer.write_episode(
                    observations,
                    rng.integers(3, size=length),
                    rng.normal(size=length).astype(np.float32),
                    last & terminated,
                    last & (not terminated),
                ),
            )
    return np.concatenate(ids)


def close_with_priorities(store):
    """Leave an empty store of short segments with sealed ones, a tail, priorities and locks; return its path."""
    sampler = PrioritizedSampler(store, seed=0)
    fill(store, episodes=7, length=9)
    store.commit()
    assert sampler.total > 0
    store.close()
    return store.path


@contextlib.contextmanager
def failing(*, counts):
    """Have the end of each transaction fail, whether it counts or not."""
    commit = Environment._commit

    def fail(self, txn):
        if counts:
            commit(self, txn)
        self._broken = True
        raise lmdb.Error("planted")

    with mock.patch.object(Environment, "_commit", fail):
        yield
