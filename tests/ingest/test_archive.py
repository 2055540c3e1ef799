import io
import os
import zipfile

import numpy as np
import pytest

from diskreplay.errors import SourceError
from diskreplay.ingest import archive as archive_module
from diskreplay.ingest.archive import Archive


def npy(array, *, shape=None, dtype=None):
    """Return the bytes of an .npy file, whose header may claim another shape or dtype."""
    stream = io.BytesIO()
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype) if dtype else array.dtype),
        "fortran_order": False,
        "shape": array.shape if shape is None else shape,
    }
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + array.tobytes()


def write(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(tmp_path, save):
    rows = np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    save(tmp_path / "a.npz", rows=rows, flags=np.array([True, False]))
    with Archive(tmp_path / "a.npz") as archive:
        assert archive.columns == ("flags", "rows")
        loaded = archive.load(["rows"])
    assert loaded.keys() == {"rows"}
    assert np.array_equal(loaded["rows"], rows)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"none\.npz: no such file"):
        Archive(tmp_path / "none.npz")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY garbage", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="not a numpy archive"):
        Archive(path)


def test_objects_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.savez(tmp_path / "a.npz", rows=np.array([Bomb()], dtype=object), allow_pickle=True)
    with (
        Archive(tmp_path / "a.npz") as archive,
        pytest.raises(SourceError, match="never unpickled"),
    ):
        archive.load(["rows"])


@pytest.mark.parametrize("dtype", ["U3", "S3", "c16", "M8[s]", [("x", "f4")]])
def test_only_numbers_and_booleans_are_read(tmp_path, dtype):
    np.savez(tmp_path / "a.npz", rows=np.zeros(4, dtype=dtype))
    with Archive(tmp_path / "a.npz") as archive, pytest.raises(SourceError, match="rows"):
        archive.load(["rows"])


@pytest.mark.parametrize("shape", [(2**40, 84, 84), (10**30,), (3,), (5,), (-4,)])
def test_a_header_that_lies_about_the_size_is_refused_before_reading(tmp_path, shape):
    path = write(tmp_path / "a.npz", rows=npy(np.zeros(4), shape=shape))
    with Archive(path) as archive, pytest.raises(SourceError, match="rows"):
        archive.load(["rows"])


def test_an_archive_that_grows_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_module, "SMALL_BYTES", 1 << 16)
    np.savez_compressed(tmp_path / "a.npz", rows=np.zeros(1 << 20, dtype=np.uint8))
    with Archive(tmp_path / "a.npz") as archive, pytest.raises(SourceError, match="would grow"):
        archive.load(["rows"])


def test_arrays_larger_than_memory_allows_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(600, dtype=np.uint8), b=np.zeros(600, dtype=np.uint8))
    with Archive(tmp_path / "a.npz", max_bytes=1_000) as archive:
        assert len(archive.load(["a"])["a"]) == 600
        with pytest.raises(SourceError, match="bytes of memory"):
            archive.load(["a", "b"])


def test_damage_is_reported(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, rows=np.arange(10_000))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with Archive(path) as archive, pytest.raises(SourceError, match="damaged"):
        archive.load(["rows"])


def test_members_are_never_extracted(tmp_path):
    path = write(tmp_path / "a.npz", **{"../evil": npy(np.zeros(4))})
    with Archive(path) as archive:
        assert archive.load(["../evil"])["../evil"].tolist() == [0, 0, 0, 0]
    assert not (tmp_path.parent / "evil.npy").exists()


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(SourceError, match="not a regular file"):
            Archive(path)
