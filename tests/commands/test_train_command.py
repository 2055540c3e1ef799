import json
import sys
import warnings

import gymnasium
import pytest

from diskreplay import CorruptionWarning
from diskreplay.store import ReplayStore

SMALL = (
    "--updates", 40, "--batch-size", 16, "--eval-episodes", 2, "--eval-every", 0,
    "--checkpoint-every", 20, "--log-every", 10, "--no-tensorboard", "--quiet",
)  # fmt: skip


def test_train_learns_from_a_store_and_its_policy_records_more(cli, store, tmp_path):
    out = tmp_path / "run"
    result = cli("train", store, "--out", out, "--seed", 1, "--json", *SMALL)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["updates"] == 40
    assert len(report["eval_returns"]) == 2
    assert report["eval_return_mean"] == sum(report["eval_returns"]) / 2
    assert 0 <= report["data_wait_share"] <= 1
    assert report["updates_per_second"] > 0
    assert {"checkpoint.pt", "metrics.jsonl"} <= {file.name for file in out.iterdir()}
    stats = json.loads(cli("stats", store, "--json").stdout)
    assert stats["priority"]["count"] == 400

    arguments = ("--steps", 50, "--policy", out, "--epsilon", 0.1, "--num-envs", 2)
    result = cli("ingest", store, "gym:CartPole-v1", *arguments)
    assert result.exit_code == 0, result.output
    with ReplayStore.open(store) as opened:
        assert len(opened) == 450
        assert opened.metadata["policy"] == ["random", f"epsilon-greedy 0.1 {out}"]
    assert cli("ingest", tmp_path / "other", "gym:Acrobot-v1", *arguments).exit_code == 1


def test_resume_keeps_the_options_it_was_started_with(cli, store, tmp_path):
    out = tmp_path / "run"
    assert cli("train", store, "--out", out, "--lr", 0.01, *SMALL).exit_code == 0
    result = cli("train", store, "--out", out, "--resume", "--updates", 60, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["updates"] == 60


def test_resume_with_other_options_is_refused(cli, check_error, store, tmp_path):
    out = tmp_path / "run"
    assert cli("train", store, "--out", out, *SMALL).exit_code == 0
    result = cli("train", store, "--out", out, "--resume", "--gamma", 0.5, *SMALL)
    check_error(result, "gamma")
    check_error(cli("train", store, "--out", out, *SMALL), out)


def test_no_evaluation(cli, store, tmp_path):
    result = cli("train", store, "--out", tmp_path / "run", "--eval-env", "none", *SMALL, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["eval_return_mean"] is None
    assert report["eval_returns"] == []


def test_choices_reach_the_run(cli, store, tmp_path):
    result = cli(
        "train", store, "--out", tmp_path / "run", "--sampler", "uniform", "--loss", "mse",
        "--no-double", "--dueling", "--cql", 0.5, *SMALL,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    from diskreplay.learning import read_checkpoint

    config = read_checkpoint(tmp_path / "run").config
    chosen = (config.prioritized, config.huber, config.double, config.dueling, config.cql_alpha)
    assert chosen == (False, False, False, True, 0.5)
    assert config.batch_size == 16


def test_unknown_evaluation_environment(cli, check_error, store, tmp_path):
    result = cli("train", store, "--out", tmp_path / "run", "--eval-env", "CartPol-v1", *SMALL)
    check_error(result, "unknown environment", "CartPole-v1")


def test_evaluation_environment_of_other_steps(cli, check_error, store, tmp_path):
    result = cli("train", store, "--out", tmp_path / "run", "--eval-env", "Acrobot-v1", *SMALL)
    check_error(result, "Acrobot-v1")


def test_a_path_that_is_no_store(cli, check_error, tmp_path):
    check_error(cli("train", tmp_path / "none", "--out", tmp_path / "run"), tmp_path / "none")
    assert not (tmp_path / "run").exists()


def test_a_store_without_steps(cli, check_error, store, tmp_path):
    with ReplayStore.open(store) as opened:
        ReplayStore.create(tmp_path / "empty", opened.spec, metadata=opened.metadata).close()
    check_error(cli("train", tmp_path / "empty", "--out", tmp_path / "run", *SMALL))


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--out", "run", "--updates", 0),
        ("--out", "run", "--gamma", 1.5),
        ("--out", "run", "--loss", "l1"),
        ("--out", "run", "--sampler", "best"),
        ("--out", "run", "--memory", "8 XB"),
    ],
)
def test_wrong_usage(cli, tmp_path, arguments):
    assert cli("train", tmp_path / "s", *arguments).exit_code == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--n-step", 70_000),
        ("--frame-stack", 70_000),
        ("--batch-size", 20_000_000),
        ("--prefetch", 10**9),
        ("--seed", 2**64),
        ("--updates", 10**30),
        ("--gamma", "nan"),
        ("--lr", "nan"),
        ("--lr", "inf"),
        ("--final-lr", "inf"),
        ("--grad-clip", "nan"),
        ("--cql", "inf"),
        ("--alpha", "nan"),
        ("--beta", "nan"),
    ],
)
def test_numbers_that_no_run_can_have(cli, store, tmp_path, option, value):
    result = cli("train", store, "--out", tmp_path / "run", *SMALL, option, value)
    assert result.exit_code == 2
    assert "expected" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["meta", "nonsense"])
