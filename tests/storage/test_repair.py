"""Every kind of damage: repair keeps what is sound, bit for bit, says what it drops, and deletes nothing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from diskreplay import CorruptStoreError, PrioritizedSampler, ReplayError, ReplayStore, StoreLockedError
from diskreplay.errors import StoreNotFoundError
from diskreplay.storage import layout
from diskreplay.storage.durable import Disk
from diskreplay.storage.upkeep.repair import apply, plan_repair, repair_store
from tests.conftest import fill
from tests.storage.damage import STEPS, build, check, flip, priorities, put, raw, rows, shard, spoil, verify

FIELDS = ["observation", "action", "reward", "terminated", "truncated", "is_last", "episode"]
NAME = b"prioritized"
A, B = (0, 1, 2), (3, 4, 5, 6, 7)  # the sealed segments of the two streams; their tails are 9 and 8


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Return a sound store, its rows and its priorities; nobody changes it."""
    from diskreplay import ArraySpec, StepSpec

    spec = StepSpec(ArraySpec("observation", (3,), "float32"), ArraySpec("action", (), "int64", "discrete", n=3))
    path = tmp_path_factory.mktemp("sound") / "s.replay"
    build(ReplayStore.create(path, spec, segment_steps=STEPS, metadata={"by": "test"}))
    return path, rows(path), priorities(path)


@pytest.fixture
def path(sound, tmp_path):
    """Return a copy of the sound store, to damage."""
    return shutil.copytree(sound[0], tmp_path / "s.replay")


@pytest.fixture(autouse=True)
def _walk_seldom(request, monkeypatch):
    """Spare the tests that do not damage the index itself the process that walks it."""
    if not any(word in request.node.name for word in ("index", "rebuild", "interrupted")):
        monkeypatch.setattr("diskreplay.storage.upkeep.repair.probe", lambda _: "")


@pytest.fixture
def before(sound):
    """Return the rows before the damage."""
    return sound[1]


def cut_step(segment):
    """Return the step that a segment's loss takes from the segment before it, if there is one."""
    stream = A if segment in A else B
    return {segment * STEPS - 1} if segment in stream[1:] else set()


