import zipfile

import numpy as np
import pytest

from diskreplay.errors import SourceError, SpecMismatchError, StoreNotFoundError
from diskreplay.experience import ArraySpec, StepSpec
from diskreplay.ingest import ingest_npz
from diskreplay.store import ReplayStore

ENDS = np.array([False, False, True, False, True, False])


def columns(**changes):
    """Return 6 steps in 3 episodes, T + 1 observations each; None leaves a column out."""
    rng = np.random.default_rng(0)
    given = {
        "observations": rng.standard_normal((9, 3)).astype(np.float32),
        "actions": np.array([0, 1, 2, 0, 1, 2]),
        "rewards": np.arange(6.0),
        "terminations": np.array([False, False, True, False, False, False]),
        "truncations": np.array([False, False, False, False, True, False]),
    }
    return {k: v for k, v in {**given, **changes}.items() if v is not None}


def save(path, arrays):
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def file(tmp_path):
    return save(tmp_path / "a.npz", columns())


def test_episodes_are_taken_in_as_they_are(tmp_path, file):
    report = ingest_npz(tmp_path / "s", file)
    given = columns()
    assert (report.steps, report.episodes, report.notes) == (6, 3, ())
    assert report.mean_return == 5.0
    with ReplayStore.open(tmp_path / "s") as store:
        assert store.verify() == []
        table = store.episodes()
        assert table.length.tolist() == [3, 2, 1]
        assert table.terminated.tolist() == [True, False, False]
        ids = np.concatenate([np.arange(f, f + n) for f, n in zip(table.first_step_id, table.length, strict=True)])
        batch = store.read(ids)
    rows = [0, 1, 2, 4, 5, 7]
    assert np.array_equal(batch.observation, given["observations"][rows])
    assert np.array_equal(batch.next_observation, given["observations"][[r + 1 for r in rows]])
    assert batch.action.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.reward.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.discount.tolist() == pytest.approx([0.99, 0.99, 0, 0.99, 0.99, 0.99])


def test_the_spec_follows_from_the_columns(tmp_path):
    images = np.zeros((9, 8, 8), dtype=np.uint8)
    ingest_npz(tmp_path / "a", save(tmp_path / "a.npz", columns(observations=images)))
    numbers = np.zeros((6, 2), dtype=np.float64)
    ingest_npz(tmp_path / "b", save(tmp_path / "b.npz", columns(actions=numbers)))
    with ReplayStore.open(tmp_path / "a") as store:
        (leaf,) = store.spec.observation_leaves
        assert (leaf.kind, leaf.shape, leaf.dtype) == ("box", (8, 8), "uint8")
        assert store.spec.action_leaves[0].n == 3
    with ReplayStore.open(tmp_path / "b") as store:
        (leaf,) = store.spec.action_leaves
        assert (leaf.kind, leaf.shape, leaf.dtype) == ("box", (2,), "float64")


def test_an_environment_gives_the_spec_and_the_metadata(tmp_path):
    arrays = columns(observations=np.zeros((9, 4), dtype=np.float32), actions=np.array([0, 1, 1, 0, 1, 0]))
    ingest_npz(tmp_path / "s", save(tmp_path / "a.npz", arrays), env_id="CartPole-v1")
    with ReplayStore.open(tmp_path / "s") as store:
        assert store.metadata["env_id"] == "CartPole-v1"
        assert store.spec.action_leaves[0].n == 2


def test_an_environment_that_does_not_fit_makes_no_store(tmp_path, file):
    with pytest.raises(SourceError, match=r"observation: expected shape"):
        ingest_npz(tmp_path / "s", file, env_id="CartPole-v1")
    assert not (tmp_path / "s").exists()


def test_other_names_and_forms_are_understood(tmp_path):
    given = columns()
    arrays = {
        "obs": given["observations"],
        "actions": given["actions"][:, None].astype(np.int32),
        "rewards": given["rewards"][:, None],
        "terminals": given["terminations"].astype(np.float32),
        "timeouts": given["truncations"].astype(np.uint8),
        "extra": np.zeros(3, dtype="U5"),
    }
    report = ingest_npz(tmp_path / "s", save(tmp_path / "a.npz", arrays), columns={"observations": "obs"})
    assert (report.steps, report.episodes) == (6, 3)


