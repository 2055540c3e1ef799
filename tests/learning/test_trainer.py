"""The training loop on a store of a tiny chain world: learning, resuming, refusing."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from diskreplay import PrioritizedSampler, ReplayStore, StepSpec, UniformSampler
from diskreplay.errors import NotEnoughStepsError, ReadOnlyError, SpecMismatchError, StoreLockedError, TrainingError
from diskreplay.learning import TrainConfig, curve, load_policy, read_checkpoint, read_metrics, train
from diskreplay.learning import checkpoint as checkpoints
from diskreplay.learning.batches import Batches
from diskreplay.learning.learner import Learner

STATES = 5
CONFIG = TrainConfig(
    updates=60,
    batch_size=16,
    n_step=2,
    gamma=0.99,
    huber=True,
    activation="relu",
    hidden=(16,),
    learning_rate=1e-2,
    target_every=10,
    eval_every=20,
    eval_episodes=3,
    eval_max_steps=20,
    checkpoint_every=20,
    log_every=10,
    tensorboard=False,
    prefetch=3,
)


class Chain(gymnasium.Env):
    """Five states in a row, from the first; action 1 goes right, 0 left; the last pays 1 and is terminal."""

    observation_space = Box(0, 1, (STATES,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return np.eye(STATES, dtype=np.float32)[0], {}

    def step(self, action):
        self.at = max(self.at + 2 * int(action) - 1, 0)
        last = self.at == STATES - 1
        return np.eye(STATES, dtype=np.float32)[self.at], float(last), last, False, {}


SPEC = StepSpec.from_spaces(Chain.observation_space, Chain.action_space)


def make_env(env_id, *, seed):
    assert env_id == "Chain"
    return Chain()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Return a store of random walks, made once; tests work on copies."""
    path = tmp_path_factory.mktemp("chain") / "chain.replay"
    env, rng = Chain(), np.random.default_rng(0)
    with ReplayStore.create(path, SPEC, segment_steps=64, metadata={"env_id": "Chain"}) as store:
        with store.writer() as writer:
            observation, _ = env.reset()
            writer.reset(observation)
            for _ in range(400):
                action = int(rng.integers(2))
                observation, reward, terminated, truncated, _ = env.step(action)
                writer.step(action, reward, terminated, truncated, observation)
                if terminated:
                    writer.reset(env.reset()[0])
        store.commit()
    return path


@pytest.fixture
def make_copy(recorded, tmp_path):
    """Return a function that opens a fresh copy of the recorded store."""
    opened = []

    def copy(name="copy.replay"):
        shutil.copytree(recorded, tmp_path / name)
        opened.append(ReplayStore.open(tmp_path / name, mode="a"))
        return opened[-1]

    yield copy
    for store in opened:
        assert store._closed or store.verify() == []
        store.close()


@pytest.fixture(autouse=True)
def _no_curve(monkeypatch):
    """Leave out the picture, which takes longer than a run."""
    monkeypatch.setattr(curve, "plot_curve", lambda *_, **__: None)


