"""Checkpoints: what goes in comes out, and nothing else is accepted."""

from __future__ import annotations

import errno
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from diskreplay.errors import TrainingError
from diskreplay.experience import Batch, StepSpec
from diskreplay.learning import checkpoint as checkpoints
from diskreplay.learning.checkpoint import Checkpoint, read_checkpoint
from diskreplay.learning.config import TrainConfig
from diskreplay.learning.learner import Learner
from diskreplay.learning.policy import load_policy

SPEC = StepSpec.from_spaces(Box(-1, 1, (3,), np.float32), Discrete(2, start=5))
CONFIG = TrainConfig(hidden=(8,), updates=100)


def batch(rng):
    return Batch(
        observation=torch.as_tensor(rng.normal(size=(4, 3)), dtype=torch.float32),
        action=torch.as_tensor(rng.integers(5, 7, size=4)),
        reward=torch.ones(4),
        discount=torch.full((4,), 0.9),
        next_observation=torch.as_tensor(rng.normal(size=(4, 3)), dtype=torch.float32),
        weight=torch.ones(4),
        step_ids=torch.arange(4),
    )


def make(updates=1, run="a"):
    learner = Learner(SPEC, CONFIG)
    learner.update(batch(np.random.default_rng(0)), 0)
    return Checkpoint(
        run=run,
        updates=updates,
        config=CONFIG,
        spec=SPEC,
        env_id="Toy-v0",
        seconds=1.5,
        wait_seconds=0.5,
        learner=learner.state_dict(),
    )


def save(folder, checkpoint):
    checkpoints.write_next(folder, checkpoint)
    return checkpoints.promote(folder)


def test_round_trip(tmp_path):
    """Everything comes back equal."""
    before = make()
    after = read_checkpoint(save(tmp_path, before))
    for name in (
        "run",
        "updates",
        "config",
        "spec",
        "env_id",
        "seconds",
        "wait_seconds",
    ):
        assert getattr(after, name) == getattr(before, name)
    for part in ("network", "target"):
        for name, value in before.learner[part].items():
            assert torch.equal(after.learner[part][name], value)


def test_a_restored_learner_goes_on_exactly(tmp_path):
    """Networks and Adam's moments come back bit for bit."""
    rng = np.random.default_rng(1)
    first, second = Learner(SPEC, CONFIG), Learner(SPEC, replace(CONFIG, seed=9))
    batches = [batch(rng) for _ in range(6)]
    for i in range(3):
        first.update(batches[i], i)
    save(tmp_path, replace(make(), learner=first.state_dict()))
    second.load_state_dict(read_checkpoint(tmp_path).learner)
    for i in range(3, 6):
        first.update(batches[i], i)
        second.update(batches[i], i)
    for one, other in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_store_decides_between_two_checkpoints(tmp_path):
    """After a crash between the two, the one the store's commit names is kept."""
    save(tmp_path, make(updates=10))
    checkpoints.write_next(tmp_path, make(updates=20))
    path = checkpoints.settle(tmp_path, ("a", 10))
    assert read_checkpoint(path).updates == 10
    assert not (tmp_path / checkpoints.NEXT_NAME).exists()
    checkpoints.write_next(tmp_path, make(updates=20))
    path = checkpoints.settle(tmp_path, ("a", 20))
    assert read_checkpoint(path).updates == 20


def test_without_a_checkpoint_there_is_nothing_to_settle(tmp_path):
    """An empty folder, and a first checkpoint whose commit never came, are no run."""
    assert checkpoints.settle(tmp_path, None) is None
    for committed in (None, ("another run", 10)):
        checkpoints.write_next(tmp_path, make(updates=10))
        assert checkpoints.settle(tmp_path, committed) is None


