"""Greedy evaluation in small environments."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from diskreplay.errors import SourceError, TrainingError
from diskreplay.experience import StepSpec
from diskreplay.learning.evaluation import Evaluator


class Countdown(gymnasium.Env):
    """Last 1 + seed % 5 steps; the reward is the number of steps so far, the observation too."""

    observation_space = Box(0, 100, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self, seed=0):
        self.length, self.t, self.resets = 1 + seed % 5, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.resets += 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return np.full(1, self.t, np.float32), float(self.t), self.t >= self.length, False, {}


SPEC = StepSpec.from_spaces(Countdown.observation_space, Countdown.action_space)


class Recorder:
    """A policy that keeps what it was shown."""

    def __init__(self, frame_stack=1):
        self.frame_stack, self.seen = frame_stack, []

    def __call__(self, observations, epsilon, rng):
        self.seen.append(observations)
        return (
            np.zeros(len(next(iter(observations.values()), [])), int)
            if isinstance(observations, dict)
            else np.zeros(len(observations), int)
        )


def make(env_id, *, seed):
    return Countdown(seed)


def test_every_environment_owes_its_episodes():
    """Seven episodes in three environments: 3, 2 and 2, however long they take."""
    with Evaluator(SPEC, "Toy", episodes=7, max_envs=3, seed=0, env_factory=make) as evaluator:
        returns = evaluator.run(Recorder())
        assert sorted(returns) == [1.0] * 3 + [3.0] * 2 + [6.0] * 2
        assert evaluator.run(Recorder()) == returns


def test_frame_stacks_are_padded_with_the_first_observation():
    """(E, k, *shape), oldest first, starting anew with each episode."""
    recorder = Recorder(frame_stack=3)
    with Evaluator(SPEC, "Toy", episodes=2, max_envs=1, seed=2, env_factory=make) as evaluator:
        evaluator.run(recorder)
    seen = [tuple(stack[0, :, 0].astype(int)) for stack in recorder.seen]
    assert seen == [(0, 0, 0), (0, 0, 1), (0, 1, 2)] * 2


def test_long_episodes_are_cut():
    """Steps past the limit do not happen; the return so far counts."""
    with Evaluator(SPEC, "Toy", episodes=1, max_steps=3, seed=4, env_factory=make) as evaluator:
        assert evaluator.run(Recorder()) == [6.0]


def test_it_stops_when_asked():
    """An interrupted evaluation gives what it has."""
    with Evaluator(SPEC, "Toy", episodes=3, env_factory=make) as evaluator:
        assert evaluator.run(Recorder(), should_stop=lambda: True) == []


def test_nested_observations():
    """Leaves are batched one by one and nested again."""

    class Nested(Countdown):
        observation_space = Dict(a=Box(0, 1, (2,), np.float32), b=Discrete(3))

        def reset(self, **options):
            super().reset(**options)
            return {"a": np.zeros(2, np.float32), "b": 1}, {}

        def step(self, action):
            _, reward, terminated, truncated, info = super().step(action)
            return {"a": np.ones(2, np.float32), "b": 2}, reward, terminated, truncated, info

    spec = StepSpec.from_spaces(Nested.observation_space, Nested.action_space)
    recorder = Recorder(frame_stack=2)
    with Evaluator(spec, "Toy", episodes=2, seed=1, env_factory=lambda _id, *, seed: Nested(seed)) as evaluator:
        evaluator.run(recorder)
    assert recorder.seen[0]["a"].shape == (2, 2, 2)
    assert recorder.seen[1]["b"].tolist() == [[1, 2], [1, 2]]


def test_real_environment():
    """A registered id needs no factory."""
    spec = StepSpec.from_spaces(Box(-np.inf, np.inf, (4,), np.float32), Discrete(2))
    with Evaluator(spec, "CartPole-v1", episodes=3) as evaluator:
        returns = evaluator.run(Recorder())
    assert len(returns) == 3
    assert all(5 < value < 20 for value in returns)


def test_environments_that_do_not_fit():
    """An unknown id, or observations of another kind, are errors that say so."""
    with pytest.raises(TrainingError, match="cannot make the environment 'Nothing-v0'"):
        Evaluator(SPEC, "Nothing-v0", episodes=1)
    with pytest.raises(TrainingError, match=r"does not fit the store.*\(1,\).*\(4,\)"):
        Evaluator(SPEC, "CartPole-v1", episodes=1)


def test_a_factory_speaks_for_itself():
    """An error of ours keeps its own message and hint."""

    def fail(env_id, *, seed):
        raise SourceError("unknown environment")

    with pytest.raises(SourceError, match="unknown environment"):
        Evaluator(SPEC, "Toy", episodes=1, env_factory=fail)
