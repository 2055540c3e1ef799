import json
import warnings

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
    ],
)
def test_wrong_usage(cli, tmp_path, arguments):
    assert cli("train", tmp_path / "s", *arguments).exit_code == 2


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
