"""The scenario, killed at a share of its storage calls, and with a share of them failing; and a check that can fail."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from diskreplay import PrioritizedSampler, ReplayStore
from tests.torture import every_call, interrupts, scenario, shim, trial
from tests.torture.trial import Job

pytestmark = pytest.mark.skipif(shim.missing() is not None, reason=str(shim.missing()))
COMMITS = 24
ACKED = 20


@pytest.fixture(scope="module")
def zygotes():
    with trial.Zygotes() as zygotes:
        yield zygotes


@pytest.fixture(scope="module")
def operations(zygotes):
    """Return the storage calls of an undisturbed life."""
    (result,) = zygotes.run([Job(seed=1, commits=COMMITS)])
    assert result.problems == []
    assert len(result.operations) == result.calls > 500
    return result.operations


def spread(points, count):
    """Return so many points, one at random from each of equal stretches."""
    rng = random.Random(len(points))
    edges = np.linspace(0, len(points), count + 1).astype(int).tolist()
    return [points[rng.randrange(a, b)] for a, b in pairwise(edges)]


def problems_of(zygotes, jobs):
    return [f"{result.job}: {line}" for result in zygotes.run(jobs) for line in result.problems]


def test_a_kill_at_any_call_loses_nothing(zygotes, operations):
    """What was acknowledged is there, exactly, and the store lives on."""
    points = spread(every_call.points_of("kill", operations), 60)
    assert problems_of(zygotes, [Job("kill", at, seed=1, commits=COMMITS) for at in points]) == []


@pytest.mark.parametrize("kind", ["eio", "enospc", "short"])
def test_a_call_that_fails_is_reported_and_loses_nothing(zygotes, operations, kind):
    """An error of our own tree, or none; the life goes on once the calls work again."""
    points = spread(every_call.points_of(kind, operations), 25)
    jobs = list(every_call.jobs_of(kind, points, 1, COMMITS, turn=0))
    assert {(job.forever, job.leave) for job in jobs} == {(a, b) for a in (False, True) for b in (False, True)}
    assert problems_of(zygotes, jobs) == []


def test_a_call_that_is_done_and_reported_as_failed_loses_nothing(zygotes, operations):
    """A commit may count that seemed to fail; more joins it, and it is tried again."""
    points = spread(every_call.points_of("late", operations), 20)
    # Of these the last write is that of LMDB's meta page: what counts, though all calls fail from there on.
    commits = [at for at in range(2, len(operations)) if operations[at - 2 : at] == ["SYNC", "WRITE"]]
    jobs = [*every_call.jobs_of("late", points, 1, COMMITS, turn=0)]
    jobs += [Job("late", at, forever=True, seed=1, commits=COMMITS) for at in spread(commits, 10)]
    assert problems_of(zygotes, jobs) == []


def test_an_interrupt_at_any_place_loses_nothing(zygotes):
    """Ctrl-C: the handle goes on, or says that it cannot and a new one does."""
    (result,) = zygotes.run([Job("interrupt", seed=1, commits=COMMITS)])
    assert len(result.places) > 2_000
    assert sum(result.places.values()) > 10_000
    jobs = interrupts.jobs_of(result.places, 25, 1, COMMITS)
    results = list(zygotes.run(jobs))
    assert [f"{result.job}: {line}" for result in results for line in result.problems] == []
    assert sum(bool(result.went_on) for result in results) > 12


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """Return a store after a number of commits, and copies of it from before."""
    folder = tmp_path_factory.mktemp("lived")
    life = scenario.Life(folder / "now", 0)
    for commits in (ACKED - 6, ACKED - 1, ACKED):
        life.run(commits)
        copy_store(folder / "now", folder / f"at-{commits}")
    life.close()
    return folder


def copy_store(source, target):
    """Copy in another process: closing a copy of lock.mdb would drop the locks of this one."""
    subprocess.run(["cp", "-r", source, target], check=True)


@pytest.fixture
def store(lived, tmp_path):
    """Return a copy that may be damaged."""
    return shutil.copytree(lived / f"at-{ACKED}", tmp_path / "store")


def test_the_check_accepts_the_commit_on_its_way_and_no_other(lived, tmp_path):
    """A commit may count before it is acknowledged; two may not, and none may be missing."""
    for acked, sound in ((ACKED, True), (ACKED - 1, True), (ACKED - 2, False), (ACKED + 1, False)):
        path = shutil.copytree(lived / f"at-{ACKED}", tmp_path / str(acked))
        problems = scenario.check(path, 0, acked, go_on=0)
        assert (problems == []) == sound, problems
    assert scenario.check(tmp_path / str(ACKED), 0, ACKED) == []


def test_the_check_notices_a_roll_back(lived, tmp_path):
    """An earlier copy of everything, or of the index alone."""
    path = shutil.copytree(lived / f"at-{ACKED - 6}", tmp_path / "all")
    assert any("was acknowledged" in line for line in scenario.check(path, 0, ACKED))
    path = shutil.copytree(lived / f"at-{ACKED}", tmp_path / "index")
    shutil.copy(lived / f"at-{ACKED - 6}" / "index.lmdb" / "data.mdb", path / "index.lmdb" / "data.mdb")
    assert scenario.check(path, 0, ACKED)


def test_the_check_notices_a_missing_store(tmp_path):
    """Unless nothing was acknowledged yet: then it can be made."""
    assert scenario.check(tmp_path / "none", 0, 1)
    assert scenario.check(tmp_path / "none", 0, 0) == []


def test_the_check_notices_one_priority(store):
    """Of one step, by a little."""
    with ReplayStore.open(store, mode="a") as opened:
        sampler = PrioritizedSampler(opened, eps=0.0, seed=0, resume=True)
        step = opened.step_ids_of(np.array([len(opened) // 2]))
        sampler.set_priorities(step, np.nextafter(sampler.priorities_of(step), np.float32(100)))
        opened.commit()
    problems = scenario.check(store, 0, ACKED)
    assert problems
    assert all("priority" in line for line in problems), problems


def test_the_check_notices_a_step_too_many(store):
    """Written by nobody that the model knows."""
    with ReplayStore.open(store, mode="a") as opened:
        with opened.writer(scenario.STREAMS[1]) as writer:
            writer.reset(scenario.observation((1, 0, 0)))
            writer.step(0, 0.0, True, False, scenario.observation((1, 1, 0)))
        opened.commit()
    assert any("steps" in line for line in scenario.check(store, 0, ACKED))


def test_the_check_notices_a_step_missing_from_the_end(store):
    """Another seed's life has other steps."""
    assert scenario.check(store, 1, ACKED)


