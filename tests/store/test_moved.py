"""A store that was moved while it was open: what is written by path must not go into another's folder."""

from __future__ import annotations

import numpy as np
import pytest

from diskreplay import ReplayError, ReplayStore
from tests.conftest import fill


def test_a_handle_whose_store_was_replaced_writes_into_neither(make_store, tmp_path, spec):
    """It would put shards of the one over those of the other."""
    store = make_store("run")
    first = fill(store, episodes=2)
    writer = store.writer("b")
    observations = np.zeros((8, 3), np.float32)
    episode = observations, np.zeros(7, int), np.zeros(7), np.zeros(7, bool), np.zeros(7, bool)
    writer.write_episode(*episode)
    store.commit()
    store.path.rename(tmp_path / "old")
    other = ReplayStore.create(tmp_path / "run", spec, segment_steps=16)
    second = fill(other, episodes=9, seed=1)
    other.commit()
    expected = other.read(second).observation.copy()
    other.close()
    with pytest.raises(ReplayError, match="moved or replaced"):
        fill(store, episodes=1, stream="c")
    with pytest.raises(ReplayError, match="moved or replaced"):
        writer.write_episode(*episode)  # which fills a tail
    for act in (
        store.commit,
        store.seal,
        lambda: store.evict(1),
        lambda: store.writer("c"),
        lambda: store.backup(tmp_path / "b"),
    ):
        with pytest.raises(ReplayError, match="moved or replaced") as caught:
            act()
        assert caught.value.hint
    assert not (tmp_path / "b").exists()
    with ReplayStore.open(tmp_path / "run") as again:
        np.testing.assert_array_equal(again.read(second).observation, expected)
        assert again.verify() == []
    with ReplayStore.open(tmp_path / "old") as again:
        assert len(again) == len(first) + 7
        assert [p for p in again.verify() if p.kind != "orphan"] == []
    (tmp_path / "run").rename(tmp_path / "new")
    (tmp_path / "old").rename(tmp_path / "run")
    store.commit()
    assert len(store) == len(first) + 14


def test_a_store_that_was_moved_goes_on_where_it_is_now(make_store, tmp_path):
    store = make_store("run")
    fill(store, episodes=2)
    store.commit()
    store.path.rename(tmp_path / "elsewhere")
    for act in (store.commit, lambda: store.writer("a")):
        with pytest.raises(ReplayError, match="moved or replaced"):
            act()
    store.close()
    with ReplayStore.open(tmp_path / "elsewhere", mode="a") as again:
        assert len(again) == 20
        fill(again, episodes=1, stream="b")
        again.commit()
        assert len(again) == 30
