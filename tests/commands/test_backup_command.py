import json


def test_backup(cli, store, tmp_path):
    result = cli("backup", store, tmp_path / "copy.replay")
    assert result.exit_code == 0
    assert str(tmp_path / "copy.replay") in result.stdout
    assert cli("verify", tmp_path / "copy.replay").exit_code == 0
    one, two = (json.loads(cli("stats", path, "--json").stdout) for path in (store, tmp_path / "copy.replay"))
    assert one["transitions"] == two["transitions"]


def test_json_is_one_object(cli, store, tmp_path):
    done = json.loads(cli("backup", store, tmp_path / "copy.replay", "--json").stdout)
    assert done["path"] == str(tmp_path / "copy.replay")
    assert done["transitions"] == 400
    assert done["linked"] + done["copied"] == 7 * done["segments"]


def test_a_destination_that_is_there(cli, check_error, store, tmp_path):
    check_error(cli("backup", store, tmp_path), "exists already")
    check_error(cli("backup", store, tmp_path / "none" / "copy"), "no such folder")
    check_error(cli("backup", tmp_path / "none", tmp_path / "copy"), "no such store")
