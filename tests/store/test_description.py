"""zarr.json, which anybody may edit, must say what the index says of the store."""

from __future__ import annotations

import json

import pytest

from diskreplay import CorruptStoreError, FormatVersionError, ReplayStore
from diskreplay.storage.upkeep.repair import apply, plan_repair
from diskreplay.storage.upkeep.verify import verify_path
from tests.conftest import fill


@pytest.fixture
def path(make_store):
    """Return the path of a closed store."""
    store = make_store(segment_steps=16, capacity=1000)
    fill(store, episodes=7, length=9)
    store.commit()
    store.close()
    return store.path


def change(path, **changes):
    """Edit what zarr.json says of the store."""
    document = json.loads((path / "zarr.json").read_bytes())
    document["attributes"]["diskreplay"].update(changes)
    (path / "zarr.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    "changes",
    [{"capacity": {"steps": 16, "bytes": None}}, {"segment_steps": 8}, {"uuid": "another"}, {"compression": "none"}],
)
def test_what_differs_is_refused_and_named(path, changes):
    """A smaller capacity would have the next commit evict the store."""
    with ReplayStore.open(path) as store:
        before = len(store)
    change(path, **changes)
    with pytest.raises(CorruptStoreError, match=next(iter(changes))) as caught:
        ReplayStore.open(path, mode="a")
    assert "repair" in caught.value.hint
    assert not verify_path(path, quick=True).sound
    apply(plan_repair(path))
    assert verify_path(path).sound
    with ReplayStore.open(path) as store:
        assert len(store) == before
        assert store.capacity.steps == 1000


def test_of_two_durabilities_the_stronger_holds(make_store, path):
    """A change that was cut short leaves two; and nobody may switch syncing off by editing a file."""
    change(path, durability="process")
    with ReplayStore.open(path, mode="a") as store:
        assert store.durability == "power"
        assert store._index._environment.synced
        assert store._engine.disk.durability == "power"
    lax = make_store(name="lax.replay", durability="process")
    lax.close()
    change(lax.path, durability="power")
    apply(plan_repair(lax.path))
    with ReplayStore.open(lax.path, mode="a") as store:
        assert store.durability == "power"
    assert verify_path(lax.path).problems == []


@pytest.mark.parametrize("version", ["7", None, True, -1, 1 << 40, 1.0, [1]])
def test_garbage_is_no_other_version_of_the_format(path, version):
    change(path, format_version=version)
    with pytest.raises(CorruptStoreError, match="format version"):
        ReplayStore.open(path)


def test_another_version_of_the_format_is_told(path):
    change(path, format_version=2)
    with pytest.raises(FormatVersionError, match="2"):
        ReplayStore.open(path)
