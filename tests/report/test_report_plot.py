import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Tuple
from matplotlib.figure import Figure

from diskreplay.experience import ArraySpec, StepSpec
from diskreplay.report import plot_stats
from diskreplay.report.plot import draw_stats
from diskreplay.store import ReplayStore

PNG = b"\x89PNG\r\n\x1a\n"
OBSERVATION = Box(-1, 1, (2,))


def make_store(path, action_space=None, *, episodes=30):
    space = Discrete(3, start=1) if action_space is None else action_space
    space.seed(0)
    store = ReplayStore.create(path, StepSpec.from_spaces(OBSERVATION, space))
    rng = np.random.default_rng(0)
    with store.writer(stream="one") as writer:
        for _ in range(episodes):
            length = int(rng.integers(1, 200))
            writer.reset(np.zeros(2, np.float32))
            for t in range(length):
                writer.step(space.sample(), rng.normal(), t == length - 1, False, np.zeros(2, np.float32))
    store.commit()
    return store


def texts(axis):
    return [text.get_text() for text in axis.texts]


def draw(store):
    figure = Figure()
    draw_stats(store, figure)
    return dict(zip(["time", "return", "length", "reward", "actions", "priority"], figure.axes, strict=True))


def test_plot_is_a_png_in_a_folder_that_is_made(tmp_path):
    with make_store(tmp_path / "s") as store:
        file = plot_stats(store, tmp_path / "new" / "plot.png")
    assert file.read_bytes().startswith(PNG)


def test_histograms_count_everything(tmp_path):
    with make_store(tmp_path / "s") as store:
        axes = draw(store)
        rewards = axes["reward"].patches[0].get_data().values
        assert rewards.sum() == len(store)
        assert axes["return"].patches[0].get_data().values.sum() == 30
        assert axes["length"].patches[0].get_data().values.sum() == 30
        heights = [bar.get_height() for bar in axes["actions"].patches]
        actions = np.concatenate(list(store.column("action")))
        assert heights == np.bincount(actions, minlength=4)[1:].tolist()
        assert [bar.get_x() + bar.get_width() / 2 for bar in axes["actions"].patches] == [1, 2, 3]


@pytest.mark.parametrize("length", [0, 16])
def test_a_segment_without_a_complete_row(tmp_path, length):
    """It holds an episode's last observation, or its first."""
    with ReplayStore.create(tmp_path / "s", StepSpec.from_spaces(OBSERVATION, Discrete(3)), segment_steps=16) as store:
        writer = store.writer()
        writer.reset(np.zeros(2, np.float32))
        for t in range(length):
            writer.step(0, 1.0, t == 15, False, np.zeros(2, np.float32))
        store.commit()
        store.stats()
        assert sum(bar.get_height() for bar in draw(store)["actions"].patches) == length


def test_missing_things_are_said(tmp_path):
    with make_store(tmp_path / "s") as store:
        assert texts(draw(store)["priority"]) == ["no priorities yet"]
    with make_store(tmp_path / "empty", episodes=0) as store:
        axes = draw(store)
    assert texts(axes["time"]) == ["no finished episodes yet"]
    assert texts(axes["return"]) == ["no episodes yet"]
    assert texts(axes["reward"]) == texts(axes["actions"]) == ["no steps yet"]


def test_priorities_are_drawn_once_there_are_some(tmp_path, monkeypatch):
    blocks = [np.array([0.5, 1.0, -1.0], np.float32), np.array([2.0] * 400, np.float32)]
    with make_store(tmp_path / "s") as store:
        monkeypatch.setattr(store, "priorities", lambda: iter(blocks))
        axis = draw(store)["priority"]
    assert axis.patches[0].get_data().values.sum() == 402
    assert axis.get_yscale() == "log"


def test_counts_of_one_size_stay_on_a_plain_axis(tmp_path):
    with make_store(tmp_path / "s", Discrete(2)) as store:
        assert draw(store)["actions"].get_yscale() == "linear"


@pytest.mark.parametrize(
    ("space", "labels"),
    [
        (Box(-1, 1, (2,)), ["action[0]", "action[1]"]),
        (Box(-1, 1, (9,)), [f"action[{i}]" for i in range(6)]),
        (MultiDiscrete([2, 5]), ["action[0]", "action[1]"]),
        (Tuple([Discrete(2), Box(0, 1, ())]), ["action.0", "action.1"]),
    ],
)
def test_actions_of_every_kind_are_drawn(tmp_path, space, labels):
    with make_store(tmp_path / "s", space, episodes=3) as store:
        axis = draw(store)["actions"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == labels


def test_constant_values_are_drawn(tmp_path):
    spec = StepSpec.from_spaces(OBSERVATION, Discrete(2))
    with ReplayStore.create(tmp_path / "s", spec) as store:
        with store.writer(stream="one") as writer:
            writer.reset(np.zeros(2, np.float32))
            writer.step(0, 0.25, True, False, np.zeros(2, np.float32))
        axis = draw(store)["reward"]
    assert axis.patches[0].get_data().values.tolist() == [0, 1, 0]


@pytest.mark.parametrize(("n", "start"), [(200_000, 0), (201, -100), (2**62, 5)])
def test_many_discrete_actions_share_bins(tmp_path, n, start):
    """Every step is counted, in few bars."""
    with make_store(tmp_path / "s", Discrete(n, start=start), episodes=3) as store:
        axis = draw(store)["actions"]
        counts = sum(patch.get_data().values.sum() for patch in axis.patches)
        assert counts == len(store)
    assert sum(len(patch.get_data().values) for patch in axis.patches) <= 61


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("dtype", "values"),
    [("float64", [-1.7e308, 1.7e308, 0.0]), ("float64", [1.7e308, 1.6e308, 0.0]), ("bool", [True, False, True])],
)
def test_numbers_of_any_size_are_drawn(tmp_path, dtype, values):
    spec = StepSpec(ArraySpec("observation", (2,), "float32"), ArraySpec("action", (), dtype, "box"))
    with ReplayStore.create(tmp_path / "s", spec) as store:
        with store.writer() as writer:
            values = np.array(values, dtype)
            writer.write_episode(np.zeros((4, 2), np.float32), values, np.zeros(3), [0, 0, 1], [0, 0, 0])
        axis = draw(store)["actions"]
        assert axis.patches[0].get_data().values.sum() == 3
        assert plot_stats(store, tmp_path / "s.png").read_bytes().startswith(PNG)