def without(before, *segments, also=()):
    gone = set(also)
    for segment in segments:
        gone |= {i for i in before if i // STEPS == segment} | cut_step(segment)
    return {i: row for i, row in before.items() if i not in gone}


def after_repair(path):
    """Repair and return the rows; they are read before `check` appends."""
    plan = plan_repair(path)
    assert not plan.empty
    done = apply(plan)
    left = rows(path)
    check(path)
    return done, left


def test_a_sound_store_needs_nothing(path, before):
    assert verify(path) == []
    assert plan_repair(path).empty
    done = repair_store(path)
    assert done.aside is None
    assert not (path / layout.LOST).exists()
    assert rows(path) == before


@pytest.mark.parametrize(
    ("field", "segment", "how"),
    [
        *((field, 5, "flipped") for field in FIELDS),
        *((field, 0, how) for field in ("observation", "is_last") for how in ("missing", "short")),
    ],
)
def test_a_bad_shard_takes_its_segment(path, before, field, segment, how):
    file = shard(path, field, segment)
    if how == "missing":
        file.unlink()
    elif how == "flipped":
        flip(file, 0.3)
    else:
        file.write_bytes(file.read_bytes()[:-3])
    assert {kind for kind, where, _ in verify(path) if where == str(file)} == {
        "missing file" if how == "missing" else "damaged file"
    }
    done, left = after_repair(path)
    assert left == without(before, segment)
    assert done.plan.losses[0].what == f"segment {segment}"
    assert done.plan.losses[0].stream == ("a" if segment in A else "b")
    kept = {p.relative_to(done.aside).as_posix() for p in done.aside.rglob("c.*")}
    expected = {shard_path(name, segment) for name in FIELDS}
    assert kept == expected - ({shard_path(field, segment)} if how == "missing" else set())
    assert json.loads((done.aside / "report.json").read_text())["losses"][0]["what"] == f"segment {segment}"


def shard_path(field, segment):
    return f"steps/{field}/c.{segment}" + (".0" if field == "observation" else "")


@pytest.mark.parametrize("segments", [(2,), (7,), (4, 5), (3,), A + B, (0, 1, 2), (6, 7)])
def test_segments_at_every_place_of_their_streams(path, before, segments):
    for segment in segments:
        shard(path, "reward", segment).unlink()
    done, left = after_repair(path)
    expected = without(before, *segments)
    assert left == expected
    lost = sum(loss.steps for loss in done.plan.losses)
    assert lost == len(before) - len(expected)


def test_swapped_shards_are_dropped_both(path, before):
    one, two = shard(path, "observation", 4), shard(path, "observation", 6)
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    _, left = after_repair(path)
    assert left == without(before, 4, 6)


@pytest.mark.parametrize("database", ["files", "checks", "episodes", "segments"])
@pytest.mark.parametrize(("segment", "how"), [(0, "spoiled"), (5, "spoiled"), (7, "gone")])
def test_a_record_is_made_anew_from_shards_the_index_vouches_for(path, before, database, segment, how):
    key = layout.segment_key(segment)
    if how == "spoiled":
        spoil(path, database, key)
    else:
        with raw(path) as (txn, databases):
            txn.delete(key, db=databases[database])
    with raw(path) as (txn, databases):
        old = {n: txn.get(key, db=databases[n]) for n in ("files", "checks", "episodes")}
    done, left = after_repair(path)
    assert left == before
    assert done.plan.losses == []
    assert (done.aside / "index" / database / key.hex()).exists() == (how == "spoiled")
    with raw(path) as (txn, databases):
        for name in set(old) - {database}:
            assert txn.get(key, db=databases[name]) == old[name]


def test_a_shard_that_nothing_vouches_for_is_not_kept(path, before):
    for database in ("files", "checks"):
        spoil(path, database, layout.segment_key(4))
    _, left = after_repair(path)
    assert left == without(before, 4)


@pytest.mark.parametrize("other", ["files", "checks"])
def test_a_swapped_shard_is_not_vouched_for(path, before, other):
    """The record that is left says what the shard must be."""
    spoil(path, other, layout.segment_key(4))
    shutil.copy(shard(path, "observation", 5), shard(path, "observation", 4))
    _, left = after_repair(path)
    assert left == without(before, 4)


@pytest.mark.parametrize(("segment", "row", "lost"), [(9, 0, 0), (9, 4, 4), (8, 0, 0)])
def test_a_damaged_tail_record_cuts_the_tail_back(path, before, segment, row, lost):
    stream = 0 if segment == 9 else 1
    spoil(path, "tails", layout.tail_key(stream, segment, row))
    done, left = after_repair(path)
    gone = {i for i in before if i // STEPS == segment and i % STEPS >= lost}
    also = {47} if (segment, row) == (9, 0) else {127} if segment == 8 else set()
    assert left == without(before, also=gone | also)
    assert sum(loss.steps for loss in done.plan.losses) == len(before) - len(left)


def test_the_next_writer_ends_an_episode_that_was_cut_back(path, before):
    spoil(path, "tails", layout.tail_key(0, 9, 4))
    repair_store(path)
    with ReplayStore.open(path, mode="a") as store:
        episodes = store.num_episodes
        ids = fill(store, episodes=1, length=3, stream="a")
        store.commit()
        assert store.num_episodes == episodes + 2
        assert ids[0] == 9 * STEPS + 5
    assert verify(path) == []


def test_a_full_tail_whose_following_rows_are_lost_ends_its_episode(make_store):
    """A tail of S rows cannot be sealed if the seal fails; what follows lies in another one."""
    store = make_store(segment_steps=8)
    path = store.path
    with store.writer("a") as writer:
        writer.reset(np.zeros(3, np.float32))
        original, store._committer.commit = store._committer.commit, lambda *_, **__: None
        for t in range(12):
            writer.step(0, t, False, False, np.full(3, t + 1, np.float32))
        store._committer.commit = original
        # Committed as tails, without sealing the full one.
        tail = store._engine.streams[0].tails[0]
        tail.segment_steps, full = 99, tail.segment_steps
        store.commit()
        tail.segment_steps = full
        from tests.storage.damage import abandon

        abandon(store)
    before = rows(path)
    assert len(before) == 12
    spoil(path, "tails", layout.tail_key(0, 1, 0))
    done, left = after_repair(path)
    assert left == {i: row for i, row in before.items() if i < 7}
    assert sum(loss.steps for loss in done.plan.losses) == 5


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("how", ["spoiled", "gone"])
def test_a_stream_is_made_anew(path, before, stream, how):
    if how == "spoiled":
        spoil(path, "streams", layout.stream_key(stream))
    else:
        with raw(path) as (txn, databases):
            txn.delete(layout.stream_key(stream), db=databases["streams"])
    plan = plan_repair(path)
    apply(plan)
    assert plan.losses == []
    with ReplayStore.open(path) as store:
        assert set(store.streams) == {"a", "b"} - {"ab"[stream]} | {f"recovered-{stream}"}
    assert rows(path) == before
    check(path)


@pytest.mark.parametrize("key", [b"counters", b"fields", b"description"])
@pytest.mark.parametrize("how", ["spoiled", "gone"])
def test_the_store_s_own_records_are_made_anew(path, before, key, how):
    if how == "spoiled":
        spoil(path, "meta", key)
    else:
        with raw(path) as (txn, databases):
            txn.delete(key, db=databases["meta"])
    with raw(path) as (txn, databases):
        assert txn.get(b"metadata", db=databases["meta"])
    _, left = after_repair(path)
    assert left == before


def test_ids_are_never_given_out_again(path):
    """The counters are gone, and a shard lies there that the index does not know."""
    shutil.copy(shard(path, "reward", 0), path / "steps" / "reward" / "c.77")
    spoil(path, "meta", b"counters")
    repair_store(path)
    with ReplayStore.open(path, mode="a") as store:
        ids = fill(store, episodes=1, length=40, stream="new")
        store.commit()
    assert ids[0] == 78 * STEPS


def test_damaged_metadata_is_set_aside(path, before):
    spoil(path, "meta", b"metadata")
    done, left = after_repair(path)
    assert left == before
    assert [loss.what for loss in done.plan.losses] == ["the metadata"]


def test_the_order_of_seals_is_made_anew(path, before):
    spoil(path, "seals", layout.segment_key(3))
    with raw(path) as (txn, databases):
        txn.delete(layout.segment_key(5), db=databases["seals"])
        put(txn, databases, "seals", layout.segment_key(40), layout.segment_key(0))
    assert len(verify(path)) >= 3
    _, left = after_repair(path)
    assert left == before


@pytest.mark.parametrize("field", ["observation", "is_last"])
@pytest.mark.parametrize("how", ["missing", "garbage", "other", "short"])
def test_an_array_s_description_is_written_anew(path, before, field, how):
    file = path / "steps" / field / "zarr.json"
    good = json.loads(file.read_text())
    if how == "missing":
        file.unlink()
    elif how == "garbage":
        file.write_bytes(b"\0" * 100)
    else:
        other = json.loads(file.read_text())
        if how == "other":
            other["codecs"][0]["configuration"]["chunk_shape"][0] = 8
        else:
            other["shape"][0] = STEPS
        file.write_text(json.dumps(other))
    assert [where for _, where, _ in verify(path)] == [str(file)]
    done, left = after_repair(path)
    assert left == before
    assert json.loads(file.read_text())["codecs"] == good["codecs"]
    assert (done.aside / "steps" / field / "zarr.json").exists() == (how != "missing")
    import zarr

    array = zarr.open_array(str(path / "steps" / "reward"), mode="r")
    assert array[:16].any()


def test_the_store_s_description_comes_from_the_index(path, before):
    group = path / "zarr.json"
    good = json.loads(group.read_text())
    group.write_bytes(group.read_bytes()[:40])
    with pytest.raises(CorruptStoreError):
        ReplayStore.open(path)
    (path / "steps" / "zarr.json").unlink()
    _, left = after_repair(path)
    assert left == before
    assert json.loads(group.read_text()) == good


def test_without_any_description_there_is_no_repair(path):
    (path / "zarr.json").write_bytes(b"{}")
    spoil(path, "meta", b"description")
    with pytest.raises(CorruptStoreError, match="no sound copy") as error:
        plan_repair(path)
    assert "backup" in error.value.hint


def test_codings_and_an_array_s_description_lost_together(path):
    spoil(path, "meta", b"fields")
    (path / "steps" / "action" / "zarr.json").unlink()
    with pytest.raises(CorruptStoreError, match="action"):
        plan_repair(path)


def test_priorities_that_are_sound_stay(path, sound):
    """One block, one sum and nothing else begins anew."""
    spoil(path, "priorities", layout.priority_key("prioritized", 4, 0))
    spoil(path, "sums", layout.sum_key("prioritized", 6))
    plan = plan_repair(path)
    apply(plan)
    left = priorities(path)
    same = {i for i, p in sound[2].items() if left[i] == p}
    assert same >= {i for i in left if i // STEPS != 4}
    assert {left[i] for i in left if i // STEPS == 4} == {max(sound[2].values())}
    assert len(plan.losses) == 1
    check(path)


@pytest.mark.parametrize("lost", ["sums", "both"])
def test_priorities_that_the_journal_alone_knows_stay(path, sound, lost, monkeypatch):
    """The records of a segment are gone; what was committed since is in the journal."""
    monkeypatch.setattr("diskreplay.sampling.changes.DENSE", 1)  # else blocks as small as these are written whole
    with ReplayStore.open(path, mode="a") as store:
        sampler = PrioritizedSampler(store, seed=0)
        ids = fill(store, episodes=1, length=20, stream="new")
        sampler.set_priorities(ids, np.arange(len(ids)) + 2.0)
        store.commit()
        sampler.set_priorities(ids[:7], np.arange(7) + 0.5)
        more = fill(store, episodes=1, length=4, stream="new")
        sampler.set_priorities(more, np.arange(4) + 30.0)
        store.commit()
    wanted, segment = priorities(path), int(ids[0]) // STEPS
    assert more[0] // STEPS == ids[-1] // STEPS == segment + 1
    with raw(path) as (txn, databases):
        keys = [bytes(key) for key, _ in txn.txn.txn.cursor(databases["updates"])]
        assert keys
        txn.delete(layout.sum_key("prioritized", segment), databases["sums"])
        txn.delete(layout.sum_key("prioritized", segment + 1), databases["sums"])
        if lost == "both":
            txn.delete(layout.priority_key("prioritized", segment, 0), databases["priorities"])
    repair_store(path)
    left = priorities(path)
    known = wanted.keys() - set(ids[7:STEPS].tolist() if lost == "both" else [])
    assert {i: left[i] for i in known} == {i: wanted[i] for i in known}
    check(path)


def test_a_sampler_whose_state_is_lost_begins_anew(path, before):
    spoil(path, "samplers", NAME)
    done, left = after_repair(path)
    assert left == before
    assert [loss.what for loss in done.plan.losses] == ["sampler 'prioritized'"]


def test_priorities_of_a_lost_segment_go_and_of_a_cut_step(path, sound):
    shard(path, "action", 5).unlink()
    repair_store(path)
    left = priorities(path)
    assert left == {i: p for i, p in sound[2].items() if i // STEPS != 5 and i != 5 * STEPS - 1}


def test_leftovers_are_set_aside(path, before):
    (path / "steps" / "reward" / "c.99").write_bytes(b"x")
    (path / "steps" / "reward" / "c.3.partial").write_bytes(b"x")
    (path / "steps" / "old").mkdir()
    (path / "steps" / "old" / "file").write_bytes(b"x")
    (path / "note.partial").write_bytes(b"x")
    assert {kind for kind, _, _ in verify(path)} == {"orphan"}
    done, left = after_repair(path)
    assert left == before
    assert (done.aside / "steps" / "old" / "file").read_bytes() == b"x"
    assert (done.aside / "steps" / "reward" / "c.99").exists()
    assert not (path / "note.partial").exists()


def test_garbage_that_is_live_is_not_removed(path, before):
    with raw(path) as (txn, databases):
        put(txn, databases, "garbage", layout.segment_key(4), b"")
    assert [kind for kind, _, _ in verify(path)] == ["inconsistent"]
    _, left = after_repair(path)
    assert left == before


@pytest.mark.parametrize("whole", [True, False])
def test_a_quarantined_segment_comes_back_if_it_is_whole(path, before, whole):
    file = shard(path, "action", 5)
    good = file.read_bytes()
    file.unlink()
    with ReplayStore.open(path, mode="a") as store:
        assert store.quarantine(5, "gone")
        store.commit()
    if whole:
        file.write_bytes(good)
    assert {kind for kind, _, _ in verify(path)} == {"quarantined"}
    done, left = after_repair(path)
    assert left == (before if whole else without(before, 5))
    assert bool(done.plan.losses) != whole


@pytest.mark.parametrize("how", ["truncated", "zeroed", "missing", "garbage"])
def test_an_index_that_cannot_be_read_is_rebuilt_when_asked_for(path, before, how):
    data = path / "index.lmdb" / "data.mdb"
    content = data.read_bytes()
    if how == "missing":
        data.unlink()
    else:
        data.write_bytes(
            {
                "truncated": content[: len(content) // 3],
                "zeroed": content[:8192] + b"\0" * (len(content) - 8192),
                "garbage": b"x" * len(content),
            }[how]
        )
    with pytest.raises(ReplayError) as error:
        plan_repair(path)
    assert "--rebuild-index" in error.value.hint
    plan = plan_repair(path, rebuild_index=True)
    done = apply(plan)
    left = rows(path)
    sealed = {i: row for i, row in before.items() if i // STEPS < 8}
    assert left == {i: row for i, row in sealed.items() if i not in {47, 127}}
    assert (done.aside / "index.lmdb").is_dir()
    with ReplayStore.open(path) as store:
        assert set(store.streams) == {"recovered-0", "recovered-1"}
        ids = np.array([i for i in left if i // STEPS in (3, 4, 5)])
        batch = store.read(ids, n_step=5)
        assert batch.discount.min() < 1
    check(path)


def test_a_rebuild_links_only_what_is_certain(path, before):
    shard(path, "action", 5).unlink()
    (path / "index.lmdb" / "data.mdb").unlink()
    apply(plan_repair(path, rebuild_index=True))
    left = rows(path)
    with ReplayStore.open(path) as store:
        assert len(store.streams) == 3
    assert left == without({i: r for i, r in before.items() if i // STEPS < 8}, 5, also={47, 127})
    check(path)


def test_evicted_segments_before_the_damage(make_store):
    """An episode that began in an evicted segment cannot be counted in full, and need not be."""
    store = make_store(segment_steps=8, capacity=60)
    fill(store, episodes=4, length=30, stream="a")
    store.commit()
    path = store.path
    store.close()
    assert verify(path) == []
    before = rows(path)
    first = min(before) // 8
    spoil(path, "episodes", layout.segment_key(first + 2))
    shard(path, "reward", first + 4).unlink()
    plan = plan_repair(path)
    apply(plan)
    left = rows(path)
    gone = {i for i in before if i // 8 == first + 4} | {(first + 4) * 8 - 1}
    assert left == {i: row for i, row in before.items() if i not in gone}
    assert verify(path) == []
    assert plan_repair(path).empty


def test_a_record_in_another_one_s_place(path, before):
    """Its checksum is right; it says what another one should."""
    with raw(path) as (txn, databases):
        streams, meta = databases["streams"], databases["meta"]
        txn.put(layout.stream_key(1), bytes(txn.get(layout.stream_key(0), db=streams)), db=streams)
        txn.put(b"description", bytes(txn.get(b"metadata", db=meta)), db=meta)
    _, left = after_repair(path)
    assert left == before


def test_a_lost_stream_whose_last_segment_is_lost_too(path, before):
    """Where the tail goes on cannot be told from the stream: it must not be linked to the wrong segment."""
    spoil(path, "streams", layout.stream_key(1))
    flip(shard(path, "action", 7))
    _, left = after_repair(path)
    assert left == without(before, 7)


@pytest.mark.parametrize("key", ["attributes", "storage_transformers"])
def test_an_array_that_zarr_refuses(path, before, key):
    file = path / "steps" / "reward" / "zarr.json"
    file.write_text(file.read_text().replace(key, key[:-1] + "z"))
    assert [where for _, where, _ in verify(path)] == [str(file)]
    _, left = after_repair(path)
    assert left == before


def test_an_index_older_than_what_was_committed(path, before):
    """Its newest transaction is lost: what is left is an earlier commit, and taken as it is."""
    data = path / "index.lmdb" / "data.mdb"
    older = data.read_bytes()
    with ReplayStore.open(path, mode="a") as store:
        fill(store, episodes=3, length=13, stream="a")
        store.commit()
    newer = data.read_bytes()
    data.write_bytes(older + newer[len(older) :])
    with pytest.raises(CorruptStoreError):
        ReplayStore.open(path)
    from diskreplay.storage.upkeep.verify import verify_path

    assert not verify_path(path).sound
    done, left = after_repair(path)
    assert done.plan.losses[-1].what == "what was committed last"
    assert left == before


class Breaking(Disk):
    """A disk whose n-th call fails."""

    def __init__(self, calls):
        super().__init__()
        self.left = calls

    def _count(self):
        self.left -= 1
        if self.left < 0:
            raise ReplayError("broken")

    def stage(self, path, data):
        self._count()
        return super().stage(path, data)

    def sync_directories(self, paths):
        self._count()
        super().sync_directories(paths)

    def move(self, path, to):
        self._count()
        super().move(path, to)


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_repair_that_is_interrupted_can_be_run_again(path, before, tmp_path, rebuild):
    shard(path, "action", 5).unlink()
    (path / "steps" / "reward" / "zarr.json").write_bytes((path / "steps" / "reward" / "zarr.json").read_bytes() + b" ")
    spoil(path, "streams", layout.stream_key(0))
    if rebuild:
        (path / "index.lmdb" / "data.mdb").unlink()
    finished, calls = False, 0
    while not finished:
        again = shutil.copytree(path, tmp_path / f"{calls}.replay")
        try:
            apply(plan_repair(again, rebuild_index=rebuild), Breaking(calls))
            finished = True
        except ReplayError as err:
            assert str(err) == "broken"  # noqa: PT017
        if not finished:
            try:
                apply(plan_repair(again))
            except CorruptStoreError:
                assert rebuild
                apply(plan_repair(again, rebuild_index=True))
        sealed = {i: row for i, row in before.items() if i // STEPS < 8 or not rebuild}
        assert rows(again) == without(sealed, 5, also={47, 127} if rebuild else ())
        assert verify(again) == []
        shutil.rmtree(again)
        calls += 3
    assert calls > 10


def test_a_plan_of_another_state_is_refused(path):
    shard(path, "action", 5).unlink()
    plan = plan_repair(path)
    with ReplayStore.open(path, mode="a") as store:
        fill(store, episodes=1, stream="c")
        store.commit()
    with pytest.raises(ReplayError, match="changed"):
        apply(plan)


def test_a_store_in_use_is_not_repaired(path):
    with ReplayStore.open(path), pytest.raises(StoreLockedError):
        plan_repair(path)


def test_no_store_is_not_repaired(tmp_path):
    with pytest.raises(StoreNotFoundError):
        plan_repair(tmp_path / "none")
    with pytest.raises(StoreNotFoundError):
        plan_repair(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", [0, 1])
@pytest.mark.parametrize("how", ["zeroed", "flipped"])
def test_an_index_without_one_of_its_meta_pages_is_whole_in_the_other(path, before, page, how):
    """Where the newest is lost, that is the commit before, here one that changed no step."""
    with ReplayStore.open(path, mode="a") as store:
        store.commit()
    kept = priorities(path)
    data = path / "index.lmdb" / "data.mdb"
    content = bytearray(data.read_bytes())
    lost = bytes(content[page * 4096 : (page + 1) * 4096])
    newest = max((0, 1), key=lambda n: int.from_bytes(content[n * 4096 + 144 : n * 4096 + 152], "little"))
    content[page * 4096 : page * 4096 + 40] = bytes(40) if how == "zeroed" else lost[:16] + bytes([7]) + lost[17:40]
    data.write_bytes(content)
    with pytest.raises(CorruptStoreError, match="first pages"):
        ReplayStore.open(path)
    plan = plan_repair(path)
    assert f"page {page} of the index" in plan.notes[0]
    assert not plan.losses
    done = repair_store(path)
    assert [loss.what for loss in done.plan.losses] == ["what was committed last"] * (page == newest)
    assert rows(path) == before
    assert priorities(path) == kept
    aside = next((path / "lost+found").rglob(f"page-{page}"))
    assert aside.read_bytes() == bytes(content[page * 4096 : (page + 1) * 4096])
    check(path)


def test_an_index_without_both_meta_pages_is_rebuilt_if_asked_for(path):
    data = path / "index.lmdb" / "data.mdb"
    data.write_bytes(bytes(8192) + data.read_bytes()[8192:])
    with pytest.raises(CorruptStoreError) as caught:
        plan_repair(path)
    assert "--rebuild-index" in caught.value.hint


@pytest.mark.parametrize("field", ["observation", "reward", "episode"])
def test_a_field_s_folder_that_is_gone_is_made_anew(path, before, field):
    """All sealed segments leave with it; tails stay."""
    shutil.rmtree(path / "steps" / field)
    assert any(field in where for _, where, _ in verify(path))
    _, left = after_repair(path)
    assert left == without(before, *A, *B)


def test_the_folder_of_all_fields_that_is_gone_is_made_anew(path, before):
    shutil.rmtree(path / "steps")
    assert verify(path) != []
    _, left = after_repair(path)
    assert left == without(before, *A, *B)
