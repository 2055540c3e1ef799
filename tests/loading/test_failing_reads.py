"""A read that fails says nothing of what a file holds: no sound segment is left out for it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from unittest import mock

import numpy as np
import pytest

from diskreplay import ArraySpec, ReplayError, ReplayLoader, ReplayStore, StepSpec, UniformSampler
from diskreplay.storage import gather, kernels
from diskreplay.storage.reading import FileCache
from tests.conftest import fill

STEPS = 16


def failing_gather(times):
    """Have the system fail to read so many times, as far as the hot read knows."""
    left, real = [times], gather.gather_python

    def gathered(pieces, out):
        if left[0]:
            left[0] -= 1
            return kernels.FAILED
        return real(pieces, out)

    return mock.patch.multiple(gather, gather_compiled=gathered, gather_python=gathered)


def test_a_read_that_fails_once_is_done_again(store):
    expected = store.read(store.step_ids_of(np.arange(200))).observation
    with failing_gather(2):
        assert np.array_equal(store.read(store.step_ids_of(np.arange(200))).observation, expected)


@pytest.mark.parametrize("known", [False, True])
def test_reads_that_go_on_failing_are_no_damage(store, known):
    """Neither where the system says why, nor where it does not."""
    loader = ReplayLoader(UniformSampler(store, seed=0), batch_size=32, on_corruption="skip")
    failed = OSError(errno.EIO, os.strerror(errno.EIO))
    system = mock.patch("os.pread", side_effect=failed if known else lambda *_: b"")
    said = os.strerror(errno.EIO) if known else "cannot be read now"
    with failing_gather(1000), system, pytest.raises(ReplayError, match=said):
        next(iter(loader))
    assert loader.skipped == {}
    assert store.verify() == []


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_compiled_and_plain_reads_tell_a_failure_from_a_short_file(make_store, compression):
    """A directory cannot be read."""
    store = make_store(segment_steps=STEPS, compression=compression)
    fill(store, episodes=1, length=15)
    store.commit()
    plan = store._engine.reader.pieces("observation", *_places(store))
    folder = os.open(store.path, os.O_RDONLY)
    try:
        pieces = plan.resolved(np.full(1 << 12, folder))
        out = np.empty(len(pieces.fd) * pieces.geometry.row_bytes, np.uint8)
        for read in (gather.gather_compiled, gather.gather_python):
            assert read(pieces, out) == kernels.FAILED
    finally:
        os.close(folder)


def _places(store):
    slots = np.zeros(1, np.int32)
    store._kept = store._engine.residency.need_files((slots,), ["observation"])
    return slots, np.zeros(1, np.int32)


def test_a_worker_without_files_leaves_nothing_out(store):
    """It may open none: the main process reads, and finds nothing wrong."""
    few = mock.patch.object(FileCache, "_open", side_effect=OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    options = {"num_workers": 1, "multiprocessing_context": "fork", "on_corruption": "skip"}
    with few, contextlib.closing(ReplayLoader(UniformSampler(store, seed=0), batch_size=32, **options)) as loader:
        got = [batch for batch, _ in zip(loader, range(10), strict=False)]
    assert len(got) == 10
    assert loader.skipped == {}
    assert len(store) == 200


def test_a_worker_takes_no_other_file_for_a_shard(store, tmp_path):
    """What a plan names may be another file by the time that the plan is executed."""
    one, two = (store.path / "steps" / "observation" / f"c.{n}.0" for n in (1, 2))
    with one.open() as right, two.open() as wrong:
        rights, wrongs = (f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (right, wrong))
        assert os.path.samestat(os.fstat(FileCache()(str(one), wrongs)), one.stat())
        copy = shutil.copy(one, tmp_path / "kept")
        one.unlink()  # evicted: it is to be had from where the main process has it open
        assert os.fstat(FileCache()(str(one), rights)).st_nlink == 0
        with pytest.raises(ReplayError, match=r"c\.1\.0"):
            FileCache()(str(one), wrongs)
        shutil.move(copy, one)


@pytest.mark.parametrize("compression", ["lz4", "lz4hc", "zstd", "none"])
@pytest.mark.parametrize("plain", [False, True])
def test_chunks_of_one_byte(tmp_path, monkeypatch, compression, plain):
    """A chunk that blosc stores as it is takes 17 bytes: committed rows could not be read, and repair removed them."""
    spec = StepSpec(ArraySpec("observation", (), "uint8"), ArraySpec("action", (), "int64", "discrete", n=3))
    with ReplayStore.create(
        tmp_path / "s.replay", spec, segment_steps=8, compression=compression, chunk_steps=1
    ) as store:
        with store.writer() as writer:
            none = np.zeros(23, np.bool_)
            writer.write_episode(np.arange(24, dtype=np.uint8), np.zeros(23, np.int64), np.zeros(23), none, none)
        store.seal()
        monkeypatch.setattr("diskreplay.storage.native.AVAILABLE", not plain)
        assert store.read(np.arange(23)).observation.tolist() == list(range(23))
        assert store.verify() == []