def test_flat_columns_keep_the_final_observation_of_every_episode(tmp_path):
    given = columns()
    rows = [0, 1, 2, 4, 5, 7]
    following = given["observations"][[r + 1 for r in rows]]
    flat = columns(observations=given["observations"][rows], next_observations=following)
    report = ingest_npz(tmp_path / "s", save(tmp_path / "a.npz", flat))
    assert (report.steps, report.episodes, report.notes) == (6, 3, ())
    with ReplayStore.open(tmp_path / "s") as store:
        table = store.episodes()
        last = table.first_step_id + table.length - 1
        assert np.array_equal(store.read(last).next_observation, following[[2, 4, 5]])


def test_flat_columns_without_next_observations_say_what_is_lost(tmp_path):
    flat = columns(observations=columns()["observations"][:6])
    report = ingest_npz(tmp_path / "s", save(tmp_path / "a.npz", flat))
    assert (report.steps, report.episodes) == (4, 2)
    assert "the last step of 2 truncated episodes is lost" in report.notes[0]


def test_truncations_may_be_missing(tmp_path):
    arrays = columns(truncations=None, terminations=ENDS, observations=np.zeros((9, 3)))
    report = ingest_npz(tmp_path / "s", save(tmp_path / "a.npz", arrays))
    assert (report.steps, report.episodes) == (6, 3)


def test_the_same_file_is_never_taken_in_twice(tmp_path, file):
    ingest_npz(tmp_path / "s", file)
    copied = tmp_path / "copy.npz"
    copied.write_bytes(file.read_bytes())
    report = ingest_npz(tmp_path / "s", copied)
    assert (report.steps, report.total_steps) == (0, 6)
    assert not report.interrupted
    assert report.notes == ("6 of its 6 steps were in the store already",)


def test_a_file_is_not_taken_in_again_with_other_columns(tmp_path):
    """Neither twice, nor the rest of it; with the same ones given in other words it is the same file."""
    file = save(tmp_path / "a.npz", columns(corrected=np.zeros(6)))
    other = {"rewards": "corrected"}
    asked = iter([False, True])
    assert ingest_npz(tmp_path / "s", file, stop=lambda: next(asked)).steps == 3
    with pytest.raises(SourceError, match=r"a\.npz: .*s has this file already, with other columns") as caught:
        ingest_npz(tmp_path / "s", file, columns=other)
    assert "--map" in caught.value.hint
    assert ingest_npz(tmp_path / "s", file, columns={"rewards": "rewards"}).steps == 3

    assert ingest_npz(tmp_path / "t", file, columns=other, steps=3).steps == 3
    for given in (None, {"rewards": "actions"}):
        with pytest.raises(SourceError, match="with other columns"):
            ingest_npz(tmp_path / "t", file, columns=given)
    assert ingest_npz(tmp_path / "t", file, columns=other).steps == 3
    with ReplayStore.open(tmp_path / "t") as store:
        assert len(store) == 6
        assert not np.concatenate(list(store.column("reward"))).any()


def test_an_interrupted_file_goes_on_where_it_stopped(tmp_path, file):
    asked = iter([False, True])
    first = ingest_npz(tmp_path / "s", file, stop=lambda: next(asked))
    assert (first.steps, first.interrupted) == (3, True)
    second = ingest_npz(tmp_path / "s", file)
    assert (second.steps, second.total_steps, second.interrupted) == (3, 6, False)
    ingest_npz(tmp_path / "whole", file)
    blocks = []
    for name in ("s", "whole"):
        with ReplayStore.open(tmp_path / name) as store:
            blocks.append(np.concatenate(list(store.column("observation"))).tolist())
    assert blocks[0] == blocks[1]


def test_steps_stop_after_the_episode_that_reaches_them(tmp_path, file):
    report = ingest_npz(tmp_path / "s", file, steps=4)
    assert (report.steps, report.interrupted) == (5, False)
    assert ingest_npz(tmp_path / "s", file, steps=4).steps == 1


def test_two_files_share_a_store(tmp_path, file):
    ingest_npz(tmp_path / "s", file)
    second = save(tmp_path / "b.npz", columns(rewards=np.ones(6)))
    assert ingest_npz(tmp_path / "s", second).steps == 6
    with ReplayStore.open(tmp_path / "s") as store:
        assert len(store) == 12
        assert len(store.streams) == 2


def test_a_file_that_does_not_fit_leaves_the_store_as_it_was(tmp_path, file):
    ingest_npz(tmp_path / "s", file)
    wrong = save(tmp_path / "b.npz", columns(actions=np.array([0, 1, 2, 3, 1, 2])))
    with pytest.raises(SourceError, match=r"b\.npz: action: expected a value in \[0, 2\], got 3"):
        ingest_npz(tmp_path / "s", wrong)
    with ReplayStore.open(tmp_path / "s") as store:
        assert len(store) == 6
        assert len(store.streams) == 1


