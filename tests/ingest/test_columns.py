import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskreplay.errors import SourceError
from diskreplay.ingest.columns import Columns, EpisodeCutter

EPISODES = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from(["terminated", "truncated", "both"])),
    min_size=1,
    max_size=8,
)


def build(plan, *, layout):
    """Lay out episodes of distinct numbers as one of the layouts."""
    observations, following, ends, count = [], [], [], 0
    expected = []
    for length, end in plan:
        rows = [float(count + i) for i in range(length + 1)]
        count += length + 1
        expected.append((rows, end))
        observations += rows if layout == "with final" else rows[:-1]
        following += rows[1:]
        ends += [("", "")] * (length - 1) + [(end, end)]
    steps = sum(length for length, _ in plan)
    columns = Columns(
        np.array(observations)[:, None],
        np.arange(steps),
        np.ones(steps, dtype=np.float32),
        np.array([end in {"terminated", "both"} for end, _ in ends]),
        np.array([end in {"truncated", "both"} for end, _ in ends]),
        np.array(following)[:, None] if layout == "with next" else None,
    )
    return columns, expected


@given(plan=EPISODES, layout=st.sampled_from(["with final", "with next"]))
def test_whole_episodes_come_back(plan, layout):
    columns, expected = build(plan, layout=layout)
    cutter = EpisodeCutter(columns)
    episodes = list(cutter)
    assert cutter.notes == ()
    assert cutter.lengths.tolist() == [length for length, _ in plan]
    assert len(episodes) == len(expected)
    for episode, (rows, end) in zip(episodes, expected, strict=True):
        assert episode.observations[:, 0].tolist() == rows
        assert bool(episode.terminations[-1]) == (end in {"terminated", "both"})
        assert bool(episode.truncations[-1]) == (end in {"truncated", "both"})
        assert not episode.terminations[:-1].any()
        assert not episode.truncations[:-1].any()
    taken = np.concatenate([episode.actions for episode in episodes])
    assert taken.tolist() == list(range(len(columns.actions)))


@given(plan=EPISODES)
def test_without_next_observations_truncated_episodes_lose_their_last_step(plan):
    columns, expected = build(plan, layout="flat")
    cutter = EpisodeCutter(columns)
    kept = [(rows, end) for rows, end in expected if end != "truncated" or len(rows) > 2]
    episodes = list(cutter)
    assert len(episodes) == len(kept)
    for episode, (rows, end) in zip(episodes, kept, strict=True):
        if end == "truncated":
            assert episode.observations[:, 0].tolist() == rows[:-1]
            assert bool(episode.truncations[-1])
        else:
            assert episode.observations[:, 0].tolist() == [*rows[:-1], rows[-2]]
            assert bool(episode.terminations[-1])
        assert len(episode.observations) == len(episode.rewards) + 1
    lost = sum(end == "truncated" for _, end in expected)
    assert len(cutter.notes) == (lost > 0)
    assert not lost or f"the last step of {lost} truncated episodes is lost" in cutter.notes[0]


def test_rows_that_do_not_follow_each_other_end_the_episode():
    columns = Columns(
        np.array([[0.0], [1.0], [10.0], [11.0]]),
        np.arange(4),
        np.ones(4, dtype=np.float32),
        np.array([False, False, False, True]),
        np.zeros(4, dtype=np.bool_),
        np.array([[1.0], [2.0], [11.0], [12.0]]),
    )
    cutter = EpisodeCutter(columns)
    assert [episode.observations[:, 0].tolist() for episode in cutter] == [[0, 1, 2], [10, 11, 12]]
    assert [bool(episode.truncations[-1]) for episode in cutter] == [True, False]
    assert cutter.notes[0].startswith("1 steps are not followed")


def test_a_last_episode_without_an_end_counts_as_cut_off():
    columns, _ = build([(3, "terminated"), (2, "terminated")], layout="with final")
    columns.terminations[-1] = False
    last = list(EpisodeCutter(columns))[-1]
    assert (bool(last.terminations[-1]), bool(last.truncations[-1])) == (False, True)


def test_a_wrong_number_of_observations_is_refused():
    columns, _ = build([(3, "terminated"), (2, "terminated")], layout="flat")
    wrong = Columns(columns.observations[:-1], *list(vars(columns).values())[1:])
    with pytest.raises(SourceError, match="4 observations do not fit 5 steps in 2 episodes"):
        EpisodeCutter(wrong)


def test_next_observations_of_another_shape_are_refused():
    columns, _ = build([(3, "terminated")], layout="with next")
    wrong = Columns(*list(vars(columns).values())[:-1], columns.next_observations[:-1])
    with pytest.raises(SourceError, match="next_observations has shape"):
        EpisodeCutter(wrong)
