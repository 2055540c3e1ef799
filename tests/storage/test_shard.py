"""A shard's bytes are those that zarr-python writes of the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc, Zstd

from diskreplay import CorruptStoreError
from diskreplay.storage import native
from diskreplay.storage.durable import Disk
from diskreplay.storage.fields import LEVELS, Coding, Field
from diskreplay.storage.segments import SegmentWriter
from diskreplay.storage.shard import encode_shard, is_regular, parse_shard_index, shard_index_bytes, shard_name

DTYPES = ("uint8", "bool", "int64", "float32", "float64", "int16")


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.skipif(not native.AVAILABLE, reason="needs it")), False])
def compiled(request, monkeypatch):
    """Both ways of doing it."""
    monkeypatch.setattr(native, "AVAILABLE", request.param)


@pytest.mark.usefixtures("compiled")
@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_it_is_what_zarr_writes(tmp_path_factory, data, seed):
    """Any type, shape, codec and number of rows; the rows after the last are the fill value."""
    chunk = data.draw(st.sampled_from([1, 2, 8]), "chunk")
    steps = chunk * data.draw(st.integers(1, 6), "chunks")
    count = data.draw(st.integers(1, steps), "rows")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    shape = data.draw(st.sampled_from([(), (3,), (4, 5)]), "shape")
    coding = Coding(data.draw(st.sampled_from(["none", "zstd", "lz4", "lz4hc"]), "codec"), chunk)
    field = Field("observation", shape, dtype, "observation", hot=True, fill=data.draw(st.sampled_from([0, 1])))
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 3, (count, *shape)).astype(dtype)

    root = tmp_path_factory.mktemp("store")
    writer = SegmentWriter(root, [field], steps, Disk("process"))
    writer.create_group({})
    writer.create_arrays({field.name: coding})
    array = zarr.open_array(str(root / "steps" / "observation"), mode="r+").with_config({"write_empty_chunks": True})
    whole = -(-count // chunk) * chunk
    array[:whole] = np.concatenate([rows, np.full((whole - count, *shape), field.fill, dtype)])

    ours, checks = encode_shard(field, coding, rows, steps)
    path = root / "steps" / "observation" / shard_name(0, field)
    assert bytes(ours) == path.read_bytes()
    index = parse_shard_index(bytes(ours[-shard_index_bytes(steps // chunk) :]), steps // chunk, path)
    written = -(-count // chunk)
    assert (index[written:] == np.uint64((1 << 64) - 1)).all()
    assert not checks[written:].any()
    if coding.codec == "none":
        assert is_regular(index[:written].astype(np.int64), chunk * field.row_bytes + 4)
    for (offset, length), check in zip(index[:written].astype(int).tolist(), checks.tolist(), strict=False):
        assert ours[offset + length - 4 : offset + length].view("<u4")[0] == check


def test_a_damaged_index_is_noticed(tmp_path):
    """Every byte of it is under its checksum."""
    field = Field("reward", (), "float32", "outcome", hot=True)
    data, _ = encode_shard(field, Coding("zstd", 4), np.arange(8, dtype=np.float32), 8)
    tail = bytearray(data[-shard_index_bytes(2) :])
    for at in range(len(tail)):
        spoilt = bytearray(tail)
        spoilt[at] ^= 1
        with pytest.raises(CorruptStoreError, match="index is damaged"):
            parse_shard_index(bytes(spoilt), 2, tmp_path)


@pytest.mark.parametrize("size", [200, 8192, 1 << 18])
@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_what_nothing_compresses_is_what_numcodecs_makes_of_it(codec, size):
    """Given more room than it asks for, blosc packs such chunks in another way."""
    rows = np.random.default_rng(0).integers(256, size=(1, size)).astype(np.uint8)
    field = Field("observation", (size,), "uint8", "observation", hot=True)
    ours, _ = encode_shard(field, Coding(codec, 1), rows, 1)
    coder = Zstd(level=LEVELS[codec]) if codec == "zstd" else Blosc(cname=codec, clevel=LEVELS[codec], shuffle=0)
    expected = bytes(coder.encode(rows.tobytes()))
    assert bytes(ours[: len(expected)]) == expected
