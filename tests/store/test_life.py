"""Writing, committing, refreshing, evicting, reopening: what is there when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from diskreplay import ReplayStore, StepEvictedError, StoreFullError, UniformSampler, WriterStateError
from diskreplay.storage.durable import Disk
from diskreplay.storage.tail import Tail
from tests.conftest import fill


def at(value):
    return np.full(3, value, np.float32)


def test_an_episode_step_by_step(make_store):
    """Step ids count up; the final observation takes a row of its own; discounts follow the episode's end."""
    store = make_store()
    writer = store.writer("a")
    writer.reset(at(0))
    assert [writer.step(t % 3, t, t == 3, False, at(t + 1)) for t in range(4)] == [0, 1, 2, 3]
    writer.reset(at(10))
    assert writer.step(1, 5.0, False, True, at(11)) == 5
    assert (len(store), store.num_episodes, writer.steps, writer.episodes) == (5, 2, 5, 2)
    batch = store.read([0, 3, 5], n_step=2, gamma=0.5)
    assert batch.reward.tolist() == [0.5, 3.0, 5.0]
    assert batch.discount.tolist() == [0.25, 0.0, 0.5]
    assert batch.next_observation[:, 0].tolist() == [2.0, 4.0, 11.0]
    with pytest.raises(StepEvictedError, match="step id 4"):
        store.read([4])


def test_what_was_not_committed_is_not_there(make_store):
    """A commit is the border, with an episode going on or not."""
    store = make_store()
    writer = store.writer("a")
    writer.reset(at(0))
    for t in range(5):
        writer.step(0, t, False, False, at(t + 1))
    store.commit()
    writer.step(0, 99, False, False, at(6))
    with ReplayStore.open(store.path) as other:
        assert (len(other), other.num_episodes) == (5, 0)
        assert other.read([4]).next_observation[0].tolist() == [5, 5, 5]
        store.commit()
        assert len(other) == 5
        assert other.refresh()
        assert len(other) == 6
    store._engine.close()
    store._index.close()
    store._closed = True
    with ReplayStore.open(store.path, mode="a") as again:
        writer = again.writer("a")
        assert (len(again), again.num_episodes) == (6, 1)
        assert again.read([5]).discount.tolist() == [np.float32(0.99)]
        assert not again.episodes().terminated[0]
        writer.reset(at(50))
        assert writer.step(0, 0.0, True, False, at(51)) == 7


def test_a_reader_follows_a_writer_through_seals(make_store):
    """Commit by commit, whatever a segment's borders are, both see the same."""
    store = make_store(segment_steps=8)
    other = ReplayStore.open(store.path)
    rng = np.random.default_rng(0)
    writers = [store.writer(name) for name in "ab"]
    for _ in range(40):
        writer = writers[rng.integers(2)]
        if not writer._in_episode:
            writer.reset(rng.normal(size=3).astype(np.float32))
        for _ in range(rng.integers(6)):
            if writer._in_episode:
                end = bool(rng.random() < 0.2)
                writer.step(rng.integers(3), rng.normal(), end, False, rng.normal(size=3).astype(np.float32))
        if rng.random() < 0.2:
            store.seal()
        else:
            store.commit()
        other.refresh()
        ids = store.step_ids_of(np.arange(len(store)))
        np.testing.assert_array_equal(other.step_ids_of(np.arange(len(other))), ids)
        if len(ids):
            mine, theirs = (s.read(ids, n_step=3, frame_stack=2) for s in (store, other))
            for name in ("observation", "reward", "discount", "next_observation", "action"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    assert other.num_episodes == store.num_episodes > 5
    other.close()


def test_capacity_in_steps(make_store):
    """Whole segments go, oldest first; pinned streams stay; late reads of what is gone say so."""
    store = make_store(segment_steps=16, capacity=80)
    demo = fill(store, episodes=2, length=10, stream="demo")
    store.pin("demo")
    old = fill(store, episodes=1, length=15, stream="b")
    other = ReplayStore.open(store.path)
    for seed in range(10):
        fill(store, episodes=1, length=20, stream="b", seed=seed)
        store.commit()
        assert len(store) <= 80
    store.read(demo)
    with pytest.raises(StepEvictedError, match="evicted"):
        store.read(old)
    assert other.refresh()
    assert len(other) == len(store)
    live = {int(s) for s in store.access.live_segments()[0]}
    store.seal()
    live = {int(s) for s in store.access.live_segments()[0]}
    on_disk = {int(p.name.split(".")[1]) for p in (store.path / "steps" / "observation").glob("c.*")}
    assert on_disk == live
    other.close()


def test_capacity_in_bytes(make_store):
    """The limit counts what sealed segments take on disk."""
    store = make_store(segment_steps=64, capacity="16 KiB", compression="none")
    for seed in range(60):
        fill(store, episodes=1, length=30, seed=seed)
        store.commit()
    table = store._engine.table
    assert 8 << 10 < table.bytes_on_disk[: table.size].sum() <= 16 << 10


def test_what_a_batch_reads_may_be_evicted_meanwhile(make_store):
    """A plan keeps its files open; the bytes are there until it is done."""
    store = make_store(segment_steps=16, capacity=32)
    ids = fill(store, episodes=1, length=15)
    store.seal()
    expected = store.read(ids).observation
    plan = store.plan(ids)
    fill(store, episodes=10, length=15, seed=1)
    store.commit()
    with pytest.raises(StepEvictedError):
        store.read(ids)
    np.testing.assert_array_equal(plan.fetch().observation[0], expected)


def test_a_full_disk_loses_nothing(make_store, monkeypatch):
    """The commit raises; once there is room the same steps are committed."""
    store = make_store(segment_steps=16)
    first = fill(store, episodes=1, length=10)
    store.commit()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreFullError, match="No space left"):
            fill(store, episodes=3, length=10, seed=1)
        with ReplayStore.open(store.path) as other:
            assert len(other) == 10
    store.commit()
    assert [p for p in store.verify() if p.kind != "orphan"] == []
    assert len(store) > 10
    with ReplayStore.open(store.path) as other:
        np.testing.assert_array_equal(other.read(first).observation, store.read(first).observation)
        assert len(other) == len(store)


