import builtins

import gymnasium
import numpy as np
import pytest

from diskreplay.errors import SourceError
from diskreplay.ingest import environments
from diskreplay.ingest.environments import (
    canonical_id,
    make_env,
    make_vector_env,
    preprocessing,
    resolve,
)


def test_classic_environments_are_left_as_they_are():
    env = make_env("CartPole-v1", seed=3)
    plain = gymnasium.make("CartPole-v1")
    assert env.observation_space == plain.observation_space
    assert env.action_space == plain.action_space
    assert preprocessing("CartPole-v1") == {"kind": "none"}


def test_the_seed_seeds_environment_and_actions():
    def sequence(seed):
        env = make_env("CartPole-v1", seed=seed)
        return [env.reset()[0].tolist(), *(int(env.action_space.sample()) for _ in range(20))]

    assert sequence(3) == sequence(3)
    assert sequence(3) != sequence(4)


def test_atari_gets_the_standard_preprocessing():
    env = make_env("ALE/Breakout-v5")
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (84, 84), np.uint8)
    observation, _ = env.reset(seed=0)
    _, _, _, _, info = env.step(1)
    before = info["frame_number"]
    following, reward, terminated, truncated, info = env.step(1)
    assert info["frame_number"] - before == 4
    assert observation.shape == following.shape == (84, 84)
    assert (reward, terminated, truncated) == (0.0, False, False)
    described = preprocessing("ALE/Breakout-v5")
    assert described["kind"] == "atari"
    assert described["repeat_action_probability"] == 0.25
    assert preprocessing("BreakoutNoFrameskip-v4")["repeat_action_probability"] == 0.0
    env.close()


def test_a_lost_life_does_not_end_an_atari_episode():
    env = make_env("ALE/Breakout-v5", seed=0)
    env.reset(seed=0)
    lives = [env.unwrapped.ale.lives()]
    for _ in range(400):
        _, _, terminated, _, _ = env.step(1)
        lives.append(env.unwrapped.ale.lives())
        if terminated:
            break
        assert lives[-1] > 0
    assert lives[0] == 5
    assert len(set(lives)) > 1
    env.close()


def test_an_id_without_version_means_the_newest():
    with pytest.warns(UserWarning, match="latest versioned"):
        assert canonical_id("CartPole") == "CartPole-v1"
    assert canonical_id("gymnasium.envs:CartPole-v1") == "gymnasium.envs:CartPole-v1"


@pytest.mark.parametrize(
    ("env_id", "near"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("CartPole-v9", "CartPole-v1"),
        ("ALE/Brekout-v5", "ALE/Breakout-v5"),
        ("Nothing/LikeIt-v0", "pprint_registry"),
        ("", "pprint_registry"),
    ],
)
def test_unknown_environments_list_near_matches(env_id, near):
    with pytest.raises(SourceError, match="unknown environment") as caught:
        make_env(env_id)
    assert near in caught.value.hint


def test_a_module_that_cannot_be_imported_is_named():
    with pytest.raises(SourceError, match="no_such_module"):
        make_env("no_such_module:Env-v0")


@pytest.mark.parametrize("code", ["1 / 0", "import sys; sys.exit(0)", "def", "raise KeyError"])
def test_a_module_that_fails_is_named(tmp_path, monkeypatch, code):
    (tmp_path / "failing_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError, match=r"'failing_module' cannot be imported: \w"):
        make_env("failing_module:Env-v0")


@pytest.mark.parametrize(("env_id", "extra"), [("HalfCheetah-v5", "mujoco"), ("LunarLander-v3", "box2d")])
def test_missing_packages_come_with_the_pip_command(monkeypatch, env_id, extra):
    def make(*args, **kwargs):
        raise gymnasium.error.DependencyNotInstalled(f'It is not installed, run `pip install "gymnasium[{extra}]"`')

    monkeypatch.setattr(gymnasium, "make", make)
    with pytest.raises(SourceError) as caught:
        make_env(env_id)
    assert f"pip install 'gymnasium[{extra}]'" in caught.value.hint


def test_atari_without_its_extra_comes_with_the_pip_command(monkeypatch):
    registry = {k: v for k, v in gymnasium.registry.items() if not k.startswith("ALE/")}
    monkeypatch.setattr(gymnasium, "registry", registry)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", registry)
    monkeypatch.setattr(environments, "find_spec", lambda name: None)
    with pytest.raises(SourceError) as caught:
        resolve("ALE/Breakout-v5")
    assert "pip install 'diskreplay[atari]'" in caught.value.hint


def test_atari_without_opencv_comes_with_the_pip_command(monkeypatch):
    imported = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "cv2":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SourceError, match="OpenCV") as caught:
        make_env("ALE/Breakout-v5")
    assert "pip install 'diskreplay[atari]'" in caught.value.hint


def test_an_environment_that_needs_arguments_is_reported():
    with pytest.raises(SourceError, match="GymV21Environment-v0 cannot be made"):
        make_env("GymV21Environment-v0")


def test_vector_environments_never_reset_themselves():
    envs = make_vector_env("CartPole-v1", 2)
    envs.reset(seed=[0, 1])
    ended = np.zeros(2, dtype=np.bool_)
    while not ended.any():
        observations, _, terminated, truncated, _ = envs.step(np.zeros(2, dtype=np.int64))
        ended = terminated | truncated
    final = np.abs(observations[ended][:, [0, 2]]) > [[2.4, 0.2095]]
    assert final.any(axis=1).all()
    envs.close()
