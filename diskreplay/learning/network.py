"""The action-value network, built from a StepSpec.

Owns how observations become features: vectors are flattened, images go through the convolutions of Mnih
et al. 2015. Integer images stay integers until they are on the device, and are scaled there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from diskreplay.errors import SpecMismatchError
from diskreplay.experience.spec import flatten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diskreplay.experience import ArraySpec, StepSpec

SMALLEST_IMAGE = 36
"""Side below which the convolutions have nothing left; smaller images are flattened."""

WIDE = frozenset({"float64", "int32", "uint32", "int64", "uint64"})
"""Dtypes of which float32 does not hold every value."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def is_image(leaf: ArraySpec) -> bool:
    """Tell whether a leaf goes through the convolutions: a box (H, W) or (H, W, C) or (C, H, W)."""
    if leaf.kind != "box" or len(leaf.shape) not in (2, 3):
        return False
    return min(_image_size(leaf)[1:]) >= SMALLEST_IMAGE


def action_leaf(spec: StepSpec) -> ArraySpec:
    """Return the one discrete action a Q-network can choose.

    Raises:
        SpecMismatchError: If the action is nested or not discrete.
    """
    leaf = spec.action
    if isinstance(leaf, (dict, tuple)) or leaf.kind != "discrete" or leaf.n is None:
        given = ", ".join(f"{part.name} ({part.kind} {part.shape})" for part in spec.action_leaves)
        raise SpecMismatchError(
            f"action: DQN needs a single Discrete action, got {given}",
            hint="Map the actions to one Discrete space before ingesting them.",
        )
    single: ArraySpec = leaf
    return single


