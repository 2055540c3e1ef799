"""Any value of any record may be anything: opening, verifying, repairing end in an error of ours, or are right."""

from __future__ import annotations

import json
import random
import shutil
import struct

import numpy as np
import pytest

from diskreplay import PrioritizedSampler, ReplayError, ReplayStore, UniformSampler
from diskreplay.storage import layout
from diskreplay.storage.drawn import pack_drawn
from diskreplay.storage.index import Index
from diskreplay.storage.upkeep.repair import repair_store
from diskreplay.storage.upkeep.verify import verify_path
from tests.conftest import fill
from tests.storage.damage import STEPS, build, put, raw

NASTY = (
    "63", "", None, True, False, 0, -1, 1.5, -(1 << 62), 1 << 31, 1 << 63, 10**400, float("inf"), float("nan"),
    [], [[1]], {}, {"a": 1}, "\ud800", "../x",
)  # fmt: skip
GONE = object()
NUMBERS = {"segments": layout.SEGMENT, "files": layout.FILE, "episodes": layout.EPISODE, "sums": layout.SUM}
SAMPLE = {"json": 16, "tail": 12, "number": 16, "length": 6, "file": 8}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    from diskreplay import ArraySpec, StepSpec

    spec = StepSpec(ArraySpec("observation", (3,), "float32"), ArraySpec("action", (), "int64", "discrete", n=3))
    path = tmp_path_factory.mktemp("sound") / "s.replay"
    return build(ReplayStore.create(path, spec, segment_steps=STEPS, metadata={"by": "test"}))


@pytest.fixture
def path(sound, tmp_path, monkeypatch):
    for module in ("repair", "verify"):  # LMDB itself is not damaged here
        monkeypatch.setattr(f"diskreplay.storage.upkeep.{module}.probe", lambda _: "")
    return shutil.copytree(sound, tmp_path / "s.replay")


def places(data, at=()):
    """Yield the way to every value of a JSON document."""
    yield at
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield from places(data[key], (*at, key))


def changed(data, at, value):
    """Return a document with another value in a place, or without it."""
    if not at:
        return value
    data = json.loads(json.dumps(data))
    inside = data
    for key in at[:-1]:
        inside = inside[key]
    if value is GONE:
        del inside[at[-1]]
    else:
        inside[at[-1]] = value
    return data


def split(payload):
    """Return the header of a tail record, and what follows it."""
    (size,) = struct.unpack_from("<I", payload)
    return json.loads(payload[4 : 4 + size]), payload[4 + size :]


def records(path):
    """Return (database, key, payload) of all that is in the index but chunks' checksums."""
    index = Index(path / layout.INDEX)
    with index.read() as txn:
        found = [(name, key, value) for name in layout.DATABASES[:-1] for key, value in txn.items(name)]
    index.close()
    return [item for item in found if item[0] != "checks"]


