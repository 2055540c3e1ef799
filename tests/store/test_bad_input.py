"""Bad input gets an error that says what was wrong and where; the store stays as it was."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from diskreplay import (
    ArraySpec,
    FormatVersionError,
    NotEnoughStepsError,
    PrioritizedSampler,
    ReadOnlyError,
    ReplayError,
    ReplayStore,
    SpecMismatchError,
    StepEvictedError,
    StepSpec,
    StoreExistsError,
    StoreLockedError,
    StoreNotFoundError,
    UniformSampler,
    WriterStateError,
)
from tests.conftest import fill

GOOD = np.zeros(3, np.float32)


def test_a_path_that_is_no_store(tmp_path):
    """Nothing there, an empty folder and a file are all no store."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("nothing", "empty", "file"):
        with pytest.raises(StoreNotFoundError, match=name) as caught:
            ReplayStore.open(tmp_path / name)
        assert caught.value.hint
        assert isinstance(caught.value, FileNotFoundError)


def test_a_path_that_exists(make_store, spec, tmp_path):
    """Creating never overwrites."""
    store = make_store()
    for path in (store.path, tmp_path):
        with pytest.raises(StoreExistsError):
            ReplayStore.create(path, spec)
    with pytest.raises(StoreNotFoundError, match="no such folder"):
        ReplayStore.create(tmp_path / "a" / "b.replay", spec)
    assert [p.name for p in tmp_path.iterdir()] == ["test.replay"]


def test_another_format_version(make_store):
    """A store of a later version is refused by name."""
    store = make_store()
    store.close()
    file = store.path / "zarr.json"
    data = json.loads(file.read_text())
    data["attributes"]["diskreplay"]["format_version"] = 99
    file.write_text(json.dumps(data))
    with pytest.raises(FormatVersionError, match="99"):
        ReplayStore.open(store.path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.0, False, False, np.zeros(4, np.float32)), r"observation: expected shape \(3,\), got \(4,\)"),
        ((0, 0.0, False, False, np.zeros(3)), "observation: expected dtype float32, got float64"),
        ((0, 0.0, False, False, np.array([0, np.nan, 0], np.float32)), "observation: expected finite"),
        ((3, 0.0, False, False, GOOD), r"action: expected a value in \[0, 2\], got 3"),
        ((-1, 0.0, False, False, GOOD), "action: .* got -1"),
        ((0.5, 0.0, False, False, GOOD), "action: expected dtype int64"),
        ((np.zeros(2, int), 0.0, False, False, GOOD), "action: expected shape"),
        ((0, float("nan"), False, False, GOOD), "reward: expected a finite float32, got nan"),
        ((0, 1e300, False, False, GOOD), "reward: expected a finite float32"),
        ((0, "much", False, False, GOOD), "reward: expected numbers"),
        ((0, 0.0, 2, False, GOOD), "terminated: expected booleans"),
        ((0, 0.0, False, 0.5, GOOD), "truncated: expected booleans"),
        ((0, 0.0, False, False, {"x": GOOD}), "observation"),
        ((0, 0.0, False, False, [[0.0], [0.0, 0.0]]), "observation: no array of numbers"),
        ((0, 0.0, False, False, np.ma.masked_values(GOOD, 0)), "observation: 3 of its values are masked"),
        ((np.ma.masked, 0.0, False, False, GOOD), "action: 1 of its values are masked"),
        ((0, [1.0, [2.0]], False, False, GOOD), "reward: no array of numbers"),
        ((0, np.ma.masked, False, False, GOOD), "reward: 1 of its values are masked"),
        ((0, 0.0, [[True], True], False, GOOD), "terminated: no array of numbers"),
        ((0, 0.0, False, np.ma.masked, GOOD), "truncated: 1 of its values are masked"),
        ((0, 0.0, False, False, torch.zeros(3, requires_grad=True)), "observation: no array of numbers.*detach"),
    ],
)
def test_a_step_that_does_not_fit(make_store, arguments, message):
    """The error names the field, the expected and the given; nothing was written, and writing goes on."""
    store = make_store()
    writer = store.writer("a")
    writer.reset(GOOD)
    with pytest.raises(SpecMismatchError, match=message) as caught:
        writer.step(*arguments)
    assert "stream 'a', step 0" in str(caught.value)
    assert len(store) == 0
    assert writer.step(2, 1.0, True, False, GOOD) == 0
    assert len(store) == 1


