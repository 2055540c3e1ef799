import json

import numpy as np
import pytest

from diskreplay.store import ReplayStore


@pytest.fixture
def archive(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(
        file,
        obs=np.zeros((7, 3), np.float32),
        actions=np.array([0, 1, 0, 1, 0]),
        rewards=np.ones(5),
        terminations=np.array([False, True, False, False, True]),
    )
    return file


def test_ingest_makes_a_store_and_says_what_was_added(cli, tmp_path):
    store = tmp_path / "s.replay"
    result = cli("ingest", store, "gym:CartPole-v1", "--steps", 200, "--seed", 0)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"200 steps of gym:CartPole-v1 added to {store}: ")
    assert "seed 0" in result.stdout
    assert result.stderr == ""
    with ReplayStore.open(store) as opened:
        assert len(opened) == 200
        assert opened.metadata["policy"] == ["random"]


def test_ingest_json_is_one_object(cli, tmp_path):
    result = cli("ingest", tmp_path / "s", "gym:CartPole-v1", "--steps", 50, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["steps"] == report["total_steps"] == 50
    assert report["interrupted"] is False
    assert isinstance(report["seed"], int)


def test_ingest_twice_appends(cli, tmp_path):
    for expected in (60, 120):
        arguments = ("--steps", 60, "--num-envs", 2, "--seed", 0, "--json", "--quiet")
        result = cli("ingest", tmp_path / "s", "gym:CartPole-v1", *arguments)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["total_steps"] == expected


def test_ingest_options_reach_the_store(cli, tmp_path):
    result = cli(
        "ingest", tmp_path / "s", "gym:CartPole-v1", "--steps", 40, "--segment-steps", 16,
        "--capacity", "1000", "--compression", "zstd", "--num-envs", 1, "--no-seal",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    with ReplayStore.open(tmp_path / "s") as store:
        stats = store.stats().to_json()
    assert (stats["segment_steps"], stats["capacity"], stats["streams"]) == (16, 1000, 1)
    assert stats["tail_steps"] > 0


def test_ingest_an_archive(cli, tmp_path, archive):
    result = cli("ingest", tmp_path / "s", f"npz:{archive}", "--map", "observations=obs", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 5
    again = cli("ingest", tmp_path / "s", f"npz:{archive}", "--map", "observations=obs")
    assert again.exit_code == 0
    assert "Note: 5 of its 5 steps were in the store already." in again.stderr


def test_unknown_environment(cli, check_error, tmp_path):
    result = cli("ingest", tmp_path / "s", "gym:CartPol-v1")
    check_error(result, "unknown environment 'CartPol-v1'", "CartPole-v1")
    assert list(tmp_path.iterdir()) == []


def test_unknown_scheme(cli, check_error, tmp_path):
    check_error(cli("ingest", tmp_path / "s", "minary:x"), "unknown source 'minary:x'", "gym:ID")
    check_error(cli("ingest", tmp_path / "s", "CartPole-v1"), "write gym:CartPole-v1")


def test_a_path_that_is_no_store(cli, check_error, tmp_path):
    (tmp_path / "file").write_text("hello")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder"):
        result = cli("ingest", tmp_path / name, "gym:CartPole-v1", "--steps", 10)
        check_error(result, tmp_path / name)
    assert (tmp_path / "file").read_text() == "hello"
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_folder_that_does_not_exist(cli, check_error, tmp_path):
    result = cli("ingest", tmp_path / "none" / "s", "gym:CartPole-v1", "--steps", 10)
    check_error(result, tmp_path / "none")


def test_a_store_of_another_environment(cli, check_error, tmp_path):
    cli("ingest", tmp_path / "s", "gym:CartPole-v1", "--steps", 10)
    result = cli("ingest", tmp_path / "s", "gym:Acrobot-v1", "--steps", 10)
    check_error(result, "CartPole-v1", "Acrobot-v1", "one environment per store")


def test_a_store_that_somebody_writes(cli, check_error, tmp_path):
    cli("ingest", tmp_path / "s", "gym:CartPole-v1", "--steps", 10)
    with ReplayStore.open(tmp_path / "s", mode="a") as store, store.writer(stream="env-0"):
        result = cli("ingest", tmp_path / "s", "gym:CartPole-v1", "--steps", 10)
        check_error(result, "env-0")


def test_a_policy_that_is_no_checkpoint(cli, check_error, tmp_path):
    result = cli("ingest", tmp_path / "s", "gym:CartPole-v1", "--policy", tmp_path / "none")
    check_error(result, tmp_path / "none")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    result = cli("ingest", tmp_path / "s", "gym:CartPole-v1", "--policy", tmp_path / "junk.pt")
    check_error(result, tmp_path / "junk.pt")
    assert not (tmp_path / "s").exists()


def test_bad_archives(cli, check_error, tmp_path, archive):
    store = tmp_path / "s"
    check_error(cli("ingest", store, f"npz:{tmp_path}/none.npz"), "none.npz: no such file")
    check_error(cli("ingest", store, f"npz:{tmp_path}"), tmp_path)
    check_error(cli("ingest", store, f"npz:{archive}"), "has no array observations", "--map")
    archive.write_bytes(archive.read_bytes()[:100])
    check_error(cli("ingest", store, f"npz:{archive}"), "not a numpy archive")
    assert not store.exists()


def test_an_impossible_capacity(cli, check_error, tmp_path):
    result = cli("ingest", tmp_path / "s", "gym:CartPole-v1", "--capacity", "lots")
    check_error(result, "capacity must be")
    check_error(cli("ingest", tmp_path / "s", "gym:CartPole-v1", "--capacity", "9" * 400 + "GB"), tmp_path / "s")


def test_a_capacity_for_a_store_that_has_another(cli, check_error, store):
    result = cli("ingest", store, "gym:CartPole-v1", "--capacity", "1GB")
    check_error(result, "has capacity without limit, which cannot become 1GB", "Leave out --capacity")


def test_the_same_archive_with_another_column(cli, check_error, tmp_path, archive):
    assert cli("ingest", tmp_path / "s", f"npz:{archive}", "--map", "observations=obs").exit_code == 0
    other = ("--map", "observations=obs", "--map", "rewards=actions")
    check_error(cli("ingest", tmp_path / "s", f"npz:{archive}", *other), "with other columns", "--map")


@pytest.mark.parametrize("env_id", [".a:X", "..:X", ":X", "a..b:X"])
def test_a_module_that_cannot_be_one(cli, check_error, tmp_path, env_id):
    check_error(cli("ingest", tmp_path / "s", f"gym:{env_id}"), env_id)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("s",),
        ("s", "gym:CartPole-v1", "--steps", 0),
        ("s", "gym:CartPole-v1", "--epsilon", 2),
        ("s", "gym:CartPole-v1", "--epsilon", "nan"),
        ("s", "gym:CartPole-v1", "--num-envs", 2**63),
        ("s", "gym:CartPole-v1", "--num-envs", -1),
        ("s", "gym:CartPole-v1", "--compression", "zip"),
        ("s", "gym:CartPole-v1", "--nonsense"),
        ("s", "gym:CartPole-v1", "--map", "observations=obs"),
        ("s", "gym:CartPole-v1", "--env-id", "CartPole-v1"),
        ("s", "npz:a.npz", "--map", "observations"),
        ("s", "npz:a.npz", "--policy", "random"),
        ("s", "npz:a.npz", "--num-envs", 2),
        ("s", "npz:a.npz", "--async"),
    ],
)
def test_wrong_usage(cli, tmp_path, arguments):
    result = cli("ingest", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr
