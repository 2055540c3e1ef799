"""Tail records: merged as they become many, and always the same rows, to the writer's heir and to who looks on."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from diskreplay.storage import layout
from diskreplay.storage.fields import Field
from diskreplay.storage.tail import FAN, MERGED_BYTES, Tail

FIELDS = (
    Field("observation", (2,), "float32", "observation", hot=True),
    Field("action", (), "int64", "action", hot=True),
    Field("reward", (), "float32", "outcome", hot=True),
    Field("terminated", (), "bool", "outcome", hot=False),
    Field("truncated", (), "bool", "outcome", hot=False),
    Field("is_last", (), "bool", "mark", hot=False),
    Field("episode", (), "int64", "mark", hot=False, fill=-1),
)
STEPS = 64


class Records(dict[int, bytes]):
    """What the index holds of a tail: payloads by first row."""

    def take(self, row: int, payload: bytes) -> None:
        for old in [first for first in self if first >= row]:
            del self[old]
        self[row] = payload

    def read(self, tail: Tail) -> None:
        start = max((row for row in self if row <= tail.rows), default=0)
        for row in sorted(row for row in self if row >= start):
            tail.apply(self[row], "the tail", again=True)


def same(one: Tail, other: Tail) -> bool:
    rows = one.rows + one.pending
    return (
        (one.rows, one.pending, one.n_ends, one.running) == (other.rows, other.pending, other.n_ends, other.running)
        and all((one.arrays[f.name][: one.rows] == other.arrays[f.name][: one.rows]).all() for f in FIELDS)
        and bool((one.arrays["observation"][:rows] == other.arrays["observation"][:rows]).all())
        and bool((one.episodes[: one.n_ends] == other.episodes[: one.n_ends]).all())
        and bool((one.ends[: one.n_ends] == other.ends[: one.n_ends]).all())
        and bool((one.flags[: one.n_ends] == other.flags[: one.n_ends]).all())
    )


class World:
    """A writer, who follows it, and what was committed."""

    def __init__(self) -> None:
        self.tail, self.follower, self.committed = (Tail(0, FIELDS, STEPS) for _ in range(3))
        self.records = Records()
        self.number = 0.0

    def act(self) -> None:
        if not self.tail.pending:
            self.observe()
        self.tail.act([1], self.number, terminated=False, truncated=False)
        if not self.tail.full:
            self.observe()

    def observe(self) -> None:
        self.number += 1
        self.tail.observe([np.full(2, self.number)])

    def end(self) -> None:
        if self.tail.pending and self.tail.running.length:
            self.tail.finish(layout.TRUNCATED)

    def commit(self, *, known: bool = True) -> None:
        if self.tail.dirty:
            self.records.take(*self.tail.record())
            if known:
                self.tail.mark_committed()
            self.committed = self.read()
            assert same(self.tail, self.committed)

    def unclear(self) -> None:
        self.commit(known=False)

    def look(self) -> None:
        self.records.read(self.follower)
        assert same(self.follower, self.committed)

    def heir(self) -> None:
        self.tail = self.read()
        assert same(self.tail, self.committed)

    def read(self) -> Tail:
        tail = Tail(0, FIELDS, STEPS)
        self.records.read(tail)
        return tail


ACTS = [World.act] * 3 + [World.commit] * 2 + [World.end, World.unclear, World.look, World.heir]


@settings(deadline=None)
@given(acts=st.lists(st.sampled_from(ACTS), max_size=90))
def test_what_is_committed_is_read(acts):
    """By readers that follow, whatever was merged meanwhile, and by a writer that goes on from it."""
    world = World()
    for act in acts:
        if not world.tail.full:
            act(world)


def test_records_are_few():
    """Committed after every step, a tail has at most FAN of a size, and rows are written once for each size."""
    tail, records, written = Tail(0, FIELDS, 4096), Records(), 0
    tail.observe([np.zeros(2)])
    for number in range(4095):
        tail.act([number], 0.0, terminated=False, truncated=False)
        tail.observe([np.zeros(2)])
        row, payload = tail.record()
        written += tail.rows - row
        records.take(row, payload)
        tail.mark_committed()
        assert len(records) <= FAN * 5
    assert written <= 4096 * 5


def test_large_rows_are_not_written_again_and_again():
    """Merging stops at MERGED_BYTES."""
    fields = (Field("observation", (MERGED_BYTES // 8,), "uint8", "observation", hot=True), *FIELDS[1:])
    tail, starts = Tail(0, fields, 64), []
    tail.observe([np.zeros(MERGED_BYTES // 8)])
    for number in range(60):
        tail.act([number], 0.0, terminated=False, truncated=False)
        tail.observe([np.zeros(MERGED_BYTES // 8)])
        starts.append(tail.record()[0])
        tail.mark_committed()
        assert tail.rows - starts[-1] <= 8
