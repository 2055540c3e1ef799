"""A store that several suites of the loader read, or damage."""

from __future__ import annotations

import pytest

from tests.conftest import fill


@pytest.fixture
def store(make_store):
    """Return an open store of sealed segments and a tail, one stream, episodes of 10 steps; closed at the end."""
    store = make_store(segment_steps=16)
    fill(store, episodes=20, length=10)
    store.commit()
    yield store
    store.close()