@pytest.mark.parametrize("field", ["observation.camera", "observation.vector", "reward", "action", "episode"])
def test_the_check_notices_a_byte(store, field):
    """One bit of one shard."""
    shard = max((store / "steps" / field).glob("c.*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    assert scenario.check(store, 0, ACKED)


def test_the_model_follows_a_life_that_is_interrupted(tmp_path):
    """Go on from whatever commit: the history stays known."""
    rng, commits = random.Random(0), 0
    while commits < 40:
        life = scenario.Life(tmp_path / "store", 2, tmp_path / "ack")
        life.run(commits + rng.choice([0, 1, 2, 9]))
        for _ in range(rng.randrange(4)):
            life.advance()
        life.close()
        commits = scenario.acknowledged(tmp_path / "ack")
        assert scenario.check(tmp_path / "store", 2, commits, go_on=0) == []
    assert len(life.model.restarts) > 5


def test_the_shim_counts_and_logs(tmp_path):
    """As many calls as records; acknowledgements are logged and not counted."""
    code = "import os; fd = os.open('root/a', os.O_CREAT | os.O_WRONLY); os.write(fd, b'xyz'); os.fsync(fd); "
    code += "os.rename('root/a', 'root/b'); ack = os.open('ack', os.O_CREAT | os.O_WRONLY); os.write(ack, b'1\\n')"
    (tmp_path / "root").mkdir()
    environment = shim.environment(
        tmp_path / "root", ack=tmp_path / "ack", log=tmp_path / "log", counter=tmp_path / "counter"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    found = [(op.name, Path(op.path).name, op.data) for op in shim.read_log(tmp_path / "log")]
    assert found == [
        ("CREATE", "a", b""), ("WRITE", "a", b"xyz"), ("SYNC", "a", b""), ("RENAME", "a", b""), ("ACK", "ack", b"1\n"),
    ]  # fmt: skip
    assert shim.calls(tmp_path / "counter") == 4
