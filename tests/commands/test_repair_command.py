import json

from diskreplay import ReplayStore


def lose(store):
    next((store / "steps" / "reward").glob("c.*")).unlink()


def test_nothing_to_repair(cli, store):
    result = cli("repair", store)
    assert result.exit_code == 0
    assert "nothing to repair" in result.stdout
    assert json.loads(cli("repair", store, "--json").stdout)["empty"] is True


def test_without_yes_the_plan_is_shown_and_nothing_done(cli, store):
    lose(store)
    result = cli("repair", store)
    assert result.exit_code == 1
    assert "segment 0" in result.stdout
    assert result.stderr.splitlines()[-1] == "Hint: Pass --yes to do it."
    assert cli("verify", store).exit_code == 3
    assert not (store / "lost+found").exists()
    result = cli("repair", store, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["done"] is False


def test_yes_repairs(cli, store):
    lose(store)
    result = cli("repair", store, "--yes")
    assert result.exit_code == 0
    assert "lost+found" in result.stdout
    assert cli("verify", store).exit_code == 0
    assert cli("repair", store).exit_code == 0


def test_json_says_what_was_done(cli, store):
    lose(store)
    done = json.loads(cli("repair", store, "--yes", "--json").stdout)
    assert done["done"] is True
    assert done["steps_lost"] == 400
    assert (store / "lost+found").as_posix() in done["set_aside_in"]


def test_an_index_that_cannot_be_read(cli, check_error, store):
    (store / "index.lmdb" / "data.mdb").unlink()
    check_error(cli("repair", store), "--rebuild-index")
    assert cli("repair", store, "--rebuild-index", "--yes").exit_code == 0
    assert cli("verify", store).exit_code == 0
    with ReplayStore.open(store) as opened:
        assert opened.streams == ("recovered-0",)


def test_a_store_in_use(cli, check_error, store):
    with ReplayStore.open(store):
        check_error(cli("repair", store), "held by")


def test_a_path_that_is_no_store(cli, check_error, tmp_path):
    check_error(cli("repair", tmp_path), "not a replay store")


def test_a_lost_meta_page_and_what_else_is_wrong_are_repaired_in_one_go(cli, store):
    lose(store)
    data = store / "index.lmdb" / "data.mdb"
    content = data.read_bytes()
    oldest = min((0, 1), key=lambda n: int.from_bytes(content[n * 4096 + 144 : n * 4096 + 152], "little"))
    data.write_bytes(content[: oldest * 4096] + bytes(4096) + content[(oldest + 1) * 4096 :])
    result = cli("repair", store, "--yes")
    assert result.exit_code == 0
    assert f"page {oldest} of the index" in result.stdout
    assert "segment 0" in result.stdout
    assert cli("verify", store).exit_code == 0
    assert cli("repair", store).exit_code == 0
