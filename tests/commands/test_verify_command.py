import json

import pytest


def damage(store, field="reward"):
    file = next((store / "steps" / field).glob("c.*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def test_a_sound_store(cli, store):
    result = cli("verify", store)
    assert result.exit_code == 0
    assert "nothing is wrong" in result.stdout
    assert "GB/s" in result.stdout
    assert result.stderr == ""


def test_findings_make_exit_status_3(cli, store):
    file = damage(store)
    result = cli("verify", store)
    assert result.exit_code == 3
    assert str(file) in result.stdout
    assert "1 problem; see `diskreplay repair`" in result.stdout
    assert "Traceback" not in result.output


def test_json_is_one_object(cli, store):
    file = damage(store)
    result = cli("verify", store, "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found.keys() == {"store", "ok", "problems", "bytes", "seconds", "gigabytes_per_second"}
    assert found["ok"] is False
    assert found["problems"] == [
        {"kind": "damaged file", "where": str(file), "what": "its crc32 is not the one committed"}
    ]
    assert found["bytes"] > 0


def test_quick_reads_no_file(cli, store):
    damage(store)
    result = cli("verify", store, "--quick", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["bytes"] == 0
    next((store / "steps" / "reward").glob("c.*")).unlink()
    assert cli("verify", store, "--quick").exit_code == 3


def test_leftovers_alone_are_notes(cli, store):
    (store / "steps" / "reward" / "c.999").write_bytes(b"x")
    result = cli("verify", store)
    assert result.exit_code == 0
    assert "c.999" in result.stdout
    assert "1 file that nothing names; nothing is lost" in result.stdout


@pytest.mark.parametrize("content", [b"", b"x" * 50_000])
def test_an_index_that_cannot_be_read_is_a_finding(cli, store, content):
    (store / "index.lmdb" / "data.mdb").write_bytes(content)
    result = cli("verify", store, "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["problems"][0]["kind"] == "damaged record"


def test_a_path_that_is_no_store(cli, check_error, tmp_path):
    check_error(cli("verify", tmp_path / "none"), tmp_path / "none")
    check_error(cli("verify", tmp_path), "not a replay store")
