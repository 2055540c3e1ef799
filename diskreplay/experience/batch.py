"""The records a learner gets: a batch of transitions, a batch of sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Batch:
    """Hold B transitions; numpy arrays from `ReplayStore.read`, torch tensors from `ReplayLoader`.

    Attributes:
        observation: (B, *shape), or (B, k, *shape) with frame_stack=k > 1; nested as it was written.
        action: (B, *shape) in its stored dtype; nested as it was written.
        reward: (B,) float32; the n-step return `sum_j gamma^j r_{t+j}` up to the episode's end.
        discount: (B,) float32; multiplies the bootstrap value: gamma^m for m steps, 0 if terminated.
        next_observation: like observation, m <= n steps later.
        weight: (B,) float32; importance weights, 1 where sampling is uniform.
        step_ids: (B,) int64; name the transitions, for `update_priorities`.
    """

    observation: Any
    action: Any
    reward: Any
    discount: Any
    next_observation: Any
    weight: Any
    step_ids: Any

    def map(self, function: Callable[[Any], Any]) -> Batch:
        """Return the batch with a function applied to every array, however nested."""
        return Batch(*[_walk(getattr(self, name), function) for name in Batch.__slots__])

    def pin_memory(self) -> Batch:
        """Return the batch of tensors in pinned memory; torch's DataLoader calls this."""
        return self.map(lambda tensor: tensor.pin_memory())


def _walk(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _walk(part, function) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_walk(part, function) for part in value)
    return function(value)


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """Hold B sequences of L consecutive steps, cut at the episode's end.

    Attributes:
        observation: (B, L + 1, *shape); entry L is the observation after the last step.
        action: (B, L, *shape).
        reward: (B, L) float32, the single-step rewards.
        terminated: (B, L) bool.
        truncated: (B, L) bool; true too at the last step of an interrupted episode.
        mask: (B, L) bool; False past the episode's end, where the last observation is repeated, actions are those
            of the last step, and rewards are 0.
        weight: (B,) float32.
        step_ids: (B,) int64; the first step of each sequence.
    """

    observation: Any
    action: Any
    reward: Any
    terminated: Any
    truncated: Any
    mask: Any
    weight: Any
    step_ids: Any
