"""Specs describe Gymnasium's spaces, survive JSON, and say where two of them differ."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from diskreplay import ArraySpec, SpecMismatchError, StepSpec
from diskreplay.experience.n_step import n_step_return
from diskreplay.experience.spec import build, flatten, leaves
from diskreplay.experience.validation import check_array, check_reward

LEAVES = st.one_of(
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.integers(-3, 3)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 5), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
    st.builds(
        lambda shape, dtype, low: spaces.Box(low, 1, tuple(shape), dtype),
        st.lists(st.integers(1, 3), max_size=3),
        st.sampled_from(["float32", "float64"]),
        st.sampled_from([-1.0, 0.0, -np.inf]),
    ),
    st.just(spaces.Box(0, 255, (4, 4, 3), "uint8")),
    st.just(spaces.Box(np.array([-1, -2], np.float32), np.array([1, np.inf], np.float32))),
)
SPACES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(st.text(min_size=1, max_size=6), inner, min_size=1, max_size=3).map(spaces.Dict),
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
    ),
    max_leaves=5,
)


@given(observation=SPACES, action=SPACES, seed=st.integers(0, 1000))
def test_a_space_its_samples_and_json(observation, action, seed):
    """Every sample fits the spec, flattens and nests back; JSON brings back an equal spec."""
    spec = StepSpec.from_spaces(observation, action)
    assert StepSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.difference(spec) == ""
    for space, tree, name in (
        (observation, spec.observation, "observation"),
        (action, spec.action, "action"),
    ):
        space.seed(seed)
        sample = space.sample()
        parts = flatten(tree, sample, name)
        for leaf, part in zip(leaves(tree), parts, strict=True):
            assert check_array(leaf, part, in_space=True).shape == leaf.shape
        again = flatten(tree, build(tree, iter(parts)), name)
        assert all(a is b for a, b in zip(parts, again, strict=True))


def test_field_names_stay_in_their_folder():
    """Whatever keys a Dict space has."""
    space = spaces.Dict({"../../etc": spaces.Discrete(2), "a.b": spaces.Discrete(2), "é/": spaces.Discrete(2)})
    names = [leaf.name for leaf in StepSpec.from_spaces(space, spaces.Discrete(2)).observation_leaves]
    assert len(set(names)) == 3
    assert not any("/" in name or ".." in name for name in names)


def test_spaces_that_cannot_be_stored():
    """Named by their field."""
    with pytest.raises(SpecMismatchError, match=r"observation\.note: Text"):
        StepSpec.from_spaces(spaces.Dict({"note": spaces.Text(5)}), spaces.Discrete(2))
    for bad in ({"dtype": "object"}, {"dtype": "complex64"}, {"shape": (0,)}, {"shape": (1 << 40,)}):
        with pytest.raises(SpecMismatchError, match="observation"):
            ArraySpec(**{"name": "observation", "shape": (1,), "dtype": "float32", **bad})


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"n": -3}, {"n": float("inf")}, {"kind": "sphere"}, {"shape": [float("inf")]}, {"dtype": "U8"}]
)
def test_a_description_that_is_none_is_refused(wrong):
    """A store's copy of it may be forged."""
    sound = ArraySpec("action", (), "int64", "discrete", n=3).to_json()
    with pytest.raises(SpecMismatchError, match="action"):
        ArraySpec.from_json("action", {**sound, **wrong})


def test_differences_are_named():
    """Field, property and both values."""
    one, two = (
        StepSpec.from_spaces(gym.make(name).observation_space, gym.make(name).action_space)
        for name in ("CartPole-v1", "Acrobot-v1")
    )
    told = one.difference(two)
    assert "observation: shape [4] against [6]" in told
    assert "action: n 2 against 3" in told


@given(
    n=st.integers(1, 6),
    gamma=st.floats(0, 1),
    rewards=st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6),
    ended=st.booleans(),
)
def test_n_step_returns(n, gamma, rewards, ended):
    """The sum term by term in float64, cut after m; gamma^m, or 0 where terminated."""
    for m in range(1, n + 1):
        given_ = np.array([rewards[:n]], np.float32)
        total, discount = n_step_return(given_, np.array([m]), np.array([ended]), gamma=gamma)
        expected = np.float64(0)
        for j in range(m):
            expected += np.float64(given_[0, j]) * np.power(np.float64(gamma), j)
        assert total[0] == np.float32(expected)
        assert discount[0] == np.float32(0.0 if ended else np.power(np.float64(gamma), m))


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, np.array])
@pytest.mark.parametrize(
    ("dtype", "n", "start"), [("int64", 3, 0), ("uint8", 300, 0), ("int8", 3, -1), ("uint8", 4, 250)]
)
def test_a_choice_is_taken_as_it_is_and_as_an_array_the_same(dtype, n, start, kind):
    """The short way of single choices accepts, refuses and returns what the general one does."""
    spec = ArraySpec("action", (), dtype, "discrete", n=n, start=start)
    for value in (start - 1, start, start + n - 1, start + n):
        try:
            offered = kind(value)
        except OverflowError:
            continue
        good = start <= value < start + n and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
        if good:
            taken = check_array(spec, offered, in_space=True)
            assert (taken.dtype, taken.shape, int(taken)) == (np.dtype(dtype), (), value)
        else:
            with pytest.raises(SpecMismatchError, match=r"^action: expected"):
                check_array(spec, offered, in_space=True)


@pytest.mark.parametrize("value", [1.5, np.float32(1.5), np.float16(1.5), np.float64(1.5), 1, True])
def test_a_reward_is_any_finite_number(value):
    assert check_reward(value) == float(value)


@pytest.mark.parametrize("value", [np.nan, np.float32(np.inf), 1e39, np.longdouble(1e39), "1", None, [1.0, 2.0]])
def test_a_reward_that_is_none_is_refused(value):
    with pytest.raises(SpecMismatchError, match=r"^reward: expected"):
        check_reward(value)