def test_nested_observations_that_do_not_fit(tmp_path):
    """A missing key, a wrong nesting and a wrong leaf are named by their path."""
    spec = StepSpec(
        {
            "a": ArraySpec("observation.a", (2,), "float32"),
            "b": (ArraySpec("observation.b.0", (), "int64", "discrete", n=3),),
        },
        ArraySpec("action", (), "int64", "discrete", n=2),
    )
    with ReplayStore.create(tmp_path / "n.replay", spec) as store, store.writer() as writer:
        two = np.zeros(2, np.float32)
        for bad, message in (
            ({"a": two}, "observation: expected a dict with keys"),
            ({"a": two, "b": 0}, r"observation\.b: expected a tuple"),
            ({"a": two, "b": (5,)}, r"observation\.b\.0: .* got 5"),
            (two, "observation: expected a dict"),
        ):
            with pytest.raises(SpecMismatchError, match=message):
                writer.reset(bad)
        writer.reset({"a": two, "b": (1,)})
        writer.step(1, 0, True, False, {"a": two, "b": (2,)})
        batch = store.read([0])
        assert batch.observation["b"][0].tolist() == [1]
        assert batch.next_observation["b"][0].tolist() == [2]


def test_episodes_that_do_not_fit(make_store):
    """Wrong lengths, ends in the middle and bad rows are named; none of the episode is written."""
    store = make_store()
    writer = store.writer("a")
    seen, acts, gains, no = np.zeros((4, 3), np.float32), np.zeros(3, int), np.zeros(3), np.zeros(3, bool)
    for arguments, message in (
        ((seen[:3], acts, gains, no, no), r"expected shape \(4, 3\)"),
        ((seen, acts[:2], gains, no, no), "action: expected shape"),
        ((seen, acts, gains, no[:2], no), "terminations: expected shape"),
        ((seen, acts, np.array([0, np.nan, 0]), no, no), "reward: .* at row 1"),
        ((seen, np.array([0, 1, 7]), gains, no, no), "action: .* got 7 at row 2"),
        ((seen, acts, gains, np.array([0, 1, 0], bool), no), "step 1 of 3 ends the episode"),
        ((seen, acts, [0, [1, 2], 0], no, no), "rewards: no array of numbers"),
        ((seen, acts, gains[:, None], no, no), r"rewards: expected shape \(T,\)"),
        ((np.ma.masked_values(seen, 0), acts, gains, no, no), "observation: 12 of its values are masked"),
        ((seen[:1], acts[:0], gains[:0], no[:0], no[:0]), "at least one step"),
    ):
        with pytest.raises(SpecMismatchError, match=message):
            writer.write_episode(*arguments)
    assert len(store) == 0


def test_calls_that_do_not_fit_the_writers_state(make_store):
    """step() before reset(), after an end, and after close()."""
    store = make_store()
    writer = store.writer("a")
    with pytest.raises(WriterStateError, match="outside an episode"):
        writer.step(0, 0.0, False, False, GOOD)
    writer.reset(GOOD)
    writer.step(0, 0.0, False, True, GOOD)
    with pytest.raises(WriterStateError, match="outside an episode"):
        writer.step(0, 0.0, False, False, GOOD)
    writer.close()
    with pytest.raises(WriterStateError, match="closed"):
        writer.reset(GOOD)


def test_two_writers_of_one_stream(make_store):
    """The second is told who has it; afterwards it can be had."""
    store = make_store()
    first = store.writer("a")
    with pytest.raises(StoreLockedError, match="stream 'a' is held by process"):
        store.writer("a")
    store.writer("b")
    first.close()
    store.writer("a")


def test_a_store_opened_to_read(make_store):
    """Nothing that writes is possible."""
    store = make_store()
    fill(store)
    store.commit()
    with ReplayStore.open(store.path) as reader:
        for call in (reader.writer, reader.commit, reader.seal, lambda: reader.update_metadata({})):
            with pytest.raises(ReadOnlyError, match="mode='r'"):
                call()
        sampler = PrioritizedSampler(reader, seed=0)
        sampler.update_priorities(sampler.draw(4).step_ids, np.ones(4))
    with pytest.raises(ValueError, match="mode"):
        ReplayStore.open(store.path, mode="w")


@pytest.mark.parametrize("kind", [UniformSampler, PrioritizedSampler])
def test_sampling_from_an_empty_store(make_store, kind):
    """There is nothing to draw until there is; a batch may be larger than the store."""
    store = make_store()
    sampler = kind(store, seed=0)
    with pytest.raises(NotEnoughStepsError, match="no transition"):
        sampler.draw(1)
    fill(store, episodes=1, length=2)
    assert set(sampler.draw(100).step_ids.tolist()) == {0, 1}
    for size in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="batch_size"):
            sampler.draw(size)