def test_a_seal_that_was_cut_off_is_done_again(make_store):
    """Whatever an interrupted attempt left in a shard's place does not end up in the segment."""
    store = make_store(segment_steps=64)
    ids = fill(store, episodes=2, length=40)
    store.seal()
    (one, two) = sorted((store.path / "steps" / "observation").glob("c.*"))
    ids = fill(store, episodes=1, length=10, seed=1)
    expected = store.read(ids).observation
    segment = int(ids[0]) // 64
    for field in ("observation", "action", "episode"):
        name = next((store.path / "steps" / field).glob("c.0*")).name.replace("c.0", f"c.{segment}", 1)
        (store.path / "steps" / field / name).write_bytes(one.read_bytes() if field == "observation" else b"left")
    store.seal()
    assert store.verify() == []
    np.testing.assert_array_equal(store.read(ids).observation, expected)
    assert two.exists()


def test_an_index_without_room_for_a_segment_leaves_the_stream_as_it_was(make_store, monkeypatch):
    """The step that would start a segment is refused whole, and its episode ends: others may go on or repeat it."""
    store = make_store(segment_steps=4)
    writer = store.writer("a")
    writer.reset(at(0))
    for t in range(3):
        writer.step(0, t, False, False, at(t + 1))

    def full(_):
        raise StoreFullError("the index is full")

    episode = (np.zeros((10, 3), np.float32), np.zeros(9, int), np.zeros(9), np.zeros(9, bool), np.zeros(9, bool))
    with monkeypatch.context() as patch:
        patch.setattr(store._engine, "take_segments", lambda stream, count: full(count) if count else [])
        with pytest.raises(StoreFullError):
            writer.step(0, 3, False, False, at(4))
        assert (len(store), writer.steps, writer.episodes) == (3, 3, 1)
        with pytest.raises(StoreFullError):
            writer.write_episode(*episode)
    assert len(store) == 3
    assert len(writer.write_episode(*episode)) == 9
    assert store.read([0, 1, 2]).next_observation[:, 0].tolist() == [1, 2, 3]


