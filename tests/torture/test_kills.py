"""Two hundred kills at random times; and a check that can fail."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest

from diskreplay import PrioritizedSampler, ReplayStore
from tests.torture import kill_random
from tests.torture.kill_random import Files

KILLS = 200


def test_kills_at_random_times_lose_nothing():
    """Two writers, a learner, a reader; every store is checked after every round."""
    tally = kill_random.kill(KILLS, seed=random.randrange(1 << 20))
    assert tally.problems == []
    assert tally.kills >= KILLS
    assert min(tally.killed.values()) > 20
    assert tally.steps > 100
    assert tally.commits > 100


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """Return a store that two writers and a learner have left, with nothing wrong."""
    rng = random.Random(0)
    files = Files(tmp_path_factory.mktemp("arena"))
    store = ReplayStore.create(
        files.store, kill_random.SPEC, capacity=kill_random.CAPACITY, segment_steps=kill_random.SEGMENT_STEPS
    )
    store.close()
    lives = [
        (kill_random.write_life, 0), (kill_random.write_life, 1), (kill_random.learn_life,),
    ] * 2  # fmt: skip
    for function, *number in lives:
        limited(files, function, *number, rng)
    assert kill_random.check(files) == []
    return files


@pytest.fixture
def files(lived, tmp_path):
    """Return a copy that may be damaged."""
    return Files(shutil.copytree(lived.folder, tmp_path / "arena"))


class EnoughError(Exception):
    pass


def limited(files, function, *arguments):
    """Let a life run until it has acknowledged a number of commits."""
    left = 30

    class Limited(Files):
        def note(self, name):
            write = super().note(name)

            def counted(value):
                nonlocal left
                write(value)
                left -= 1
                if not left:
                    raise EnoughError

            return counted

    with pytest.raises(EnoughError) as caught:
        function(Limited(files.folder), *arguments)
    # What a kill would have let go of: the frames hold the store and its locks.
    for frame in reversed(list(iterate(caught.value.__traceback__))):
        store = frame.f_locals.get("store")
        if store is not None:
            store.close()


def iterate(trace):
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def test_the_check_notices_lost_steps(files):
    """One more acknowledged than is there."""
    files.note("writer-0")(files.last("writer-0") + 1000)
    assert any("stream 0" in line for line in kill_random.check(files))


def test_the_check_notices_a_lost_round(files):
    """An acknowledged round that was not committed, or one that nobody began."""
    last = files.last("learner")
    files.note("learner")(last + 5)
    assert any("round" in line for line in kill_random.check(files))


def test_the_check_notices_a_priority(files):
    """One, in a committed round."""
    with ReplayStore.open(files.store, mode="a") as store:
        sampler = PrioritizedSampler(store, eps=0.0)
        step = store.step_ids_of(np.array([len(store) // 2]))
        sampler.set_priorities(step, np.nextafter(sampler.priorities_of(step), np.float32(0)))
        store.commit()
    (line,) = kill_random.check(files)
    assert "1 priorities differ" in line


def test_the_check_notices_a_wrong_value(files):
    """A step that says it is another."""
    with ReplayStore.open(files.store, mode="a") as store, store.writer("actor-0") as writer:
        n = writer.steps
        writer.reset(kill_random.observation((0, n, 7)))
        writer.step(kill_random.action_of(0, n), kill_random.reward_of(0, n) + 1, False, False,
                    kill_random.observation((0, n + 1, 7)))  # fmt: skip
        store.commit()
    assert any("reward of 1 steps" in line for line in kill_random.check(files))


def test_the_check_notices_a_damaged_shard(files):
    shard = min((files.store / "steps" / "observation.camera").glob("c.*"))
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    assert kill_random.check(files)


def test_a_store_that_does_not_open_is_a_problem(files):
    shutil.rmtree(files.store / "index.lmdb")
    assert kill_random.check(files)


def test_lines_that_a_kill_cut_off_are_left_out(tmp_path):
    """And do not spoil the next one."""
    files = Files(tmp_path)
    files.note("writer-0")(3)
    with (tmp_path / "writer-0").open("a") as file:
        file.write(json.dumps({"round": 1})[:5])
    files.note("writer-0")(4)
    assert list(files.read("writer-0")) == [3, 4]
