"""Networks from specs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from diskreplay.errors import SpecMismatchError
from diskreplay.experience import StepSpec
from diskreplay.learning.network import QNetwork, is_image, set_normaliser


def image_spec(shape):
    return StepSpec.from_spaces(Box(0, 255, shape, np.uint8), Discrete(6))


@pytest.mark.parametrize(
    ("shape", "stack", "given"),
    [
        ((84, 84), 4, (5, 4, 84, 84)),
        ((84, 84), 1, (5, 84, 84)),
        ((84, 84, 3), 1, (5, 84, 84, 3)),
        ((64, 96, 3), 2, (5, 2, 64, 96, 3)),
        ((3, 64, 64), 2, (5, 2, 3, 64, 64)),
    ],
)
def test_images_go_through_the_convolutions(shape, stack, given):
    """Grey, coloured and stacked frames all give one value per action."""
    network = QNetwork(image_spec(shape), frame_stack=stack)
    pixels = torch.randint(0, 256, given, dtype=torch.uint8)
    assert network(pixels).shape == (5, 6)
    first = network.encoders[0].convolutions[0]
    assert first.in_channels == stack * (3 if len(shape) == 3 else 1)


def test_nature_network_has_its_published_size():
    """For four 84x84 frames and 6 actions: 1.69 million parameters, 3,136 features."""
    network = QNetwork(image_spec((84, 84)), frame_stack=4, hidden=(512,))
    assert network.encoders[0].width == 3136
    assert sum(p.numel() for p in network.parameters()) == 1_687_206


def test_bytes_are_scaled_and_channels_keep_their_order():
    """The stack axis is the channel axis, oldest first, divided by 255."""
    network = QNetwork(image_spec((40, 40)), frame_stack=2)
    pixels = torch.randint(0, 256, (3, 2, 40, 40), dtype=torch.uint8)
    convolutions = network.encoders[0].convolutions
    expected = convolutions(pixels.to(torch.float32) / 255)
    assert torch.equal(network.encoders[0](pixels), expected)


def test_colour_frames_keep_their_order():
    """(B, k, H, W, C) becomes channels (k, C): each frame's colours stay together."""
    network = QNetwork(image_spec((40, 50, 3)), frame_stack=2)
    pixels = torch.randint(0, 256, (1, 2, 40, 50, 3), dtype=torch.uint8)
    channels = [pixels[0, k, :, :, c] for k in range(2) for c in range(3)]
    stacked = torch.stack(channels)[None].to(torch.float32) / 255
    encoder = network.encoders[0]
    assert torch.equal(encoder(pixels), encoder.convolutions(stacked))


def test_small_images_are_flattened():
    """A 10x10 grid is too small for 8x8 kernels."""
    spec = StepSpec.from_spaces(Box(0, 1, (10, 10), np.float32), Discrete(2))
    assert not is_image(spec.observation)
    assert QNetwork(spec)(torch.zeros(3, 10, 10)).shape == (3, 2)


def test_vectors_stack_and_normalise():
    """Normalised features are (x - mean) / std for every frame; a constant entry is only shifted."""
    spec = StepSpec.from_spaces(Box(-9, 9, (2,), np.float64), Discrete(2))
    network = QNetwork(spec, frame_stack=3, hidden=())
    set_normaliser(network, 0, torch.tensor([1.0, 5.0]), torch.tensor([2.0, 0.0]))
    frames = torch.tensor([[[3.0, 5.0], [1.0, 5.0], [5.0, 5.0]]], dtype=torch.float64)
    assert network.encoders[0](frames).tolist() == [[1, 0, 0, 0, 2, 0]]


@pytest.mark.parametrize(("dtype", "offset"), [("float64", 1e12), ("int64", 1e12), ("int32", 1e9), ("float32", 1e4)])
def test_large_offsets_do_not_cost_precision(dtype, offset):
    """A clock of 10^12 that goes by ones is told apart: it is shifted before it is rounded to float32."""
    spec = StepSpec.from_spaces(Box(0, offset * 2, (1,), dtype), Discrete(2))
    network = QNetwork(spec, hidden=())
    rows = torch.tensor([[offset - 1], [offset], [offset + 2]], dtype=getattr(torch, dtype))
    wide = rows.to(torch.float64)
    set_normaliser(network, 0, wide.mean(dim=0), wide.std(dim=0, correction=0))
    features = network.encoders[0](rows)
    assert features.dtype == torch.float32
    expected = (wide - wide.mean()) / wide.std(correction=0)
    assert features.numpy() == pytest.approx(expected.numpy(), abs=1e-3)
    assert network(rows).dtype == torch.float32


def test_nested_observations_are_concatenated():
    """Every kind of leaf has an encoder; a Discrete one is one-hot."""
    space = Dict(
        camera=Box(0, 255, (48, 48, 3), np.uint8),
        inner=Tuple([Discrete(5, start=2), MultiBinary(3), MultiDiscrete([4, 4])]),
        speed=Box(-1, 1, (), np.float32),
    )
    spec = StepSpec.from_spaces(space, Discrete(3, start=1))
    network = QNetwork(spec)
    observation = {
        "camera": torch.zeros(2, 48, 48, 3, dtype=torch.uint8),
        "inner": (torch.tensor([2, 6]), torch.ones(2, 3, dtype=torch.int8), torch.zeros(2, 2)),
        "speed": torch.zeros(2),
    }
    assert network(observation).shape == (2, 3)
    hot = next(e for e in network.encoders if type(e).__name__ == "_OneHot")
    assert hot(torch.tensor([2, 6])).tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]


@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_variants_give_one_value_per_action(dueling, activation):
    """Options change the inside, not the shape."""
    spec = StepSpec.from_spaces(Box(-1, 1, (4,), np.float32), Discrete(3))
    network = QNetwork(spec, hidden=(8, 8), dueling=dueling, activation=activation)
    assert network(torch.zeros(5, 4)).shape == (5, 3)


def test_dueling_adds_value_and_centred_advantage():
    """Q = V + A - mean A."""
    spec = StepSpec.from_spaces(Box(-1, 1, (4,), np.float32), Discrete(3))
    network = QNetwork(spec, hidden=(8,), dueling=True)
    x = torch.randn(5, 4)
    hidden = network.trunk(x)
    assert torch.allclose(network(x).mean(1), network.value(hidden)[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    "action",
    [Box(-1, 1, (2,), np.float32), Tuple([Discrete(2), Discrete(2)]), MultiDiscrete([2, 2])],
)
def test_other_actions_are_refused(action):
    """DQN chooses among one Discrete space; the error names what was given."""
    spec = StepSpec.from_spaces(Box(-1, 1, (4,), np.float32), action)
    with pytest.raises(SpecMismatchError, match="needs a single Discrete action, got action"):
        QNetwork(spec)
