import hashlib

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing

from diskreplay.errors import SourceError, SpecMismatchError
from diskreplay.experience import StepSpec
from diskreplay.ingest import ingest_gym
from diskreplay.ingest.gym_rollout import environment_seed
from diskreplay.store import ReplayStore

CARTPOLE, BREAKOUT = "CartPole-v1", "ALE/Breakout-v5"


def recorded_episodes(path):
    """Return {stream number: [episode]}; an episode is a dict of what was recorded, final row included."""
    out = {}
    with ReplayStore.open(path) as store:
        assert store.verify() == []
        table = store.episodes()
        for first, length, stream in zip(table.first_step_id, table.length, table.stream, strict=True):
            batch = store.read(np.arange(first, first + length))
            number = int(store.streams[stream].removeprefix("env-"))
            out.setdefault(number, []).append(
                {
                    "observations": np.concatenate([batch.observation, batch.next_observation[-1:]]),
                    "actions": batch.action,
                    "rewards": batch.reward,
                    "discounts": batch.discount,
                }
            )
    return out


def check_against_replay(env, seed, episodes):
    """Play the recorded actions in a fresh environment; every row must come back."""
    observation, _ = env.reset(seed=seed)
    for episode in episodes:
        seen = [observation]
        for t, action in enumerate(episode["actions"]):
            observation, reward, terminated, truncated, _ = env.step(action)
            seen.append(observation)
            assert episode["rewards"][t] == np.float32(reward)
            assert episode["discounts"][t] == (0 if terminated else np.float32(0.99))
            if terminated or truncated:
                assert t == len(episode["actions"]) - 1
                observation, _ = env.reset()
        assert np.array_equal(np.stack(seen), episode["observations"])
        digest = hashlib.sha256(np.stack(seen).tobytes()).hexdigest()
        assert digest == hashlib.sha256(episode["observations"].tobytes()).hexdigest()


def all_hashes(path):
    """Return one hash per recorded episode."""
    return [
        hashlib.sha256(episode["observations"].tobytes() + episode["actions"].tobytes()).hexdigest()
        for episodes in recorded_episodes(path).values()
        for episode in episodes
    ]


@pytest.mark.parametrize("num_envs", [1, 3])
def test_cartpole_rows_equal_an_independent_replay(tmp_path, num_envs):
    path = tmp_path / "s.replay"
    report = ingest_gym(path, CARTPOLE, steps=500, num_envs=num_envs, seed=7)
    streams = recorded_episodes(path)
    assert sorted(streams) == list(range(num_envs))
    for number, episodes in streams.items():
        env = gymnasium.make(CARTPOLE)
        check_against_replay(env, environment_seed(7, number, 0), episodes)
    lengths = [len(e["actions"]) for episodes in streams.values() for e in episodes]
    assert sum(lengths) == report.steps == report.total_steps == 500
    finished = [n for episodes in streams.values() for n in (len(e["actions"]) for e in episodes)]
    assert report.episodes >= len(finished) - num_envs
    assert not report.interrupted


def test_truncated_episodes_keep_their_final_observation(tmp_path):
    """Pendulum never terminates: it is cut off after 200 steps, and bootstraps."""
    path = tmp_path / "s.replay"
    report = ingest_gym(path, "Pendulum-v1", steps=450, num_envs=2, seed=1)
    streams = recorded_episodes(path)
    assert [len(e["actions"]) for e in streams[0]] == [200, 25]
    assert report.episodes == 2
    for number, episodes in streams.items():
        env = gymnasium.make("Pendulum-v1")
        check_against_replay(env, environment_seed(1, number, 0), episodes)


def test_breakout_frames_equal_those_of_the_environment(tmp_path):
    path = tmp_path / "s.replay"
    ingest_gym(path, BREAKOUT, steps=500, num_envs=2, seed=5)
    streams = recorded_episodes(path)
    for number, episodes in streams.items():
        env = AtariPreprocessing(gymnasium.make(BREAKOUT, frameskip=1))
        check_against_replay(env, environment_seed(5, number, 0), episodes)
        env.close()
    with ReplayStore.open(path) as store:
        (leaf,) = store.spec.observation_leaves
        assert (leaf.shape, leaf.dtype) == ((84, 84), "uint8")
        assert store.metadata["env_id"] == BREAKOUT
        assert store.metadata["preprocessing"]["repeat_action_probability"] == 0.25
        assert len(store) == 500


