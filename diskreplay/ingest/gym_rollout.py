"""Record rollouts of Gymnasium environments: several side by side, one stream each.

What is recorded is decided by the seed and by where each stream stands: appending never repeats
data, and the same calls on a new store give the same store.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from gymnasium.vector.utils import iterate

from diskreplay.errors import ReplayError, SpecMismatchError, WriterStateError
from diskreplay.experience import StepSpec
from diskreplay.ingest.destination import open_destination
from diskreplay.ingest.environments import canonical_id, make_vector_env, preprocessing
from diskreplay.ingest.policy import FrameHistory, Policy, RandomPolicy
from diskreplay.ingest.progress import IngestReport, Progress

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from gymnasium.vector import VectorEnv

    from diskreplay.store import ReplayStore, StreamWriter

RANDOM = "random"


def ingest_gym(
    store_path: str | os.PathLike[str],
    env_id: str,
    *,
    steps: int = 10_000,
    policy: Policy | None = None,
    policy_name: str = RANDOM,
    epsilon: float = 0.0,
    num_envs: int = 4,
    parallel: bool = False,
    seed: int | None = None,
    commit_every: int = 5_000,
    capacity: int | str | None = None,
    segment_steps: int | None = None,
    compression: str | None = None,
    chunk_steps: int | None = None,
    durability: str | None = None,
    seal: bool = True,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> IngestReport:
    """Add steps of an environment to a store, which is created if there is none.

    Args:
        store_path: The store.
        env_id: A Gymnasium id; see `make_env` for what is done to Atari games.
        steps: How many steps this call adds, over all environments.
        policy: Chooses the actions; None draws them uniformly.
        policy_name: What the store's metadata call it.
        epsilon: Probability of a random action, for a policy.
        num_envs: Environments side by side; environment i writes the stream `env-i`.
        parallel: Give each environment a process of its own.
        seed: Decides everything random, together with where the streams stand; None draws one.
        commit_every: Commit after so many steps; also every few seconds.
        capacity: For a new store: see `ReplayStore.create`.
        segment_steps: For a new store, likewise.
        compression: For a new store, likewise.
        chunk_steps: For a new store, likewise.
        durability: For a new store, likewise.
        seal: Turn everything into segments at the end, so that any zarr reader sees it.
        progress: Draw a bar on stderr.
        stop: Asked between steps; once true, what was recorded is committed and reported.

    Returns:
        What was recorded.

    Raises:
        SourceError: If the environment cannot be made.
        SpecMismatchError: If the store or the policy is for another environment.
    """
    if steps < 1 or num_envs < 1 or commit_every < 1 or not 0 <= epsilon <= 1:
        raise ValueError("require steps, num_envs, commit_every >= 1 and 0 <= epsilon <= 1")
    env_id = canonical_id(env_id)
    seed = secrets.randbits(31) if seed is None else seed
    label = policy_name if policy is None else f"epsilon-greedy {epsilon:g} {policy_name}"
    # Environments first: worker processes must not inherit an open store.
    with closing(make_vector_env(env_id, num_envs, parallel=parallel)) as envs:
        spec = StepSpec.from_spaces(envs.single_observation_space, envs.single_action_space)
        _check_policy(policy, spec, env_id)
        metadata = {"env_id": env_id, "preprocessing": preprocessing(env_id), "policy": [label]}
        with (
            open_destination(
                store_path,
                spec,
                metadata,
                capacity=capacity,
                segment_steps=segment_steps,
                compression=compression,
                chunk_steps=chunk_steps,
                durability=durability,
            ) as store,
            Progress(store, total=steps, commit_every=commit_every, visible=progress) as clock,
        ):
            _note_policy(store, label)
            with _Streams(store, num_envs, clock) as streams:
                rollout = _Rollout(envs, streams, spec, policy=policy, epsilon=epsilon, seed=seed)
                while clock.steps < steps and not stop():
                    rollout.step(limit=steps - clock.steps)
                total_steps = sum(streams.positions)
            store.commit()
            if seal:
                store.seal()
            return clock.report(
                path=str(store_path),
                source=f"gym:{env_id}",
                total_steps=total_steps,
                seed=seed,
                interrupted=clock.steps < steps,
            )


def environment_seed(seed: int, stream: int, steps: int) -> int:
    """Return the seed of the first reset of an environment.

    Args:
        seed: The call's.
        stream: The environment's number i.
        steps: Steps its stream has taken in before this call.
    """
    return int(np.random.SeedSequence(seed, spawn_key=(0, stream, steps)).generate_state(1)[0] >> 1)


class _Step(NamedTuple):
    observation: Any
    action: Any
    reward: float
    terminated: bool
    truncated: bool
    next_observation: Any


class _Rollout:
    """Step the environments and hand every step to its stream."""

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        streams: _Streams,
        spec: StepSpec,
        *,
        policy: Policy | None,
        epsilon: float,
        seed: int,
    ) -> None:
        positions = streams.positions
        entropy = np.random.SeedSequence(seed, spawn_key=(1, *positions))
        action_seed, policy_seed = (int(word) for word in entropy.generate_state(2))
        self._envs = envs
        self._streams = streams
        self._policy = policy or RandomPolicy(envs.action_space, seed=action_seed)
        self._rng = np.random.default_rng(policy_seed)
        self._epsilon = epsilon
        self._history = FrameHistory(spec.observation, self._policy.frame_stack)
        seeds = [environment_seed(seed, i, at) for i, at in enumerate(positions)]
        self._observations, _ = envs.reset(seed=seeds)
        self._started = np.ones(envs.num_envs, dtype=np.bool_)

    def step(self, *, limit: int) -> None:
        """Step all environments once; record at most `limit` of the steps."""
        envs = self._envs
        seen = self._history.push(self._observations, started=self._started)
        actions = self._policy(seen, self._epsilon, self._rng)
        following, rewards, terminated, truncated, _ = envs.step(actions)
        rows = zip(
            iterate(envs.observation_space, self._observations),
            iterate(envs.action_space, actions),
            rewards.tolist(),
            terminated.tolist(),
            truncated.tolist(),
            iterate(envs.observation_space, following),
            strict=True,
        )
        for i, row in zip(range(limit), rows, strict=False):
            self._streams.record(i, _Step(*row))
        self._started = terminated | truncated
        if self._started.any():
            # Reset by hand, so that `following` was the true final observation of every episode.
            following, _ = envs.reset(options={"reset_mask": self._started})
        self._observations = following


class _Streams:
    """Write the steps of E environments into E streams; count them and their episodes."""

    def __init__(self, store: ReplayStore, num_envs: int, clock: Progress) -> None:
        self._store = store
        self._clock = clock
        self._num_envs = num_envs
        self._closing = ExitStack()
        self._writers: list[StreamWriter] = []
        self._returns = [0.0] * num_envs
        self._lengths = [0] * num_envs

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for i in range(self._num_envs):
                self._writers.append(stack.enter_context(self._store.writer(stream=f"env-{i}")))
            self._closing = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closing.close()
        if kind is not None and (not issubclass(kind, ReplayError) or issubclass(kind, SpecMismatchError)):
            with suppress(WriterStateError):  # a step was interrupted half-way
                self._store.commit()  # a broken environment costs nothing that was recorded before

    @property
    def positions(self) -> list[int]:
        """Return how many steps each stream has taken in."""
        return [int(writer.steps) for writer in self._writers]

    def record(self, i: int, step: _Step) -> None:
        """Write one step of environment i; start its episode if none is open."""
        writer = self._writers[i]
        if self._lengths[i] == 0:
            writer.reset(step.observation)
        writer.step(*step[1:])
        self._returns[i] += step.reward
        self._lengths[i] += 1
        if step.terminated or step.truncated:
            self._clock.add_episode(self._returns[i], self._lengths[i])
            self._returns[i], self._lengths[i] = 0.0, 0
        self._clock.add_steps(1)


def _check_policy(policy: Policy | None, spec: StepSpec, env_id: str) -> None:
    difference = "" if policy is None else policy.spec.difference(spec)
    if difference:
        raise SpecMismatchError(
            f"the policy does not fit {env_id} (policy against environment): {difference}",
            hint="Use a checkpoint that was trained on steps of this environment.",
        )


def _note_policy(store: ReplayStore, label: str) -> None:
    """Add the policy to those the store's metadata name."""
    labels = list(store.metadata.get("policy", []))
    if label not in labels:
        store.update_metadata({"policy": [*labels, label]})
