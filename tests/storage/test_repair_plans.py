"""A plan of repair is of the store that was looked at; and what repair meets at the edges: long keys, lost folders."""

from __future__ import annotations

import shutil

import pytest

from diskreplay import ReplayError, ReplayStore
from diskreplay.storage import layout
from diskreplay.storage.upkeep.repair import apply, plan_repair, repair_store
from diskreplay.storage.upkeep.verify import verify_path
from tests.conftest import fill
from tests.storage.damage import build, check, raw, rows


@pytest.fixture
def path(make_store):
    return build(make_store())


def test_a_rebuilding_of_a_store_that_went_on_is_refused(path):
    """It would have put what was planned in the place of what was committed since."""
    plan = plan_repair(path, rebuild_index=True)
    with ReplayStore.open(path, mode="a") as store:
        fill(store, episodes=2, length=20, stream="later")
        store.commit()
    wanted = rows(path)
    with pytest.raises(ReplayError, match="changed since the plan"):
        apply(plan)
    assert rows(path) == wanted
    assert not (path / layout.LOST).exists()


def test_a_rebuilding_whose_shards_changed_is_refused(path):
    plan = plan_repair(path, rebuild_index=True)
    (path / "steps" / "reward" / "c.4").unlink()
    with pytest.raises(ReplayError, match="changed since the plan"):
        apply(plan)


def test_a_rebuilding_of_what_was_looked_at(path):
    plan = plan_repair(path, rebuild_index=True)
    assert verify_path(path).sound  # looking changes nothing
    apply(plan)
    check(path)


def test_a_meta_page_planned_for_another_state_is_refused(path):
    data = path / layout.INDEX / "data.mdb"
    content = data.read_bytes()
    data.write_bytes(bytes(4096) + content[4096:])
    plan = plan_repair(path)
    assert plan.meta_page is not None
    data.write_bytes(content)
    with ReplayStore.open(path, mode="a") as store:
        fill(store, episodes=1, length=20, stream="later")
        store.commit()
    with pytest.raises(ReplayError, match="changed since the plan"):
        apply(plan)


def test_records_of_keys_longer_than_names_are_set_aside(path):
    """It ended in "File name too long"."""
    key = b"n" * 100 + b"\0" + bytes(400)
    with raw(path) as (txn, databases):
        txn.put(key, b"of nobody", db=databases["priorities"])
    done = repair_store(path)
    kept = list((done.aside / "index" / "priorities").iterdir())
    assert sorted(file.read_bytes() for file in kept) == sorted([b"of nobody", key])
    check(path)


def test_rebuilding_without_a_fields_folder(path):
    """As without --rebuild-index: no segment is whole, so all are set aside; nothing is deleted."""
    shards = {p.relative_to(path) for p in path.rglob("c.*") if p.parent.name != "action"}
    shutil.rmtree(path / "steps" / "action")
    done = repair_store(path, rebuild_index=True)
    assert {p.relative_to(done.aside) for p in done.aside.rglob("c.*")} == shards
    assert any("steps/action holds no shard" in loss.why for loss in done.plan.losses)
    assert verify_path(path).sound
    with ReplayStore.open(path, mode="a") as store:
        assert len(store) == 0
        fill(store, episodes=3, length=20)
        store.seal()
        assert store.verify() == []
