"""Stores whose index names segments of which no row was ever written: what opening and drawing cost at any size."""

from __future__ import annotations

import numpy as np

from diskreplay import ArraySpec, ReplayStore, StepSpec
from diskreplay.storage import layout
from diskreplay.storage.coding import choose_coding
from diskreplay.storage.fields import fields_of
from diskreplay.storage.index import Index

SPEC = StepSpec(ArraySpec("observation", (3,), "float32"), ArraySpec("action", (), "int64", "discrete", n=3))


def fabricate(path, segments, *, segment_steps=4096, sampler="prioritized", alpha=0.6, priorities=None):
    """Make a store of so many full segments of one stream; each is an episode without an end.

    Args:
        path: Where.
        segments: How many.
        segment_steps: Rows of each.
        sampler: Under which name each row has the priority 1; None: there are no priorities.
        alpha: That sampler's.
        priorities: Segments whose priorities lie in the index; None: all.
    """
    with ReplayStore.create(path, SPEC, segment_steps=segment_steps):
        pass
    fields = fields_of(SPEC)
    codings = {
        item.name: choose_coding(
            item, np.zeros((16, *item.shape), item.dtype), segment_steps=segment_steps, compression="none"
        )
        for item in fields
    }
    chunks = sum(segment_steps // coding.chunk_steps for coding in codings.values())
    records = np.zeros(segments, layout.SEGMENT)
    records["segment"] = records["seal"] = np.arange(segments)
    records["previous"] = np.arange(segments) - 1
    records["rows"], records["bytes_on_disk"] = segment_steps, segment_steps * 30
    records["first_end"] = records["last_end"] = -1
    keys = [layout.segment_key(segment) for segment in range(segments)]
    index = Index(path / layout.INDEX, synced=False)
    with index.write() as txn:
        txn.put_json("meta", b"fields", {name: coding.to_json() for name, coding in codings.items()})
        counters = txn.counters()
        counters["next_segment"] = counters["seals"] = segments
        counters["next_stream"], counters["transitions"] = 1, segments * segment_steps
        counters["bytes_on_disk"] = int(records["bytes_on_disk"].sum())
        counters["commits"] += 1
        txn.put_counters(counters)
        stream = {"name": "a", "last_segment": segments - 1, "tails": [], "pinned": False}
        txn.put_json("streams", layout.stream_key(0), {**stream, "steps": segments * segment_steps, "episodes": 0})
        files = np.zeros(len(fields), layout.FILE).tobytes()
        put_many(txn, "segments", keys, [record.tobytes() for record in records])
        put_many(txn, "seals", keys, keys)
        put_many(txn, "files", keys, [files] * segments)
        put_many(txn, "checks", keys, [bytes(4 * chunks)] * segments)
        put_many(txn, "episodes", keys, [b""] * segments)
        if sampler is not None:
            put_sampler(txn, sampler, alpha, segments, segment_steps, priorities)
    index.close()
    return path


def put_sampler(txn, name, alpha, segments, segment_steps, priorities):
    """Give every row the priority 1."""
    state = {"kind": "PrioritizedSampler", "random": np.random.default_rng(0).bit_generator.state}
    state |= {"batches": 0, "in_flight": [], "alpha": alpha, "largest": 1.0, "stale": 0}
    txn.put_json("samplers", name.encode(), state)
    totals = np.diff(np.append(np.arange(0, segment_steps, layout.PRIORITY_BLOCK), segment_steps)).astype(np.float64)
    blocks = [layout.priorities_payload(0, np.ones(int(rows), np.float32)) for rows in totals]
    checks = {}
    for segment in range(segments) if priorities is None else sorted(priorities):
        keys = [layout.priority_key(name, segment, block) for block in range(len(blocks))]
        checks[segment] = put_many(txn, "priorities", keys, blocks)
    put_many(
        txn,
        "sums",
        [layout.sum_key(name, segment) for segment in range(segments)],
        [sums_of(place, totals, checks.get(place, 0)) for place in range(segments)],
    )


def put_many(txn, database, keys, payloads):
    """Write records whose keys ascend, and follow all that are there; return their checksums."""
    values = [layout.seal_record(database, key, payload) for key, payload in zip(keys, payloads, strict=True)]
    txn.txn.cursor(db=txn.databases[database]).putmulti(list(zip(keys, values, strict=True)), append=True)
    for value in values:
        txn._note(database, None, value)
    return [layout.record_checksum(value) for value in values]


def sums_of(place, totals, checks):
    """Return SUM records of rows that all have the priority 1."""
    sums = np.zeros(len(totals), layout.SUM)
    sums["total"], sums["place"], sums["rows"], sums["check"] = totals, place, totals, checks
    return sums.tobytes()
