"""Who chooses the actions of a rollout, and the frames it sees when it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from diskreplay.experience.spec import build, flatten

if TYPE_CHECKING:
    from gymnasium import Space
    from numpy.typing import NDArray

    from diskreplay.experience import StepSpec
    from diskreplay.experience.spec import Tree


class Policy(Protocol):
    """Choose the actions of E environments."""

    @property
    def spec(self) -> StepSpec:
        """Return the spec of the steps it was made for."""

    @property
    def frame_stack(self) -> int:
        """Return how many frames (k) of each environment it wants to see."""

    def __call__(self, observations: Any, epsilon: float, rng: np.random.Generator) -> Any:
        """Return E actions as the vector environment takes them.

        Args:
            observations: (E, k, *shape), oldest frame first; (E, *shape) for k = 1.
            epsilon: Probability of a random action.
            rng: The only source of chance it may use.
        """


class RandomPolicy:
    """Draw every action uniformly from the action space.

    Args:
        action_space: The vector environment's action space.
        seed: Seeds it.
    """

    frame_stack = 1

    def __init__(self, action_space: Space[Any], *, seed: int) -> None:
        self._action_space = action_space
        action_space.seed(seed)

    def __call__(self, observations: Any, epsilon: float, rng: np.random.Generator) -> Any:
        """Return one sample per environment; looks at nothing."""
        del observations, epsilon, rng
        return self._action_space.sample()


class FrameHistory:
    """Keep the last k observations of E environments, as a sampled frame stack would show them.

    Args:
        observation: The spec's observation: how observations are nested.
        frame_stack: k; with 1 observations pass through.
    """

    def __init__(self, observation: Tree, frame_stack: int) -> None:
        self._tree = observation
        self._k = frame_stack
        self._frames: list[NDArray[Any]] = []

    def push(self, observations: Any, *, started: NDArray[np.bool_]) -> Any:
        """Take in the newest observations and return what the policy sees.

        Args:
            observations: (E, *shape), nested.
            started: (E,); True where an episode begins: its first frame fills the stack.

        Returns:
            (E, k, *shape), oldest frame first, nested; (E, *shape) for k = 1.
        """
        if self._k == 1:
            return observations
        newest = flatten(self._tree, observations, "observation")
        if not self._frames:
            self._frames = [np.repeat(leaf[:, None], self._k, axis=1) for leaf in newest]
        for frames, leaf in zip(self._frames, newest, strict=True):
            frames[:, :-1] = frames[:, 1:]
            frames[:, -1] = leaf
            frames[started] = leaf[started, None]
        return build(self._tree, iter(self._frames))
