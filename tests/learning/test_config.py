"""Options: defaults by kind of observation, ranges, JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from diskreplay import StepSpec
from diskreplay.learning import TrainConfig

VECTOR = StepSpec.from_spaces(Box(-1, 1, (4,), np.float32), Discrete(2))
IMAGE = StepSpec.from_spaces(Box(0, 255, (84, 84), np.uint8), Discrete(4))


def test_vectors_get_the_plain_defaults():
    """What is not given, or None, is the default."""
    assert TrainConfig.for_spec(VECTOR, seed=None) == TrainConfig()
    assert TrainConfig.for_spec(VECTOR, n_step=7).n_step == 7


def test_images_get_the_published_ones():
    """Rainbow's: n=3, four frames, Adam at 6.25e-5, a target every 2,000 updates."""
    config = TrainConfig.for_spec(IMAGE)
    assert (config.n_step, config.frame_stack, config.target_every) == (3, 4, 2000)
    assert (config.batch_size, config.gamma, config.grad_clip) == (32, 0.99, 10.0)
    assert config.learning_rate_at(0) == config.learning_rate_at(config.updates) == 6.25e-5
    assert config.huber
    assert config.double
    faster = TrainConfig.for_spec(IMAGE, learning_rate=1e-3)
    assert faster.learning_rate_at(100) == 1e-3
    both = StepSpec.from_spaces(Dict(a=IMAGE_SPACE, b=Box(-1, 1, (2,))), Discrete(2))
    assert TrainConfig.for_spec(both).frame_stack == 4


IMAGE_SPACE = Box(0, 255, (64, 64, 3), np.uint8)


def test_learning_rate_falls_in_a_straight_line():
    """From the first to the last update."""
    config = TrainConfig(updates=100, learning_rate=1.0, final_learning_rate=0.5)
    assert [config.learning_rate_at(u) for u in (0, 50, 100, 200)] == [1.0, 0.75, 0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("updates", 0),
        ("batch_size", 0),
        ("gamma", 1.5),
        ("gamma", float("nan")),
        ("learning_rate", 0.0),
        ("cql_alpha", -1.0),
        ("hidden", (8, 0)),
        ("activation", "swish"),
        ("eval_every", -1),
        ("n_step", 70_000),
        ("frame_stack", 70_000),
        ("batch_size", 20_000_000),
        ("prefetch", 10**9),
        ("seed", 2**64),
        ("updates", 2**63),
        ("updates", 1.5),
        ("updates", True),
        ("learning_rate", float("inf")),
        ("cql_alpha", float("inf")),
        ("gamma", "0.9"),
        ("double", 1),
        ("device", None),
        ("eval_env", 5),
        ("torch_threads", 0),
        ("hidden", 64),
        ("hidden", (2.5,)),
        ("hidden", (8,) * 1000),
    ],
)
def test_values_out_of_range_are_named(name, value):
    """The message has the option, what was expected and what was given."""
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got"):
        TrainConfig(**{name: value})


def test_the_largest_values_are_taken():
    """None for what may be left open; no clipping at all; every seed torch takes."""
    config = TrainConfig(n_step=65_536, seed=2**64 - 1, grad_clip=float("inf"), eval_env=None, torch_threads=None)
    assert TrainConfig.from_json(config.to_json()) == config
    assert type(TrainConfig(updates=np.int64(5)).updates) is int  # what a checkpoint can hold


def test_json_round_trip():
    """Also through text."""
    config = TrainConfig(hidden=(3, 4), seed=7)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_difference_names_what_decides_learning():
    """Where a run evaluates or logs may change; what it learns may not."""
    config = TrainConfig()
    assert config.difference(config) == ""
    assert config.difference(replace(config, updates=99, device="cuda", eval_every=3)) == ""
    changed = replace(config, seed=4, alpha=0.1)
    assert config.difference(changed) == "alpha 0.6 against 0.1; seed 0 against 4"
