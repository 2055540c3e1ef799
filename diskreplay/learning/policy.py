"""Acting with a trained network: epsilon-greedy, on batches of observations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diskreplay.experience.spec import build, flatten
from diskreplay.learning.checkpoint import read_checkpoint
from diskreplay.learning.network import action_leaf

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    from diskreplay.experience import StepSpec
    from diskreplay.learning.network import QNetwork


@dataclass(frozen=True)
class EpsilonGreedyPolicy:
    """Choose the action of the largest value, or with probability epsilon any action.

    Attributes:
        network: Estimates the values.
        env_id: Environment the policy was trained for; empty if not known.
        device: Where the network is.
    """

    network: QNetwork
    env_id: str = ""
    device: str = "cpu"

    @property
    def spec(self) -> StepSpec:
        """Return the spec of the steps the policy was trained on."""
        return self.network.spec

    @property
    def frame_stack(self) -> int:
        """Return the number k of observations the policy sees at once."""
        return self.network.frame_stack

    @torch.no_grad()
    def __call__(self, observations: Any, epsilon: float, rng: np.random.Generator) -> NDArray[np.int64]:
        """Choose an action for each of E observations.

        Args:
            observations: (E, *shape), or (E, k, *shape) with frame_stack=k > 1; nested as in the spec.
            epsilon: Probability of a uniformly random action, in [0, 1]; 0 draws nothing from `rng`.
            rng: Source of the randomness.

        Returns:
            (E,) actions, inside the action space.
        """
        parts = flatten(self.spec.observation, observations, "observation")
        arrays = [torch.as_tensor(np.ascontiguousarray(part)).to(self.device) for part in parts]
        values = self.network(build(self.spec.observation, iter(arrays)))
        actions: NDArray[np.int64] = values.argmax(dim=1).cpu().numpy()
        if epsilon > 0:
            random = rng.random(len(actions)) < epsilon
            drawn = rng.integers(values.shape[1], size=len(actions))
            actions = np.where(random, drawn, actions)
        return actions + action_leaf(self.spec).start


def load_policy(path: str | PathLike[str], *, device: str = "cpu") -> EpsilonGreedyPolicy:
    """Return the policy of a checkpoint file, or of the checkpoint in a run's folder.

    Raises:
        TrainingError: If there is no checkpoint, or it cannot be read.
    """
    checkpoint = read_checkpoint(path)
    network = checkpoint.build_network().to(device).eval()
    return EpsilonGreedyPolicy(network, checkpoint.env_id, device)