@pytest.fixture(scope="module")
def whole(recorded, tmp_path_factory):
    """Return the folder and the priorities of a run of CONFIG that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(recorded, folder / "chain.replay")
    with pytest.MonkeyPatch.context() as patch, ReplayStore.open(folder / "chain.replay", mode="a") as store:
        patch.setattr(curve, "plot_curve", lambda *_, **__: None)
        run(store, folder / "out")
        return folder / "out", np.concatenate(list(store.priorities()))


def run(store, folder, config=CONFIG, **options):
    return train(store, folder, config, env_factory=make_env, progress=False, **options)


def reopen(store):
    store.close()
    return ReplayStore.open(store.path, mode="a")


def assert_same_run(one, other):
    """Compare two runs' final states, and their metrics but for the clock."""
    first, second = read_checkpoint(one), read_checkpoint(other)
    assert first.updates == second.updates
    for part in ("network", "target"):
        for name, value in first.learner[part].items():
            assert torch.equal(value, second.learner[part][name]), name
    moments = zip(
        first.learner["optimizer"]["state"].values(),
        second.learner["optimizer"]["state"].values(),
        strict=True,
    )
    for mine, theirs in moments:
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"])
    clock = {"updates_per_second", "data_wait_share"}
    metrics = [
        [{k: v for k, v in record.items() if k not in clock} for record in read_metrics(folder)]
        for folder in (one, other)
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("prioritized", [True, False])
def test_it_learns_the_chain(make_copy, tmp_path, prioritized):
    """From random walks alone, the greedy policy walks straight to the end."""
    config = replace(CONFIG, updates=400, prioritized=prioritized, eval_max_steps=STATES - 1)
    seen = []
    report = run(make_copy(), tmp_path / "out", config, on_report=seen.append)
    assert report.eval_returns == [1.0, 1.0, 1.0]
    assert report.eval_return_mean == 1.0
    assert (report.updates, report.interrupted) == (400, False)
    assert report.updates_per_second > 0
    assert 0 <= report.data_wait_share <= 1
    assert seen == read_metrics(tmp_path / "out")
    policy = load_policy(tmp_path / "out")
    states = np.eye(STATES, dtype=np.float32)[: STATES - 1]
    assert policy(states, 0.0, np.random.default_rng(0)).tolist() == [1] * (STATES - 1)
    values = policy.network(torch.as_tensor(states)).max(1).values.detach().numpy()
    assert values == pytest.approx(0.99 ** np.arange(STATES - 2, -1, -1), abs=0.15)


def test_the_metrics_name_what_is_watched(make_copy, tmp_path):
    """Every train line has the same numbers; evaluations have their returns."""
    run(make_copy(), tmp_path)
    records = read_metrics(tmp_path)
    trained = [record for record in records if record["kind"] == "train"]
    assert [record["update"] for record in trained] == [10, 20, 30, 40, 50, 60]
    expected = {
        "kind",
        "update",
        "loss",
        "mean_q",
        "td_error",
        "grad_norm",
        "learning_rate",
        "updates_per_second",
        "data_wait_share",
    }
    assert all(set(record) == expected for record in trained)
    evaluated = [record for record in records if record["kind"] == "evaluation"]
    assert [record["update"] for record in evaluated] == [20, 40, 60]
    assert all(len(record["eval_returns"]) == 3 for record in evaluated)


def test_same_seed_same_run_on_the_same_store(make_copy, tmp_path):
    """A run forgets the priorities of the one before; another seed is another run."""
    store = make_copy()
    run(store, tmp_path / "a")
    run(store, tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    run(store, tmp_path / "c", replace(CONFIG, seed=1))
    weights = [read_checkpoint(tmp_path / x).learner["network"]["trunk.0.weight"] for x in "ac"]
    assert not torch.equal(*weights)


def test_a_crashed_run_resumes_bit_for_bit(make_copy, tmp_path, whole):
    """What came after the last checkpoint is done again, and ends as if nothing had happened."""

    def crash(record):
        if record["update"] == 50:
            raise OSError("power cut")

    store = make_copy()
    with pytest.raises(OSError, match="power cut"):
        run(store, tmp_path / "out", on_report=crash)
    assert read_checkpoint(tmp_path / "out").updates == 40
    store = reopen(store)
    report = run(store, tmp_path / "out", resume=True)
    assert report.updates == 60
    assert_same_run(whole[0], tmp_path / "out")
    assert np.array_equal(whole[1], np.concatenate(list(store.priorities())))
    store.close()


@pytest.mark.parametrize(("number", "prioritized"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_an_interrupted_run_resumes_bit_for_bit(make_copy, tmp_path, whole, number, prioritized):
    """A signal ends the run after the update, with a checkpoint that goes on exactly."""
    handler = signal.getsignal(number)
    config = replace(CONFIG, prioritized=prioritized)
    expected = whole[0]
    if not prioritized:
        expected = tmp_path / "whole"
        run(make_copy("whole.replay"), expected, config)

    def interrupt(record):
        if record["update"] == 30:
            os.kill(os.getpid(), number)

    store = make_copy()
    report = run(store, tmp_path / "out", config, on_report=interrupt)
    assert report.interrupted
    assert report.updates == 30
    assert report.eval_return_mean is None
    assert signal.getsignal(number) == handler
    store = reopen(store)
    run(store, tmp_path / "out", config, resume=True)
    assert_same_run(expected, tmp_path / "out")
    store.close()


@pytest.mark.parametrize("at", [20, 40, 60])
def test_an_evaluation_that_a_signal_cut_off_is_done_after_all(make_copy, tmp_path, whole, at):
    """The resumed run has every point of the curve."""
    done = []

    def make_nervous(env_id, *, seed):
        env = make_env(env_id, seed=seed)
        step = env.step

        def nervous(action):
            if len(read_metrics(tmp_path / "out")) >= at // 10 + at // 20 - 1 and not done:
                done.append(os.kill(os.getpid(), signal.SIGTERM))
            return step(action)

        env.step = nervous
        return env

    store = make_copy()
    report = train(store, tmp_path / "out", CONFIG, env_factory=make_nervous, progress=False)
    assert (report.updates, report.interrupted) == (at, True)
    assert report.eval_return_mean is None
    store = reopen(store)
    assert not run(store, tmp_path / "out", resume=True).interrupted
    assert_same_run(whole[0], tmp_path / "out")
    store.close()


@pytest.mark.parametrize("step", ["write_next", "commit", "promote"])
def test_a_crash_while_saving_loses_nothing(make_copy, tmp_path, monkeypatch, whole, step):
    """Whichever of the three steps of a checkpoint is the last, the run goes on exactly."""
    store = make_copy()
    place = store if step == "commit" else checkpoints
    original, calls = getattr(place, step), []

    def cut(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("power cut")
        return original(*arguments)

    monkeypatch.setattr(place, step, cut)
    with pytest.raises(OSError, match="power cut"):
        run(store, tmp_path / "out")
    monkeypatch.setattr(place, step, original)
    store = reopen(store)
    run(store, tmp_path / "out", resume=True)
    assert_same_run(whole[0], tmp_path / "out")
    store.close()


def test_a_finished_run_can_be_resumed_further(make_copy, tmp_path):
    """Resuming does nothing twice: updates are counted over all calls, evaluations are recalled."""
    store = make_copy()
    first = run(store, tmp_path)
    again = run(store, tmp_path, resume=True)
    assert (again.updates, again.updates_per_second) == (60, 0.0)
    assert again.eval_returns == first.eval_returns
    longer = run(store, tmp_path, replace(CONFIG, updates=80), resume=True)
    assert longer.updates == 80
    updates = [(record["kind"], record["update"]) for record in read_metrics(tmp_path)]
    assert len(updates) == len(set(updates)) == 8 + 4


def test_resume_without_a_checkpoint_starts(make_copy, tmp_path):
    """The same command can be given the first time too."""
    assert run(make_copy(), tmp_path, resume=True).updates == 60


def test_a_folder_with_a_run_is_not_overwritten(make_copy, tmp_path):
    """A second run in the same folder needs to say that it resumes."""
    store = make_copy()
    run(store, tmp_path)
    with pytest.raises(TrainingError, match="there is a training run already") as error:
        run(store, tmp_path)
    assert "--resume" in error.value.hint


def test_resuming_with_other_options_is_refused(make_copy, tmp_path):
    """The message names each option with both values."""
    store = make_copy()
    run(store, tmp_path)
    changed = replace(CONFIG, n_step=5, hidden=(8,))
    with pytest.raises(TrainingError, match=r"n_step 2 against 5; hidden \(16,\) against \(8,\)"):
        run(store, tmp_path, changed, resume=True)


def test_resuming_with_another_store_is_refused(make_copy, tmp_path):
    """A store with other steps, or with the priorities of another run, does not fit."""
    store = make_copy()
    run(store, tmp_path / "out")
    spec = StepSpec.from_spaces(Box(0, 1, (7,), np.float32), Discrete(2))
    with ReplayStore.create(tmp_path / "other.replay", spec) as other:
        with other.writer() as writer:
            writer.write_episode(np.zeros((3, 7), np.float32), [0, 1], [0, 0], [0, 1], [0, 0])
        with pytest.raises(TrainingError, match=r"observation: shape \[5\] against \[7\]"):
            run(other, tmp_path / "out", resume=True)
    with pytest.raises(TrainingError, match="last training commit is of no training run"):
        run(make_copy("fresh.replay"), tmp_path / "out", resume=True)
    run(store, tmp_path / "later")
    with pytest.raises(TrainingError, match="do not belong together"):
        run(store, tmp_path / "out", resume=True)


def test_stores_that_cannot_be_learned_from(make_copy, tmp_path):
    """Empty, read-only, or with actions DQN cannot choose: said before anything is made."""
    empty = ReplayStore.create(tmp_path / "empty.replay", SPEC)
    with empty, pytest.raises(NotEnoughStepsError, match="no transition to learn from"):
        run(empty, tmp_path / "out")
    with ReplayStore.open(make_copy().path) as reading, pytest.raises(ReadOnlyError, match="mode='r'"):
        run(reading, tmp_path / "out")
    spec = StepSpec.from_spaces(Box(0, 1, (2,), np.float32), Box(0, 1, (2,), np.float32))
    with ReplayStore.create(tmp_path / "continuous.replay", spec) as other:
        with other.writer() as writer:
            writer.write_episode(np.zeros((2, 2), np.float32), np.zeros((1, 2), np.float32), [0], [1], [0])
        with pytest.raises(SpecMismatchError, match="needs a single Discrete action"):
            run(other, tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_a_diverged_run_leaves_the_last_checkpoint(make_copy, tmp_path):
    """A loss that is not finite ends the run, and never gets into a checkpoint."""
    config = replace(CONFIG, learning_rate=1e30, final_learning_rate=1e30, huber=False)
    for prioritized in (True, False):
        with pytest.raises(TrainingError, match="not finite any more"):
            run(make_copy(f"{prioritized}.replay"), tmp_path, replace(config, prioritized=prioritized))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_without_an_environment_nothing_is_evaluated(make_copy, tmp_path):
    """Data from elsewhere can be learned from all the same."""
    report = run(make_copy(), tmp_path, replace(CONFIG, eval_episodes=0))
    assert (report.eval_return_mean, report.eval_returns) == (None, [])
    assert all(record["kind"] == "train" for record in read_metrics(tmp_path))
    assert report.to_json()["updates"] == 60


def test_the_curve_is_drawn(make_copy, tmp_path, monkeypatch):
    """At the end, from the metrics."""
    drawn = []
    monkeypatch.setattr(curve, "plot_curve", lambda *given, **_: drawn.append(given))
    run(make_copy(), tmp_path)
    assert drawn == [(read_metrics(tmp_path), tmp_path / "curve.png")]


def test_the_progress_bar_goes_to_stderr(make_copy, tmp_path, capfd):
    """Standard output stays free for the result."""
    train(make_copy(), tmp_path, CONFIG, env_factory=make_env)
    out, err = capfd.readouterr()
    assert out == ""
    assert "60/60" in err
    assert "data wait" in err


def test_torch_is_left_as_it_was(make_copy, tmp_path):
    """Neither the global generator nor the number of threads changes."""
    before = torch.get_rng_state(), torch.get_num_threads()
    run(make_copy(), tmp_path)
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.get_num_threads() == before[1]


def test_target_network_is_copied_every_n_updates(make_copy):
    """Between copies it does not move."""
    store = make_copy()
    learner = Learner(SPEC, replace(CONFIG, target_every=3))
    sampler = UniformSampler(store, seed=0)
    kept = learner.target.state_dict()["trunk.0.weight"].clone()
    for number in range(7):
        arrays = store.read(sampler.draw(8).step_ids)
        fields = {name: torch.as_tensor(getattr(arrays, name)) for name in type(arrays).__slots__}
        learner.update(type(arrays)(**fields), number)
        now = learner.target.state_dict()["trunk.0.weight"]
        online = learner.network.state_dict()["trunk.0.weight"]
        if (number + 1) % 3 == 0:
            assert torch.equal(now, online)
            kept = now.clone()
        else:
            assert torch.equal(now, kept)
            assert not torch.equal(now, online)


def test_a_store_that_names_a_module_is_not_followed(make_copy, tmp_path):
    """What a store from elsewhere says must not run code; without an evaluation nothing asks for it."""
    store = make_copy()
    store.update_metadata({"env_id": "module_beside_the_store:X-v0"})
    with pytest.raises(TrainingError, match="module_beside_the_store") as error:
        run(store, tmp_path / "a")
    assert "--eval-env" in error.value.hint
    assert run(store, tmp_path / "b", replace(CONFIG, eval_episodes=0)).updates == 60


def test_a_run_that_goes_on_elsewhere_is_left_alone(make_copy, tmp_path):
    """The same command given twice: the second one takes away no checkpoint that is about to count."""
    store = make_copy()
    run(store, tmp_path / "out")
    checkpoints.write_next(tmp_path / "out", replace(read_checkpoint(tmp_path / "out"), updates=80))
    store = reopen(store)
    with ReplayStore.open(store.path, mode="a") as other:
        sampler = PrioritizedSampler(other, resume=True)
        with pytest.raises(StoreLockedError):
            run(store, tmp_path / "out", replace(CONFIG, updates=80), resume=True)
        assert (tmp_path / "out" / checkpoints.NEXT_NAME).exists()
        del sampler
    store = reopen(store)
    assert run(store, tmp_path / "out", resume=True).updates == 60
    assert not (tmp_path / "out" / checkpoints.NEXT_NAME).exists()
    store.close()


@pytest.mark.parametrize("prioritized", [True, False])
def test_warming_up_draws_no_other_batches(make_copy, prioritized):
    """The batch that was drawn to warm up comes first, and all those after it are the same."""

    def drawn(name, *, warm):
        with make_copy(name) as store:
            batches = Batches(store, replace(CONFIG, prioritized=prioritized))
            if warm:
                batches.warm_up()
            found = []
            for number in range(8):
                batch = batches.next()
                batches.set_priorities(batch, torch.arange(16.0) + number)
                found.append(batch.step_ids.tolist())
            assert batches.delivered == 8
            batches.close()
        return found

    assert drawn("warm.replay", warm=True) == drawn("cold.replay", warm=False)


@pytest.mark.parametrize("device", ["meta", "nonsense", "", "cpu:-1", "hpu", "mkldnn"])
def test_a_device_that_torch_lacks_is_named(device):
    """Also one that has no numbers; in one line."""
    with pytest.raises(TrainingError, match=f"^device '{device}': [^\\n]+$") as error:
        Learner(SPEC, replace(CONFIG, device=device))
    assert "--device cpu" in error.value.hint


def test_a_sampler_that_others_used_meanwhile_is_not_the_runs(make_copy, tmp_path):
    """Priorities, random numbers and beta are those of other batches."""
    store = make_copy()
    run(store, tmp_path)
    store = reopen(store)
    sampler = PrioritizedSampler(store, seed=0)
    sampler.draw(8)
    store.commit()
    del sampler
    with pytest.raises(TrainingError, match="somebody else"):
        run(store, tmp_path, replace(CONFIG, updates=80), resume=True)