def forgeries(path):  # noqa: C901  one loop over everything
    """Yield (kind, where, change of a store) for every value and everything nasty that may be in its place."""

    def rewrite(database, key, payload):
        def change(store):
            with raw(store) as (txn, databases):
                put(txn, databases, database, key, payload)

        return change

    def document(name, data):
        return lambda store: (store / name).write_text(json.dumps(data))

    for database, key, payload in records(path):
        where = (database, key)
        for cut in (0, 1, 7, -1, -8, None):
            yield "length", (*where, cut), rewrite(database, key, payload[:cut] if cut is not None else 2 * payload)
        if payload[:1] == b"{" or database == "tails":
            header, rest = split(payload) if database == "tails" else (json.loads(payload), b"")
            for at in places(header):
                for value in (*NASTY, *([GONE] if at else [])):
                    text = json.dumps(changed(header, at, value)).encode()
                    forged = struct.pack("<I", len(text)) + text + rest if database == "tails" else text
                    kind = "tail" if database == "tails" else "json"
                    yield kind, (*where, at, repr(value)[:20]), rewrite(database, key, forged)
        dtype = layout.COUNTERS if key == b"counters" else NUMBERS.get(database)
        for name in dtype.names if dtype is not None and payload else ():
            kind = dtype[name].kind
            top = np.iinfo(dtype[name]).max if kind in "iu" else np.inf
            for value in (
                (0, 1, top, top // 2) + ((-1, -top - 1) if kind == "i" else ()) + ((np.nan, -np.inf) * (kind == "f"))
            ):
                array = np.frombuffer(payload, dtype).copy()
                array[name][-1] = value
                yield "number", (*where, name, value), rewrite(database, key, array.tobytes())
    for name in ("zarr.json", "steps/zarr.json", "steps/observation/zarr.json", "steps/episode/zarr.json"):
        data = json.loads((path / name).read_bytes())
        for at in places(data):
            for value in (*NASTY, *([GONE] if at else [])):
                yield "file", (name, at, repr(value)[:20]), document(name, changed(data, at, value))


def use(path, mode):
    """Open, read, sample, and, if mode is "a", write."""
    with ReplayStore.open(path, mode=mode) as store:
        store.read(store.step_ids_of(np.arange(len(store))), n_step=3)
        for resume in (False, True):
            for kind in (PrioritizedSampler, UniformSampler):
                sampler = kind(store, seed=0, resume=resume)
                store.read(sampler.draw(16).step_ids)
                del sampler
        store.stats()
        if mode == "a":
            fill(store, episodes=4, length=9)
            fill(store, episodes=2, length=9, stream="b")
            store.commit()


def attempt(what):
    """Return the error of ours that something ends in, if it does; no other passes."""
    try:
        what()
    except ReplayError as err:
        return err
    return None


def check_forgery(path, where):
    """Expect that what is wrong is found, and mended or refused; nothing is done to a store that is right."""
    opened, found = attempt(lambda: use(path, "r")), verify_path(path)
    assert opened is None or not found.sound or "the state is of a" in str(opened), (where, opened)
    if attempt(lambda: repair_store(path)) is None:
        assert [p for p in verify_path(path).problems if not p.harmless] == [], where
        failed = attempt(lambda: use(path, "a"))
        assert failed is None or isinstance(failed, ValueError), (where, failed)  # the spec is another one
    assert attempt(lambda: verify_path(path)) is None, where
    return found


@pytest.mark.parametrize("kind", SAMPLE)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
def test_any_value_of_any_record(path, sound, kind):
    """A sample, always the same one: all of them take an hour."""
    every = [item for item in forgeries(sound) if item[0] == kind]
    for _, where, change in random.Random(kind).sample(every, SAMPLE[kind]):
        shutil.rmtree(path)
        shutil.copytree(sound, path)
        change(path)
        check_forgery(path, where)


STREAM, FIRST, LAST = layout.stream_key(0), layout.segment_key(0), layout.segment_key(7)
TAIL = layout.tail_key(0, 9, 4)
SAMPLER = b"prioritized"
FORGED = [
    ("streams", STREAM, ("name",), [[1]]),
    ("streams", STREAM, ("steps",), "63"),
    ("streams", STREAM, ("episodes",), float("inf")),
    ("streams", layout.stream_key(1), ("last_segment",), 1 << 31),
    ("tails", TAIL, ("running", 2), [1]),
    ("tails", TAIL, ("running", 2), float("nan")),
    ("tails", TAIL, ("running", 0), 10**400),
    ("samplers", SAMPLER, ("next_update",), "63"),
    ("samplers", SAMPLER, ("largest",), float("inf")),
    ("samplers", SAMPLER, ("random", "has_uint32"), 1 << 70),
    ("samplers", SAMPLER, ("in_flight", 0, 0), "63"),
    ("samplers", SAMPLER, ("in_flight", 0, 2), "0x1p99999"),
    ("samplers", SAMPLER, ("in_flight", 0), pack_drawn(np.arange(4), np.full(4, np.nan, np.float32), 0.0)),
    ("meta", b"description", ("uuid",), -1),
]
COUNTED = [
    ("meta", b"counters", layout.COUNTERS, "next_segment", (1 << 63) - 1),
    ("meta", b"counters", layout.COUNTERS, "seals", (1 << 63) - 1),
    ("meta", b"counters", layout.COUNTERS, "commits", -1),
    ("segments", FIRST, layout.SEGMENT, "seal", (1 << 63) - 1),
    ("segments", FIRST, layout.SEGMENT, "stream", 1000),
    ("segments", layout.segment_key(3), layout.SEGMENT, "stream", 0),
    ("segments", LAST, layout.SEGMENT, "stream", 0),
    ("segments", FIRST, layout.SEGMENT, "cut", 255),
    ("sums", layout.sum_key("prioritized", 4), layout.SUM, "total", np.inf),
]


@pytest.mark.parametrize(("database", "key", "at", "value"), FORGED)
def test_values_that_were_believed(path, database, key, at, value):
    """Each ended in a TypeError, an OverflowError or in silence."""
    with raw(path) as (txn, databases):
        payload = txn.get(key, db=databases[database])[:-4]
        header, rest = split(payload) if database == "tails" else (json.loads(payload), b"")
        text = json.dumps(changed(header, at, value)).encode()
        put(txn, databases, database, key, struct.pack("<I", len(text)) + text + rest if rest else text)
    assert not check_forgery(path, at).sound


@pytest.mark.parametrize(("database", "key", "dtype", "name", "value"), COUNTED)
def test_numbers_that_were_believed(path, database, key, dtype, name, value):
    """Likewise; or repair left what verify then found."""
    with raw(path) as (txn, databases):
        array = np.frombuffer(txn.get(key, db=databases[database])[:-4], dtype).copy()
        array[name][0] = value
        put(txn, databases, database, key, array.tobytes())
    assert not check_forgery(path, name).sound


@pytest.mark.parametrize("shape", [[], [[1]], ["63"], 63])
def test_an_array_without_rows(path, shape):
    """It was an IndexError."""
    file = path / "steps" / "episode" / "zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), "shape": shape}))
    assert not check_forgery(path, shape).sound


def test_a_seal_that_is_no_segment(path):
    """Repair made it anew, verify had said nothing."""
    with raw(path) as (txn, databases):
        put(txn, databases, "seals", FIRST, b"\0")
    assert not check_forgery(path, FIRST).sound


def test_a_segment_without_a_record_of_its_own(path):
    """It was an IndexError."""
    with raw(path) as (txn, databases):
        put(txn, databases, "segments", FIRST, b"")
    assert not check_forgery(path, FIRST).sound