def test_priorities_that_are_none(make_store):
    """NaN, infinity, negative numbers and foreign ids are refused, and nothing was changed."""
    store = make_store()
    fill(store, episodes=2, length=5)
    sampler = PrioritizedSampler(store, seed=0)
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(ValueError, match="step id 1 got"):
            sampler.update_priorities([0, 1], [1.0, bad])
    with pytest.raises(ValueError, match="not negative: step id 0 got -1"):
        sampler.set_priorities([0], [-1.0])
    for foreign in (5, 11, 12, 400, -1):  # final rows, rows not written, other segments
        with pytest.raises(ValueError, match=str(foreign)):
            sampler.update_priorities([0, foreign], [3.0, 3.0])
    with pytest.raises(ValueError, match="expected step_ids"):
        sampler.update_priorities([0, 1], [1.0])
    assert sampler.priorities_of([0, 1]).tolist() == [1.0, 1.0]
    sampler.set_priorities(store.step_ids_of(np.arange(10)), np.zeros(10))
    with pytest.raises(NotEnoughStepsError, match="every priority is 0"):
        sampler.draw(1)


def test_reads_that_make_no_sense(make_store):
    """Ids that are no transitions, and windows out of range."""
    store = make_store()
    fill(store, episodes=1, length=5)
    for bad in (5, 6, -1, 10**12):
        with pytest.raises(StepEvictedError, match=str(bad)):
            store.read([0, bad])
    for options in (
        {"n_step": 0}, {"n_step": 1.5}, {"frame_stack": 0}, {"gamma": 1.1}, {"gamma": float("nan")}, {"padding": "x"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(options))):
            store.read([0], **options)
    with pytest.raises(ValueError, match="1-d"):
        store.read([[0]])
    assert store.read([]).observation.shape == (0, 3)
    for bad in (-1, 5):
        with pytest.raises(ValueError, match=f"5 transitions, none of rank {bad}"):
            store.step_ids_of([0, bad])
    with pytest.raises(ValueError, match="ranks must be a 1-d"):
        store.step_ids_of(0)
    assert store.step_ids_of([4, 0, 4]).tolist() == [4, 0, 4]
    assert store.step_ids_of([]).tolist() == []


def test_options_out_of_range(tmp_path, spec):
    """Every option of create says what it takes."""
    for options in (
        {"capacity": 0}, {"capacity": -3}, {"capacity": "much"}, {"capacity": 8, "segment_steps": 9},
        {"segment_steps": 0}, {"segment_steps": 1 << 40}, {"compression": "gzip"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"capacity|segment_steps|compression"):
            ReplayStore.create(tmp_path / "x.replay", spec, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_store_says_so(make_store):
    """No crash, no hang."""
    store = make_store()
    fill(store)
    store.commit()
    store.close()
    store.close()
    for call in (lambda: store.read([0]), store.refresh, store.commit, store.stats, store.episodes):
        with pytest.raises(ReplayError, match="closed"):
            call()


@pytest.mark.parametrize("bad", [{"a": object()}, {"a": {1, 2}}, [], "text", {("a",): 1}])
def test_metadata_that_are_no_json_are_refused_at_once(make_store, tmp_path, spec, bad):
    """Every commit would fail on them."""
    store = make_store()
    fill(store, episodes=1)
    with pytest.raises(ValueError, match="metadata must be a JSON object"):
        store.update_metadata(bad)
    if bad:
        with pytest.raises(ValueError, match="metadata must be a JSON object"):
            ReplayStore.create(tmp_path / "another.replay", spec, metadata=bad)
        assert not (tmp_path / "another.replay").exists()
    given = {"list": [1]}
    store.update_metadata(given)
    given["list"].append(object())
    store.commit()
    assert store.metadata == {"list": [1]}


def test_a_sampler_whose_place_another_took_says_so(make_store):
    """Its updates would be lost in silence."""
    store = make_store()
    ids = fill(store, episodes=2)
    first = PrioritizedSampler(store, seed=0)
    first.set_priorities(ids[:1], [7.0])
    second = PrioritizedSampler(store, seed=1)
    for act in (lambda: first.set_priorities(ids[:1], [8.0]), first.forget_priorities):
        with pytest.raises(StoreLockedError, match="made once more"):
            act()
    other = PrioritizedSampler(store, name="other")
    second.set_priorities(ids[:1], [9.0])
    other.set_priorities(ids[:1], [3.0])
    store.commit()
    assert second.priorities_of(ids[:1]).tolist() == [9.0]
    assert other.priorities_of(ids[:1]).tolist() == [3.0]
