import json

import pytest

KEYS = {
    "path", "format_version", "steps", "transitions", "episodes", "streams", "segments",
    "bytes_on_disk", "bytes_raw", "compression_ratio", "fields", "reward", "episode_return",
    "episode_length", "priority",
}  # fmt: skip


def test_stats_prints_a_table(cli, store):
    result = cli("stats", store)
    assert result.exit_code == 0
    assert "environment  CartPole-v1" in result.stdout
    assert result.stderr == ""


def test_stats_json_is_one_object(cli, store):
    result = cli("stats", store, "--json")
    assert result.exit_code == 0
    stats = json.loads(result.stdout)
    assert stats.keys() >= KEYS
    assert (stats["steps"], stats["reward"]["mean"]) == (400, 1.0)


def test_stats_plots_into_a_file(cli, store, tmp_path):
    file = tmp_path / "plots" / "s.png"
    result = cli("stats", store, "--json", "--plot", file)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["steps"] == 400
    assert result.stderr == f"plot: {file}\n"
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_plot_is_never_written_over_the_store(cli, store, tmp_path):
    """It was, over a shard, and with it over that shard's backups, which are links."""
    shard = next(store.glob("steps/observation/c*0*"))
    kept = tmp_path / "backup"
    kept.hardlink_to(shard)
    data = shard.read_bytes()
    result = cli("stats", store, "--plot", shard)
    assert result.exit_code == 2
    assert "inside the store" in result.stderr
    assert cli("stats", store, "--plot", kept).exit_code == 0
    assert shard.read_bytes() == data
    assert kept.read_bytes().startswith(b"\x89PNG")


def test_a_path_that_is_no_store(cli, check_error, tmp_path):
    check_error(cli("stats", tmp_path / "none"), tmp_path / "none")
    (tmp_path / "file").write_text("hello")
    check_error(cli("stats", tmp_path / "file"), "not a replay store")
    check_error(cli("stats", tmp_path), "not a replay store")


def test_a_plot_that_cannot_be_written(cli, store, tmp_path):
    (tmp_path / "file").write_text("hello")
    result = cli("stats", store, "--plot", tmp_path / "file" / "s.png")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert cli("stats", store, "--plot", tmp_path).exit_code == 2


def test_another_format_version(cli, check_error, store):
    group = store / "zarr.json"
    content = json.loads(group.read_text())
    content["attributes"] = json.loads(
        json.dumps(content["attributes"]).replace('"format_version": 1', '"format_version": 99')
    )
    group.write_text(json.dumps(content))
    check_error(cli("stats", store), "99")


@pytest.mark.parametrize("arguments", [(), ("a", "b"), ("a", "--plot")])
def test_wrong_usage(cli, arguments):
    assert cli("stats", *arguments).exit_code == 2