def test_files_that_are_no_checkpoints(tmp_path):
    """Missing, foreign, cut short and unsafe files are refused with the path."""
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(TrainingError, match="no checkpoint there"):
        read_checkpoint(tmp_path)
    save(tmp_path, make())
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(TrainingError, match=r"checkpoint\.pt: not a checkpoint"):
            read_checkpoint(path)
    torch.save({"format": 99}, path)
    with pytest.raises(TrainingError, match="expected a checkpoint of format 1, got 99"):
        read_checkpoint(path)
    torch.save({"format": 1, "run": "a"}, path)
    with pytest.raises(TrainingError, match="lacks or misstates 'updates'"):
        read_checkpoint(path)


def test_a_checkpoint_runs_no_code(tmp_path):
    """A pickle that calls something is refused, not run."""

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    torch.save({"format": 1, "evil": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="not a checkpoint that can be read") as error:
        read_checkpoint(tmp_path)
    assert "weights_only" not in str(error.value)  # no advice on how to run it after all
    assert not (tmp_path / "made").exists()


def change(path, *keys, to=None):
    """Write a checkpoint again with one entry changed, or taken out where `to` is None."""
    data = torch.load(path, weights_only=True)
    place = data
    for key in keys[:-1]:
        place = place[key]
    if to is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = to
    torch.save(data, path)


WEIGHT = ("learner", "network", "trunk.0.weight")
MOMENT = ("learner", "optimizer", "state", 0)


@pytest.mark.parametrize(
    ("keys", "to", "message"),
    [
        *[((name,), None, f"'{name}'") for name in ("run", "config", "spec", "learner", "seconds")],
        (("run",), 5, "run: expected a string, got 5"),
        (("updates",), "many", "updates: expected a whole number"),
        (("updates",), -1, "updates: expected a whole number"),
        (("seconds",), float("nan"), "seconds: expected a number of seconds"),
        (("config",), [], ""),
        (("config", "gamma"), 7.0, "gamma: expected in"),
        (("config", "device"), 3, "device: expected a str"),
        (("config", "hidden"), [10**9], "trunk.0.weight: expected shape (1000000000, 3)"),
        (("config", "hidden"), [2**62, 2**62], ""),
        (("config", "frame_stack"), 60_000, "network trunk.0.weight: expected shape"),
        (("spec", "observation"), [1], ""),
        (("spec", "observation", "array", "shape"), [float("inf")], ""),
        (("spec", "action", "array", "n"), 10**30, ""),
        (("learner",), [], ""),
        (("learner", "target"), None, "'target'"),
        (("learner", "target"), 5, "target: expected tensors by name"),
        (WEIGHT, None, "network: expected ["),
        (WEIGHT, "x", "trunk.0.weight: expected a tensor"),
        (WEIGHT, torch.zeros(8, 4), "trunk.0.weight: expected shape (8, 3), got (8, 4)"),
        (WEIGHT, torch.zeros(1).expand(8, 3), "trunk.0.weight: expected a tensor, dense"),
        (WEIGHT, torch.zeros(8, 3, device="meta"), "trunk.0.weight: expected a tensor, dense, in memory"),
        (WEIGHT, torch.zeros(8, 3).to_sparse(), "trunk.0.weight: expected a tensor, dense"),
        (WEIGHT, torch.zeros(8, 3, dtype=torch.int64), "trunk.0.weight: expected floating-point numbers"),
        (WEIGHT, torch.full((8, 3), float("nan")), "trunk.0.weight: expected finite numbers"),
        (("learner", "optimizer"), 5, "optimizer: expected its state"),
        (("learner", "optimizer", "state"), {}, "optimizer: expected all parameters' moments"),
        (MOMENT, 5, "optimizer 0: expected tensors by name"),
        ((*MOMENT, "exp_avg"), torch.zeros(2), "optimizer 0 exp_avg: expected shape (8, 3), got (2,)"),
    ],
)
def test_parts_that_are_missing_or_wrong_are_named(tmp_path, keys, to, message):
    """Nothing of a file that does not fit itself gets as far as a network, nor takes the memory it claims."""
    path = save(tmp_path, make())
    change(path, *keys, to=to)
    for read in (read_checkpoint, load_policy):
        with pytest.raises(TrainingError, match=r"checkpoint\.pt: the checkpoint lacks or misstates") as error:
            read(path)
        assert message in str(error.value)


def test_the_optimizers_options_are_the_configs(tmp_path):
    """What a file says of them is not looked at."""
    path = save(tmp_path, make())
    change(path, "learner", "optimizer", "param_groups", to=[{"params": "none", "fused": "yes"}])
    learner = Learner(SPEC, CONFIG)
    learner.load_state_dict(read_checkpoint(path).learner)
    learner.update(batch(np.random.default_rng(0)), 1)


def test_a_flipped_bit_is_noticed(tmp_path):
    """One in the weights would be another network."""
    path = save(tmp_path, make())
    whole = bytearray(path.read_bytes())
    weights = read_checkpoint(path).learner["network"]["trunk.0.weight"].numpy().tobytes()
    whole[bytes(whole).index(weights)] ^= 1
    path.write_bytes(whole)
    with pytest.raises(TrainingError, match=r"not a checkpoint that can be read: its record .* is damaged"):
        read_checkpoint(path)


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    """The error names the reason, not what torch's writer makes of it."""

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(type(tmp_path), "open", lambda *_: Full())
    with pytest.raises(OSError, match="No space left"):
        checkpoints.write_next(tmp_path, make())


def test_a_checkpoint_that_names_a_module_is_not_followed(tmp_path):
    """Where a run is evaluated may be given anew; a file's own word must not run code."""
    found = replace(make(), config=replace(CONFIG, eval_env="module_beside:X-v0"))
    with pytest.raises(TrainingError, match="module_beside") as error:
        found.config_with({"updates": 200}, tmp_path)
    assert "--eval-env" in error.value.hint
    assert found.config_with({"eval_env": "mine:X-v0"}, tmp_path).eval_env == "mine:X-v0"
    assert found.config_with({"eval_episodes": 0}, tmp_path).eval_episodes == 0


@pytest.mark.parametrize("mark", [None, 5, [], {}, {"run": "a"}, {"run": "a", "updates": "many"}])
def test_a_mark_that_is_none(mark):
    """Metadata of a store from elsewhere may be anything."""
    assert checkpoints.committed_run({checkpoints.MARK: mark}) is None


def test_misfits_are_named(tmp_path):
    """Another spec, other options, fewer updates: the message says which."""
    found = make(updates=50)
    other = StepSpec.from_spaces(Box(-1, 1, (4,), np.float32), Discrete(2, start=5))
    with pytest.raises(TrainingError, match=r"observation: shape \[3\] against \[4\]"):
        found.check_fits(other, CONFIG, tmp_path)
    changed = replace(CONFIG, gamma=0.5, hidden=(4, 4), log_every=7)
    with pytest.raises(TrainingError, match=r"gamma 0.95 against 0.5; hidden \(8,\) against") as error:
        found.check_fits(SPEC, changed, tmp_path)
    assert "log_every" not in str(error.value)
    with pytest.raises(TrainingError, match="has 50 updates already, 20 were asked for"):
        found.check_fits(SPEC, replace(CONFIG, updates=20), tmp_path)
    found.check_fits(SPEC, replace(CONFIG, updates=200, log_every=7), tmp_path)


def test_policy_acts_as_the_network_does(tmp_path):
    """Greedy actions are the network's, inside the action space; epsilon 1 is uniform."""
    save(tmp_path, make())
    policy = load_policy(tmp_path)
    assert (policy.spec, policy.env_id, policy.frame_stack) == (SPEC, "Toy-v0", 1)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(64, 3)).astype(np.float32)
    actions = policy(observations, 0.0, rng)
    with torch.no_grad():
        expected = 5 + policy.network(torch.as_tensor(observations)).argmax(1).numpy()
    assert actions.shape == (64,)
    assert (actions == expected).all()
    assert 0.3 < (policy(np.repeat(observations, 20, axis=0), 1.0, rng) == 6).mean() < 0.7