def test_every_file_write_goes_through_the_seam(make_store, monkeypatch):
    """What a commit writes and syncs, in order: data, then folders, before the index names it."""
    calls = []

    def spy(name, names_of):
        real = getattr(Disk, name)

        def method(self, what, *args):
            calls.append((name, names_of(what)))
            return real(self, what, *args)

        monkeypatch.setattr(Disk, name, method)

    spy("stage", lambda path: path.name)
    spy("settle", lambda staged: {item.path.name for item in staged})
    spy("sync_directories", lambda paths: {path.name for path in paths})
    store = make_store(segment_steps=16)
    calls.clear()
    fill(store, episodes=2, length=10)
    shards = [i for i, (name, file) in enumerate(calls) if name == "stage" and file.startswith("c.0")]
    assert len(shards) == 7
    after = calls[shards[-1] + 1 :]
    assert after[0] == ("settle", {"c.0", "c.0.0"})
    assert after[1] == ("sync_directories", {field.name for field in store._engine.fields})


WRITER = textwrap.dedent("""
    import sys
    import numpy as np
    from diskreplay import ReplayStore
    store = ReplayStore.open(sys.argv[1], mode="a")
    writer = store.writer(sys.argv[2])
    rng = np.random.default_rng(int(sys.argv[3]))
    while True:
        writer.reset(np.full(3, writer.steps, np.float32))
        for t in range(int(rng.integers(1, 40))):
            n = writer.steps
            writer.step(n % 3, n, False, False, np.full(3, n + 1, np.float32))
        store.commit()
        print(writer.steps, flush=True)
""")


@pytest.mark.parametrize("seed", range(4))
def test_kill_loses_nothing_that_was_committed(make_store, seed):
    """Survive kill -9 at a random moment, three times over: every acknowledged step is there, with its own values."""
    store = make_store(segment_steps=32)
    store.close()
    rng, acknowledged = np.random.default_rng(seed), 0
    for round_ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(store.path), "a", str(seed * 10 + round_)],
            stdout=subprocess.PIPE,
            text=True,
        )
        acknowledged = int(process.stdout.readline())
        time.sleep(float(rng.random()) * 0.2)
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        acknowledged = int(lines[-1]) if lines else acknowledged
        with ReplayStore.open(store.path) as found:
            assert len(found) >= acknowledged
            assert [p for p in found.verify() if p.kind != "orphan"] == []
            ids = found.step_ids_of(np.arange(len(found)))
            batch = found.read(ids)
            steps = np.arange(len(found))
            np.testing.assert_array_equal(batch.reward, steps)
            np.testing.assert_array_equal(batch.action, steps % 3)
            np.testing.assert_array_equal(batch.observation[:, 0], steps)
            np.testing.assert_array_equal(batch.next_observation[:, 0], steps + 1)


def test_processes_write_streams_of_one_store(make_store):
    """Two writing processes and a sampling reader at the same time."""
    store = make_store(segment_steps=32)
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(store.path), name, "1"], stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    try:
        for process in processes:
            process.stdout.readline()
        sampler = UniformSampler(store, seed=0)
        deadline = time.monotonic() + 60
        draws = 0
        while draws < 30 or (len(store) <= 100 and time.monotonic() < deadline):
            draws += 1
            store.refresh()
            draw = sampler.draw(64)
            batch = store.read(draw.step_ids)
            np.testing.assert_array_equal(batch.observation[:, 0], batch.reward)
            np.testing.assert_array_equal(batch.next_observation[:, 0], batch.reward + 1)
            time.sleep(0.01)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
    store.refresh()
    assert set(store.streams) == {"a", "b"}
    assert len(store) > 100


def test_metadata_is_kept(make_store):
    """Merged, and durable with the next commit."""
    store = make_store(metadata={"env_id": "X"})
    store.update_metadata({"more": [1, 2]})
    store.commit()
    with ReplayStore.open(store.path) as other:
        assert other.metadata == {"env_id": "X", "more": [1, 2]}


def test_stats_add_up(make_store):
    """Counts and moments are those of the steps written."""
    store = make_store(segment_steps=16)
    ids = fill(store, episodes=5, length=9, terminated=False)
    store.commit()
    stats = store.stats()
    rewards = store.read(ids).reward.astype(np.float64)
    assert (stats.steps, stats.transitions, stats.episodes, stats.streams) == (45, 45, 5, 1)
    assert stats.reward["mean"] == pytest.approx(rewards.mean())
    assert stats.reward["std"] == pytest.approx(rewards.std())
    assert stats.episode_length["median"] == 9
    np.testing.assert_allclose(store.episodes().episode_return, rewards.reshape(5, 9).sum(axis=1), rtol=1e-6)
    assert not store.episodes().terminated.any()
    assert stats.bytes_on_disk > sum(f["bytes_on_disk"] for f in stats.fields.values()) > 0
    assert stats.to_json()["path"] == str(store.path)
    np.testing.assert_array_equal(np.concatenate(list(store.column("reward"))), rewards.astype(np.float32))
    with pytest.raises(ValueError, match="no field 'x'"):
        next(store.column("x"))


