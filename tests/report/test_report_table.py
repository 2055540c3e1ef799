import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from diskreplay.experience import StepSpec
from diskreplay.report import stats_table
from diskreplay.report.table import format_bytes
from diskreplay.store import ReplayStore


def make_store(path, *, episodes, **options):
    spec = StepSpec.from_spaces(Dict(eye=Box(0, 255, (6, 6), np.uint8), arm=Box(-1, 1, (2,))), Discrete(3))
    store = ReplayStore.create(path, spec, metadata={"env_id": "Maze-v0"}, **options)
    rng = np.random.default_rng(0)
    with store.writer(stream="one") as writer:
        for _ in range(episodes):
            writer.write_episode(
                {
                    "eye": rng.integers(0, 255, (6, 6, 6), np.uint8),
                    "arm": rng.uniform(-1, 1, (6, 2)).astype(np.float32),
                },
                rng.integers(0, 3, 5),
                np.array([0, 0, 0, 0, 2.5]),
                np.array([0, 0, 0, 0, 1]),
                np.zeros(5, dtype=np.bool_),
            )
    store.seal()
    return store


def test_table_says_what_a_store_holds(tmp_path):
    with make_store(tmp_path / "maze.replay", episodes=4, capacity=1_000) as store:
        text = stats_table(store.stats().to_json())
    lines = text.splitlines()
    assert lines[0].startswith("store        ")
    assert lines[0].endswith("maze.replay (format 1)")
    assert "environment  Maze-v0" in lines
    assert "steps        20, of them 0 not sealed yet" in lines
    assert "episodes     4 in 1 streams" in lines
    assert "capacity     1,000 transitions" in lines
    assert any(line.startswith("observation.eye  6x6    uint8 ") for line in lines)
    returns = next(line for line in lines if line.startswith("episode return"))
    assert returns.split() == ["episode", "return", "4", "2.5", "2.5", "2.5", "0", "2.5"]
    assert "20.00% of the rewards are not zero" in lines
    assert lines[-1].startswith("no priorities yet")
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("capacity", [None, "3GB"])
def test_table_of_an_empty_store(tmp_path, capacity):
    with make_store(tmp_path / "maze.replay", episodes=0, capacity=capacity) as store:
        text = stats_table(store.stats().to_json())
    assert "transitions  0 can be sampled" in text
    assert ("3000000000 bytes" if capacity else "none: it keeps everything") in text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (7_056, "7.1 kB"), (3.5e15, "3500.0 TB")])
def test_bytes_are_given_in_a_readable_unit(count, text):
    assert format_bytes(count) == text