def test_processes_of_their_own_record_the_same(tmp_path):
    for name, parallel in (("one", False), ("many", True)):
        ingest_gym(tmp_path / name, CARTPOLE, steps=300, num_envs=2, seed=3, parallel=parallel)
    assert all_hashes(tmp_path / "one") == all_hashes(tmp_path / "many")


def test_the_same_seed_gives_the_same_store(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        ingest_gym(tmp_path / name, CARTPOLE, steps=300, num_envs=2, seed=seed)
    assert all_hashes(tmp_path / "a") == all_hashes(tmp_path / "b")
    assert not set(all_hashes(tmp_path / "a")) & set(all_hashes(tmp_path / "c"))


def test_appending_goes_on_and_never_repeats_data(tmp_path):
    path = tmp_path / "s.replay"
    for calls, num_envs in enumerate((2, 2, 3, 1), start=1):
        report = ingest_gym(path, CARTPOLE, steps=200, num_envs=num_envs, seed=0)
        assert report.steps == 200
        with ReplayStore.open(path) as store:
            assert len(store) == 200 * calls
    hashes = all_hashes(path)
    assert len(set(hashes)) == len(hashes)
    assert report.total_steps < 800


def test_appended_rows_equal_an_independent_replay(tmp_path):
    path = tmp_path / "s.replay"
    ingest_gym(path, CARTPOLE, steps=150, num_envs=1, seed=7)
    ingest_gym(path, CARTPOLE, steps=150, num_envs=1, seed=7)
    episodes = recorded_episodes(path)[0]
    before = np.cumsum([len(e["actions"]) for e in episodes])
    border = int(np.flatnonzero(before == 150)[0]) + 1
    check_against_replay(gymnasium.make(CARTPOLE), environment_seed(7, 0, 150), episodes[border:])


def test_without_a_seed_one_is_drawn_and_reported(tmp_path):
    first = ingest_gym(tmp_path / "a", CARTPOLE, steps=50, num_envs=1)
    second = ingest_gym(tmp_path / "b", CARTPOLE, steps=50, num_envs=1)
    assert first.seed != second.seed
    ingest_gym(tmp_path / "c", CARTPOLE, steps=50, num_envs=1, seed=first.seed)
    assert all_hashes(tmp_path / "a") == all_hashes(tmp_path / "c")


def test_fewer_steps_than_environments(tmp_path):
    report = ingest_gym(tmp_path / "s", CARTPOLE, steps=2, num_envs=4, seed=0)
    assert report.steps == 2
    assert report.mean_return is None
    with ReplayStore.open(tmp_path / "s") as store:
        assert len(store) == 2


def test_a_stop_keeps_what_was_recorded(tmp_path):
    asked = iter([False] * 20 + [True] * 10)
    report = ingest_gym(tmp_path / "s", CARTPOLE, steps=1_000, num_envs=2, seed=0, stop=lambda: next(asked))
    assert report.interrupted
    assert report.steps == 40
    with ReplayStore.open(tmp_path / "s") as store:
        assert len(store) == 40


def test_a_broken_environment_costs_nothing_recorded_before(tmp_path):
    class Broken(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)
        steps = 0

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            self.steps += 1
            if self.steps > 30:
                raise RuntimeError("out of order")
            return np.zeros(2, np.float32), 0.0, False, False, {}

    gymnasium.register("Broken-v0", Broken)
    try:
        with pytest.raises(RuntimeError, match="out of order"):
            ingest_gym(tmp_path / "s", "Broken-v0", steps=100, num_envs=1, seed=0)
    finally:
        del gymnasium.registry["Broken-v0"]
    with ReplayStore.open(tmp_path / "s") as store:
        assert len(store) == 30


class RecordingPolicy:
    """Draw actions from the generator; note them and what was seen."""

    def __init__(self, spec, frame_stack):
        self.spec, self.frame_stack, self.seen, self.acted = spec, frame_stack, [], []

    def __call__(self, observations, epsilon, rng):
        assert epsilon == 0.25
        self.seen.append(observations.copy())
        self.acted.append(rng.integers(2, size=len(observations)))
        return self.acted[-1]


def spec_of(env_id):
    env = gymnasium.make(env_id)
    return StepSpec.from_spaces(env.observation_space, env.action_space)


def test_a_policy_sees_the_frame_stacks_a_learner_reads(tmp_path):
    policy = RecordingPolicy(spec_of(CARTPOLE), frame_stack=3)
    ingest_gym(
        tmp_path / "s", CARTPOLE, steps=120, num_envs=1, seed=0, policy=policy,
        policy_name="runs/x", epsilon=0.25,
    )  # fmt: skip
    with ReplayStore.open(tmp_path / "s") as store:
        table = store.episodes()
        ids = np.concatenate([np.arange(f, f + n) for f, n in zip(table.first_step_id, table.length, strict=True)])
        batch = store.read(ids, frame_stack=3)
        assert store.metadata["policy"] == ["epsilon-greedy 0.25 runs/x"]
    assert np.array_equal(np.concatenate(policy.seen), batch.observation)
    assert np.array_equal(np.concatenate(policy.acted), batch.action)


def test_policies_are_listed_once_in_the_metadata(tmp_path):
    for _ in range(2):
        ingest_gym(tmp_path / "s", CARTPOLE, steps=20, num_envs=1, seed=0)
    policy = RecordingPolicy(spec_of(CARTPOLE), frame_stack=1)
    ingest_gym(tmp_path / "s", CARTPOLE, steps=20, num_envs=1, seed=0, policy=policy, policy_name="p", epsilon=0.25)
    with ReplayStore.open(tmp_path / "s") as store:
        assert store.metadata["policy"] == ["random", "epsilon-greedy 0.25 p"]


def test_a_policy_of_another_environment_is_refused_before_a_store_is_made(tmp_path):
    policy = RecordingPolicy(spec_of("Acrobot-v1"), frame_stack=1)
    with pytest.raises(SpecMismatchError, match="the policy does not fit CartPole-v1"):
        ingest_gym(tmp_path / "s", CARTPOLE, steps=20, policy=policy)
    assert not (tmp_path / "s").exists()


def test_an_unknown_environment_makes_no_store(tmp_path):
    with pytest.raises(SourceError):
        ingest_gym(tmp_path / "s", "CartPol-v1", steps=20)
    assert not (tmp_path / "s").exists()


def test_a_store_of_another_environment_is_refused(tmp_path):
    ingest_gym(tmp_path / "s", CARTPOLE, steps=20, num_envs=1, seed=0)
    with pytest.raises(SpecMismatchError, match="env_id"):
        ingest_gym(tmp_path / "s", "Acrobot-v1", steps=20, num_envs=1, seed=0)


def test_a_store_of_other_steps_is_refused_with_the_difference(tmp_path):
    ReplayStore.create(tmp_path / "s", spec_of("Acrobot-v1")).close()
    with pytest.raises(SpecMismatchError, match=r"shape \[6\] against \[4\]"):
        ingest_gym(tmp_path / "s", CARTPOLE, steps=20, num_envs=1, seed=0)


@pytest.mark.parametrize(
    "option",
    [{"capacity": 5_000}, {"capacity": "1GB"}, {"segment_steps": 64}, {"compression": "zstd"}, {"chunk_steps": 8}],
)
def test_options_of_a_new_store_cannot_change_an_existing_one(tmp_path, option):
    ingest_gym(tmp_path / "s", CARTPOLE, steps=20, num_envs=1, seed=0, capacity=1_000, segment_steps=32)
    ingest_gym(tmp_path / "s", CARTPOLE, steps=20, num_envs=1, seed=0, capacity="1000", segment_steps=32)
    with pytest.raises(SpecMismatchError, match="cannot become"):
        ingest_gym(tmp_path / "s", CARTPOLE, steps=20, num_envs=1, seed=0, **option)


@pytest.mark.parametrize("capacity", ["lots", 0, "0", 3])
def test_an_impossible_capacity_makes_no_store(tmp_path, capacity):
    with pytest.raises(SpecMismatchError, match="capacity"):
        ingest_gym(tmp_path / "s", CARTPOLE, steps=20, num_envs=1, seed=0, capacity=capacity)
    assert not (tmp_path / "s").exists()


def test_unsealed_steps_are_there_too(tmp_path):
    ingest_gym(tmp_path / "s", CARTPOLE, steps=100, seed=0, seal=False)
    with ReplayStore.open(tmp_path / "s") as store:
        assert len(store) == 100
        assert store.stats().to_json()["tail_steps"] == 100


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"num_envs": 0}, {"epsilon": 1.5}, {"commit_every": 0}])
def test_wrong_arguments_are_value_errors(tmp_path, wrong):
    with pytest.raises(ValueError, match="require"):
        ingest_gym(tmp_path / "s", CARTPOLE, **wrong)
