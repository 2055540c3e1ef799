"""Measuring a policy: whole episodes in a Gymnasium environment, several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from diskreplay.errors import ReplayError, TrainingError
from diskreplay.experience import StepSpec
from diskreplay.experience.spec import build, flatten

if TYPE_CHECKING:
    from collections.abc import Callable

    from gymnasium import Env

    from diskreplay.experience.spec import Tree
    from diskreplay.learning.policy import EpsilonGreedyPolicy


class EnvFactory(Protocol):
    """Make an environment, preprocessed as the data were."""

    def __call__(self, env_id: str, *, seed: int) -> Env[Any, Any]:
        """Return an environment; it is seeded again by its first reset."""


def make_plain_env(env_id: str, *, seed: int) -> Env[Any, Any]:
    """Make a registered environment as it is."""
    import gymnasium  # noqa: PLC0415  only evaluation needs it

    env: Env[Any, Any] = gymnasium.make(env_id)
    env.action_space.seed(seed)
    return env


class Evaluator:
    """Run greedy episodes in environments that are made once; a context manager.

    Every environment runs the same number of episodes, give or take one, and each counts however long it
    takes: the first `episodes` to finish would favour short ones. The network sees all environments that
    still run as one batch.

    Args:
        spec: Spec of the data; the environment's observations and actions must be of the same kind.
        env_id: Gymnasium id, handed to the factory.
        episodes: Episodes of one evaluation.
        seed: Environment i starts from seed + i in every evaluation, so that evaluations can be compared.
        max_envs: Environments side by side, at most.
        max_steps: Steps after which an episode is cut off; its return so far counts.
        env_factory: Makes an environment; `gymnasium.make` if None.

    Raises:
        TrainingError: If the environment cannot be made, or does not fit the spec.
    """

    def __init__(
        self,
        spec: StepSpec,
        env_id: str,
        *,
        episodes: int,
        seed: int = 0,
        max_envs: int = 20,
        max_steps: int = 27_000,
        env_factory: EnvFactory | None = None,
    ) -> None:
        self._tree: Tree = spec.observation
        self._episodes = episodes
        self._seed = seed
        self._max_steps = max_steps
        self._envs: list[Env[Any, Any]] = []
        make = env_factory or make_plain_env
        try:
            for i in range(min(episodes, max_envs)):
                self._envs.append(make(env_id, seed=seed + i))
        except ReplayError:
            self.close()
            raise
        except Exception as err:  # an environment may fail to load in any way
            self.close()
            raise TrainingError(
                f"cannot make the environment {env_id!r} to evaluate in: {err}",
                hint="Name another with --eval-env, install it, or evaluate 0 episodes.",
            ) from err
        first = self._envs[0]
        mine = _signature(spec)
        theirs = _signature(StepSpec.from_spaces(first.observation_space, first.action_space))
        if mine != theirs:
            self.close()
            raise TrainingError(
                f"the environment {env_id!r} does not fit the store: "
                f"the store has {mine}; the environment has {theirs}",
                hint="Evaluate in the environment, and with the preprocessing, of the data.",
            )

    def run(
        self,
        policy: EpsilonGreedyPolicy,
        *,
        epsilon: float = 0.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[float]:
        """Return the undiscounted return of each episode; fewer if `should_stop` said so.

        Args:
            policy: Chooses the actions.
            epsilon: Probability of a random action.
            should_stop: Asked before every step.
        """
        count = len(self._envs)
        rng = np.random.default_rng(self._seed)
        owed = [self._episodes // count + (i < self._episodes % count) for i in range(count)]
        stacks = [
            _Stack(self._tree, policy.frame_stack, env.reset(seed=self._seed + i)[0])
            for i, env in enumerate(self._envs)
        ]
        sums, steps = [0.0] * count, [0] * count
        returns: list[float] = []
        running = list(range(count))
        while running and not should_stop():
            rows = zip(*(stacks[i].parts for i in running), strict=True)
            batch = build(self._tree, (np.stack(row) for row in rows))
            for i, action in zip(running, policy(batch, epsilon, rng), strict=True):
                observation, reward, terminated, truncated, _ = self._envs[i].step(action)
                sums[i] += float(reward)
                steps[i] += 1
                if not (terminated or truncated or steps[i] >= self._max_steps):
                    stacks[i].push(observation)
                    continue
                returns.append(sums[i])
                sums[i], steps[i] = 0.0, 0
                owed[i] -= 1
                if owed[i]:
                    stacks[i] = _Stack(self._tree, policy.frame_stack, self._envs[i].reset()[0])
            running = [i for i in running if owed[i]]
        return returns

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Stack:
    """Hold the last k observations of one environment, padded with its episode's first.

    `parts` are the leaves, each (k, *shape), or (*shape) with k = 1.
    """

    def __init__(self, tree: Tree, frames: int, observation: Any) -> None:
        self._tree, self._frames = tree, frames
        parts = [np.asarray(part) for part in flatten(tree, observation, "observation")]
        self.parts = parts if frames == 1 else [np.stack([part] * frames) for part in parts]

    def push(self, observation: Any) -> None:
        """Take in the newest observation."""
        news = [np.asarray(part) for part in flatten(self._tree, observation, "observation")]
        if self._frames == 1:
            self.parts = news
            return
        for part, new in zip(self.parts, news, strict=True):
            part[:-1] = part[1:]
            part[-1] = new


def _signature(spec: StepSpec) -> str:
    observation = [
        f"{leaf.name} {leaf.dtype}{leaf.shape}" + (f" n={leaf.n} start={leaf.start}" if leaf.kind == "discrete" else "")
        for leaf in spec.observation_leaves
    ]
    action = [f"{leaf.name} {leaf.kind} n={leaf.n} start={leaf.start}" for leaf in spec.action_leaves]
    return ", ".join(observation + action)