NAN = np.array([0, 1, np.nan, 3, 4, 5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, "has no array actions; it has observations"),
        ({"terminations": None}, "has no array terminations or terminals"),
        ({"terminals": ENDS}, "has both terminations and terminals"),
        ({"rewards": NAN}, "reward: expected a finite float32, got nan at row 2"),
        ({"observations": np.full((9, 3), np.inf)}, "observation: expected finite numbers"),
        ({"rewards": np.zeros(5)}, "its columns have different lengths: actions 6, rewards 5"),
        ({"observations": np.zeros((7, 3))}, "7 observations do not fit 6 steps in 3 episodes"),
        ({"observations": np.float32(1)}, "observations is a single number"),
        ({"rewards": np.zeros((6, 2))}, "reward: expected shape"),
        ({"terminations": np.full(6, 2)}, "terminations: expected booleans"),
        ({"terminations": np.full(6, 0.5)}, "terminations: expected booleans"),
        ({"actions": np.array([{}] * 6)}, "actions holds Python objects"),
        ({"actions": np.array(["left"] * 6)}, "actions has dtype <U4"),
        ({"next_observations": np.zeros((5, 3))}, "its columns have different lengths"),
        (
            {
                "observations": np.zeros((0, 3)),
                "actions": np.zeros(0),
                "rewards": np.zeros(0),
                "terminations": np.zeros(0, bool),
                "truncations": None,
            },
            "holds no steps",
        ),
    ],
)
def test_bad_columns_are_named_and_make_no_store(tmp_path, changes, message):
    file = save(tmp_path / "bad.npz", columns(**changes))
    with pytest.raises(SourceError) as caught:
        ingest_npz(tmp_path / "s", file)
    assert f"{file}: {message}" in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        ({"observations": "pixels"}, "has no array pixels"),
        ({"truncations": "cut"}, "has no array cut"),
        ({"colour": "rewards"}, "there is no column 'colour' to map"),
    ],
)
def test_wrong_names_are_reported(tmp_path, file, renamed, message):
    with pytest.raises(SourceError, match=message):
        ingest_npz(tmp_path / "s", file, columns=renamed)


def test_a_path_that_is_no_store_is_left_alone(tmp_path, file):
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreNotFoundError):
        ingest_npz(tmp_path / "folder", file)
    assert list((tmp_path / "folder").iterdir()) == []


def test_memory_is_limited(tmp_path, file):
    with pytest.raises(SourceError, match="bytes of memory"):
        ingest_npz(tmp_path / "s", file, max_bytes=500)


def test_a_nested_store_takes_no_archive(tmp_path, file):
    from gymnasium.spaces import Box, Dict, Discrete

    from diskreplay.experience import StepSpec

    spec = StepSpec.from_spaces(Dict(a=Box(0, 1, (3,))), Discrete(3))
    ReplayStore.create(tmp_path / "s", spec).close()
    with pytest.raises(SourceError, match="nested"):
        ingest_npz(tmp_path / "s", file)


def test_wrong_arguments_are_value_errors(tmp_path, file):
    with pytest.raises(ValueError, match="require"):
        ingest_npz(tmp_path / "s", file, steps=0)
    with pytest.raises(SpecMismatchError, match="capacity"):
        ingest_npz(tmp_path / "s", file, capacity="lots")


def test_a_second_member_of_a_columns_name_is_not_read(tmp_path):
    """The one that was looked at is: another may be of any size."""
    file = save(tmp_path / "a.npz", columns())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("rewards", b"whatever this is")
    assert ingest_npz(tmp_path / "s", file).steps == 6


def test_actions_of_one_number_in_an_array(tmp_path):
    """A store may have them of shape (1,): those of a file fit it as they are."""
    spec = StepSpec(ArraySpec("observation", (3,), "float32"), ArraySpec("action", (1,), "int64", "box", low=0, high=3))
    ReplayStore.create(tmp_path / "s", spec).close()
    actions = np.array([0, 1, 2, 0, 1, 2])
    ingest_npz(tmp_path / "s", save(tmp_path / "a.npz", columns(actions=actions[:, None])))
    with ReplayStore.open(tmp_path / "s") as store:
        assert store.read(store.step_ids_of(np.arange(6))).action.ravel().tolist() == actions.tolist()