def test_sequences(make_store):
    """Consecutive steps up to the episode's end, then padding under a mask."""
    store = make_store(segment_steps=4)
    with store.writer("a") as writer:
        for how in ("end", "cut"):
            t = np.arange(6)
            seen, last = np.repeat(np.arange(7, dtype=np.float32)[:, None], 3, 1), t == 5
            writer.write_episode(seen, t % 3, t, last & (how == "end"), last & (how == "cut"))
    found = store.read_sequences([1, 4, 11], 4)
    assert found.observation[:, :, 0].tolist() == [[1, 2, 3, 4, 5], [4, 5, 6, 6, 6], [4, 5, 6, 6, 6]]
    assert found.action.tolist() == [[1, 2, 0, 1], [1, 2, 2, 2], [1, 2, 2, 2]]
    assert found.reward.tolist() == [[1, 2, 3, 4], [4, 5, 0, 0], [4, 5, 0, 0]]
    assert found.mask.tolist() == [[True] * 4, [True, True, False, False], [True, True, False, False]]
    assert found.terminated[1].tolist() == [False, True, False, False]
    assert found.truncated[1:].tolist() == [[False] * 4, [False, True, False, False]]


def test_an_episode_that_begins_with_a_sealed_away_row_keeps_its_first_step(make_store):
    """seal() between reset() and the first step moves the pending row to a new segment: the episode begins there."""
    store = make_store(segment_steps=16)
    with store.writer("a") as writer:
        flags = np.array([False, True])
        writer.write_episode(np.zeros((3, 3), np.float32), [0, 0], [0.0, 0.0], flags, flags & False)
        writer.reset(np.ones(3, np.float32))
        store.seal()
        assert writer.step(0, 1.0, True, False, np.zeros(3, np.float32)) == 16
        store.commit()
    assert store.episodes().first_step_id.tolist() == [0, 16]
    assert store.read([16]).observation.tolist() == [[1.0, 1.0, 1.0]]
    assert store.verify() == []


@pytest.mark.parametrize("name", ["observe", "act"])
def test_a_step_that_was_interrupted_half_way_is_never_committed(make_store, monkeypatch, name):
    """Else the episode would go on with the first observation of another."""
    store = make_store()
    before = fill(store)
    store.commit()
    writer = store.writer("a")
    writer.reset(np.zeros(3, np.float32))
    writer.step(0, 0.0, False, False, np.zeros(3, np.float32))
    done = getattr(Tail, name)

    def interrupted(*args, **options):
        done(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Tail, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.step(1, 1.0, False, False, np.ones(3, np.float32))
    monkeypatch.undo()
    for refused in (store.commit, store.seal, lambda: writer.reset(np.zeros(3, np.float32))):
        with pytest.raises(WriterStateError, match="interrupted half-way"):
            refused()
    writer.close()
    store.close()
    with ReplayStore.open(store.path, mode="a") as store:
        assert len(store) == len(before)
        fill(store)
        store.commit()
        assert store.verify() == []


@pytest.mark.parametrize("committed", [False, True])
def test_a_writer_that_nobody_closed_gives_its_stream_back(make_store, committed):
    """To the next writer of this process at once, to others with the next commit; its episode ends as interrupted."""
    store = make_store()
    writer = store.writer("a")
    writer.reset(at(0))
    for t in range(5):
        writer.step(0, t, False, False, at(t + 1))
    del writer
    if committed:
        store.commit()
        with ReplayStore.open(store.path, mode="a") as other, other.writer("a"):
            assert (len(other), other.num_episodes) == (5, 1)
            other.commit()
    writer = store.writer("a")
    with pytest.raises(WriterStateError, match="outside an episode"):
        writer.step(0, 5, False, False, at(6))
    writer.reset(at(10))
    assert writer.step(1, 6, True, False, at(11)) == 6
    store.commit()
    assert store.num_episodes == 2
    assert store.read([4, 6]).next_observation[:, 0].tolist() == [5.0, 11.0]
    assert store.verify() == []
