"""The table of live segments against a twin that is rebuilt from scratch after every change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diskreplay.storage import layout, table
from diskreplay.storage.table import SegmentTable

STEPS = 16
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "fill", "cut", "look", "mark"]), st.integers(0, 40), st.integers(1, STEPS)
    ),
    max_size=60,
)


def record(segment, rows, previous=-1):
    made = np.zeros(1, layout.SEGMENT)
    made["segment"], made["rows"], made["previous"], made["ends"] = segment, rows, previous, rows // 5
    made["first_end"] = made["last_end"] = -1
    return made


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, loaded=st.sets(st.integers(0, 40), max_size=20), remembered=st.sampled_from([2, 1 << 16]))
def test_it_is_what_a_rebuilt_one_is(monkeypatch, changes, loaded, remembered):
    """Order, counts, ranks, changes since a version; slots are the smallest that are free."""
    monkeypatch.setattr(table, "REMEMBERED", remembered)
    mine, twin, marks = SegmentTable([], STEPS), {}, []
    if loaded:
        mine.add_sealed(np.concatenate([record(segment, 1 + segment % STEPS) for segment in sorted(loaded)]))
        twin = {segment: (slot, 1 + segment % STEPS) for slot, segment in enumerate(sorted(loaded))}
    for what, segment, rows in changes:
        if what == "add" and segment not in twin:
            free = min(set(range(len(twin) + 1)) - {slot for slot, _ in twin.values()})
            assert mine.add(segment, 0, -1) == free
            twin[segment] = free, 0
        elif what == "look":
            check(mine, twin)
        elif what == "mark":
            marks.append((mine.version, dict(twin)))
        elif segment in twin and what == "remove":
            assert mine.remove(segment) == twin.pop(segment)[0]
        elif segment in twin and what == "fill":
            mine.fill(twin[segment][0], record(segment, rows)[0])
            twin[segment] = twin[segment][0], rows
    check(mine, twin)
    for version, before in marks:
        changed = mine.changed_since(version)
        if changed is None:
            assert remembered == 2
        else:
            assert set(changed) >= {s for s in {*before, *twin} if before.get(s) != twin.get(s)}
    assert mine.changed_since(mine.version) == []


def check(mine, twin):
    order = sorted(twin)
    assert mine.segment[mine.live()].tolist() == order
    assert mine.live().tolist() == [twin[segment][0] for segment in order]
    counts = [twin[segment][1] - twin[segment][1] // 5 for segment in order]
    assert mine.transitions == sum(counts)
    assert mine.transitions_until().tolist() == np.cumsum(counts, dtype=np.int64).tolist()
    assert mine.find(np.arange(41)).tolist() == [twin.get(segment, (-1,))[0] for segment in range(41)]


def test_many_at_once_are_linked_like_one_by_one():
    """The second has nobody before it any more; the third follows the first."""
    records = np.concatenate([record(3, 16), record(5, 16, 4), record(9, 7, 3)])
    at_once, one_by_one = SegmentTable([], STEPS), SegmentTable([], STEPS)
    at_once.add_sealed(records)
    for each in records:
        one_by_one.fill(one_by_one.add(int(each["segment"]), 0, int(each["previous"])), each)
    for name in table._COLUMNS:
        if name != "used":
            assert getattr(at_once, name)[:3].tolist() == getattr(one_by_one, name)[:3].tolist(), name
    assert at_once.following[:3].tolist() == [2, -1, -1]
    with pytest.raises(ValueError, match="read-only"):
        at_once.live()[0] = 1