def test_a_device_that_torch_lacks(cli, check_error, store, tmp_path, device):
    result = cli("train", store, "--out", tmp_path / "run", "--device", device, *SMALL)
    check_error(result, f"device '{device}'", "--device cpu")


def test_resume_after_a_kill_before_the_first_checkpoint_had_its_name(cli, store, tmp_path):
    """The store has committed it: its options are those of the run, not the defaults."""
    out = tmp_path / "run"
    assert cli("train", store, "--out", out, "--lr", 0.01, *SMALL).exit_code == 0
    (out / "checkpoint.pt").rename(out / "checkpoint.next.pt")
    result = cli("train", store, "--out", out, "--resume", "--updates", 60, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["updates"] == 60
    from diskreplay.learning import read_checkpoint

    assert read_checkpoint(out).config.learning_rate == 0.01


def test_a_run_without_evaluation_can_be_evaluated_from_a_resume_on(cli, store, tmp_path):
    out = tmp_path / "run"
    assert cli("train", store, "--out", out, "--eval-env", "none", *SMALL).exit_code == 0
    more = ("--resume", "--eval-env", "CartPole-v1", "--json", "--quiet")
    result = cli("train", store, "--out", out, *more, "--updates", 50)
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["eval_returns"]) == 20
    result = cli("train", store, "--out", out, *more, "--updates", 60, "--eval-episodes", 0)
    assert json.loads(result.stdout)["eval_returns"] == []


def test_a_checkpoint_does_not_say_which_module_to_import(cli, check_error, store, tmp_path, monkeypatch):
    (tmp_path / "module_beside.py").write_text(
        "import pathlib, gymnasium\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "gymnasium.register('Beside-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=20)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out, env_id = tmp_path / "run", "module_beside:Beside-v0"
    assert cli("train", store, "--out", out, "--eval-env", env_id, *SMALL).exit_code == 0
    (tmp_path / "ran").unlink()
    monkeypatch.delitem(sys.modules, "module_beside")
    monkeypatch.delitem(gymnasium.registry, "Beside-v0")
    again = ("train", store, "--out", out, "--resume", "--updates", 50, "--quiet")
    check_error(cli(*again), env_id, "--eval-env")
    assert not (tmp_path / "ran").exists()
    assert cli(*again, "--eval-env", env_id).exit_code == 0
    assert (tmp_path / "ran").exists()


def test_a_run_inside_the_store_is_refused(cli, store):
    result = cli("train", store, "--out", store / "run")
    assert result.exit_code == 2
    assert "inside the store" in result.stderr


def test_a_damaged_segment_ends_the_run_or_is_left_out(cli, check_error, tmp_path):
    store = tmp_path / "s.replay"
    made = cli("ingest", store, "gym:CartPole-v1", "--steps", 400, "--num-envs", 1, "--segment-steps", 64, "--seed", 0)
    assert made.exit_code == 0
    shard = min(store.glob("steps/observation/c.*"))
    data = bytearray(shard.read_bytes())
    data[10] ^= 0xFF
    shard.write_bytes(data)
    check_error(cli("train", store, "--out", tmp_path / "one", *SMALL), shard.name)
    with warnings.catch_warnings():
        warnings.simplefilter("always", CorruptionWarning)
        result = cli("train", store, "--out", tmp_path / "two", "--on-corruption", "skip", "--json", *SMALL)
    assert result.exit_code == 0, result.output
    segment = int(shard.name.split(".")[1])
    assert f"Warning: segment {segment} is left out" in result.stderr
    assert json.loads(result.stdout)["quarantined"] == [segment]
    stats = cli("stats", store)
    assert f"left out: {segment}" in stats.stdout
    assert cli("verify", store, "--quiet").exit_code == 3
