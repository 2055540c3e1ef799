import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diskreplay.experience import ArraySpec
from diskreplay.ingest.policy import FrameHistory

LEAF = ArraySpec("observation", (), "int64")


@given(
    k=st.integers(1, 4),
    starts=st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=1, max_size=12),
)
def test_history_holds_what_a_padded_frame_stack_would(k, starts):
    """Each stack ends with the newest frame, and never reaches before its episode's first."""
    history = FrameHistory(LEAF, k)
    starts[0] = [True, True]
    episodes = [[], []]
    for t, started in enumerate(starts):
        seen = history.push(np.array([t, 100 + t]), started=np.array(started))
        for env, begins in enumerate(started):
            frame = 100 * env + t
            episodes[env] = [frame] if begins else [*episodes[env], frame]
            padded = [episodes[env][0]] * k + episodes[env]
            expected = padded[-k:] if k > 1 else padded[-1]
            assert np.array_equal(seen[env], expected)


def test_history_follows_the_nesting():
    tree = {"a": LEAF, "b": (LEAF, LEAF)}
    history = FrameHistory(tree, 2)
    one = np.array([1, 2])
    seen = history.push({"a": one, "b": (one, one)}, started=np.array([True, True]))
    assert seen["a"].tolist() == seen["b"][1].tolist() == [[1, 1], [2, 2]]