class QNetwork(nn.Module):
    """Estimate Q(o, a) for every action of a spec.

    Every observation leaf is turned into features: images by the Nature convolutions (32 of 8x8/4, 64 of
    4x4/2, 64 of 3x3/1), discrete leaves one-hot, all else flattened. Hidden layers and one output per action
    follow. With `dueling`, values and advantages as in Wang et al. 2016 (arXiv:1511.06581).

    Args:
        spec: What the observations and actions are.
        frame_stack: Length k of the stack axis; it becomes the images' channels.
        hidden: Widths of the fully connected layers after the features.
        dueling: Split the output into a value and advantages.
        activation: "relu" or "tanh", after each hidden layer.

    Raises:
        SpecMismatchError: If the action is not one Discrete leaf.
    """

    def __init__(
        self,
        spec: StepSpec,
        *,
        frame_stack: int = 1,
        hidden: Sequence[int] = (512,),
        dueling: bool = False,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.spec = spec
        self.frame_stack = frame_stack
        actions = action_leaf(spec).n or 0
        self.encoders = nn.ModuleList([_encoder(leaf, frame_stack) for leaf in spec.observation_leaves])
        width = sum(cast("int", encoder.width) for encoder in self.encoders)
        layers: list[nn.Module] = []
        for size in hidden:
            layers.append(nn.Linear(width, size))
            layers.append(ACTIVATIONS[activation]())
            width = size
        self.trunk = nn.Sequential(*layers)
        self.advantage = nn.Linear(width, actions)
        self.value = nn.Linear(width, 1) if dueling else None

    def forward(self, observation: Any) -> Tensor:
        """Return Q-values (B, actions) of observations nested as in the spec.

        Args:
            observation: (B, *shape), or (B, k, *shape) with frame_stack=k > 1, in its stored dtype.
        """
        parts = flatten(self.spec.observation, observation, "observation")
        features = [encode(part) for encode, part in zip(self.encoders, parts, strict=True)]
        hidden = self.trunk(features[0] if len(features) == 1 else torch.cat(features, dim=1))
        advantage: Tensor = self.advantage(hidden)
        if self.value is None:
            return advantage
        value: Tensor = self.value(hidden)
        return value + advantage - advantage.mean(dim=1, keepdim=True)


class _Vector(nn.Module):
    """Flatten a leaf and shift and scale it; the buffers are set by `set_normaliser`.

    Numbers that float32 cannot tell apart are shifted as float64: a clock or a position far away is not rounded.
    """

    def __init__(self, leaf: ArraySpec, frame_stack: int) -> None:
        super().__init__()
        size = math.prod(leaf.shape)
        self.frame_stack = frame_stack
        self.width = size * frame_stack
        scale = 1 / 255 if leaf.dtype == "uint8" and leaf.kind == "box" else 1.0
        self.shift: Tensor
        self.scale: Tensor
        kind = torch.float64 if leaf.dtype in WIDE else torch.float32
        self.register_buffer("shift", torch.zeros(size, dtype=kind))
        self.register_buffer("scale", torch.full((size,), scale, dtype=kind))

    def forward(self, value: Tensor) -> Tensor:
        rows = value.reshape(len(value), -1, self.shift.numel()).to(self.shift.dtype)
        return ((rows - self.shift) * self.scale).to(torch.float32).flatten(1)


class _OneHot(nn.Module):
    """Spread a discrete leaf over one input per value."""

    def __init__(self, leaf: ArraySpec, frame_stack: int) -> None:
        super().__init__()
        self.n, self.start = leaf.n or 0, leaf.start
        self.width = self.n * frame_stack

    def forward(self, value: Tensor) -> Tensor:
        hot = nn.functional.one_hot(value.to(torch.int64) - self.start, self.n)
        return hot.to(torch.float32).flatten(1)


class _Image(nn.Module):
    """Convolve frames (B, k, H, W), or coloured ones (B, k, H, W, C), as in Mnih et al. 2015."""

    def __init__(self, leaf: ArraySpec, frame_stack: int) -> None:
        super().__init__()
        colours, height, width = _image_size(leaf)
        self.integer = leaf.dtype == "uint8"
        self.channels = colours * frame_stack
        self.last = len(leaf.shape) == 3 and leaf.shape != (colours, height, width)
        self.height, self.image_width = height, width
        self.convolutions = nn.Sequential(
            nn.Conv2d(self.channels, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.width = 64 * _convolved(height) * _convolved(width)

    def forward(self, value: Tensor) -> Tensor:
        frames = value.movedim(-1, -3) if self.last else value
        frames = frames.reshape(len(value), self.channels, self.height, self.image_width)
        pixels = frames.to(torch.float32)
        out: Tensor = self.convolutions(pixels / 255 if self.integer else pixels)
        return out


def set_normaliser(network: QNetwork, leaf: int, mean: Tensor, std: Tensor) -> None:
    """Make a vector leaf's features (x - mean) / std; mean and std are (size,).

    An entry that never varied keeps its scale.
    """
    encoder = network.encoders[leaf]
    if not isinstance(encoder, _Vector):
        raise TypeError(f"{network.spec.observation_leaves[leaf].name} is not a vector")
    encoder.shift.copy_(mean)
    encoder.scale.copy_(torch.where(std > 1e-6, 1 / std.clamp_min(1e-6), encoder.scale))


def normalised_leaves(spec: StepSpec) -> list[int]:
    """List the positions of the observation leaves that `set_normaliser` takes."""
    return [i for i, leaf in enumerate(spec.observation_leaves) if leaf.kind == "box" and not is_image(leaf)]


def _encoder(leaf: ArraySpec, frame_stack: int) -> nn.Module:
    if leaf.kind == "discrete":
        return _OneHot(leaf, frame_stack)
    return _Image(leaf, frame_stack) if is_image(leaf) else _Vector(leaf, frame_stack)


def _image_size(leaf: ArraySpec) -> tuple[int, int, int]:
    """Return (C, H, W); the colours are the shortest of the outer axes."""
    if len(leaf.shape) == 2:
        return 1, leaf.shape[0], leaf.shape[1]
    first, middle, last = leaf.shape
    return (last, first, middle) if last < first else (first, middle, last)


def _convolved(side: int) -> int:
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        side = (side - kernel) // stride + 1
    return side
