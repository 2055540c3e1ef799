"""Read arrays from a numpy archive that nobody vouches for.

Nothing is unpickled or extracted, and nothing is read before its declared size was compared with
the file and with what memory may take.
"""

from __future__ import annotations

import lzma
import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import IO

    from numpy.typing import NDArray

SMALL_BYTES = 64 << 20
"""Members up to this size are read whatever their expansion ratio: a column of zeros is no bomb."""
MAX_RATIO = 200
MEMORY_SHARE = 0.5
NUMBER_KINDS = "biuf"
DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,  # encrypted
    NotImplementedError,  # a compression that Python lacks
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


@dataclass(frozen=True)
class Member:
    """Describe an array inside an archive, as its header does.

    Attributes:
        column: Its name.
        shape: Its shape.
        dtype: Its dtype, a plain number or boolean.
        size: Bytes once decompressed, header included.
    """

    column: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    size: int


class Archive:
    """Open an `.npz` file for reading.

    Args:
        path: The file.
        max_bytes: Refuse to load more; None takes half of the machine's memory.

    Raises:
        SourceError: If the file is missing or is no archive.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int | None = None) -> None:
        self.path = Path(path)
        self._max_bytes = _half_of_memory() if max_bytes is None else max_bytes
        try:
            if self.path.exists() and not self.path.is_file():  # a pipe or a device may have no end
                raise OSError("not a regular file")
            self._zip = zipfile.ZipFile(self.path)
            self._infos = {info.filename: info for info in self._zip.infolist()}
        except FileNotFoundError as err:
            raise self.error("no such file", hint="Check the path after npz:.") from err
        except (OSError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as err:
            raise self.error(f"not a numpy archive: {err}", hint="Write it with numpy.savez_compressed.") from err

    def __enter__(self) -> Archive:  # noqa: PYI034 - not meant to be subclassed
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the arrays."""
        return tuple(sorted(n.removesuffix(".npy") for n in self._infos if n.endswith(".npy")))

    def error(self, message: str, *, hint: str = "") -> SourceError:
        """Make an error that names the file."""
        return SourceError(f"{self.path}: {message}", path=self.path, hint=hint)

    def load(self, columns: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Read arrays by name.

        Raises:
            SourceError: If one holds objects, lies about its size, is damaged or too large.
        """
        members = [self._inspect(column) for column in columns]
        total = sum(member.size for member in members)
        if total > self._max_bytes:
            raise self.error(
                f"its arrays take {total:,} bytes of memory; at most {self._max_bytes:,} may",
                hint="Split the file into several, and ingest one after the other.",
            )
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                loaded = {member.column: np.asarray(arrays[f"{member.column}.npy"]) for member in members}
        except DAMAGE as err:
            raise self.error(f"damaged: {err}", hint="Write the file again.") from err
        for member in members:
            if loaded[member.column].shape != member.shape:
                raise self.error(f"{member.column}: its shape is not the one its header declares")
        return loaded

    def _inspect(self, column: str) -> Member:
        info = self._infos[f"{column}.npy"]
        ratio = info.file_size / max(info.compress_size, 1)
        if info.file_size > SMALL_BYTES and ratio > MAX_RATIO:
            raise self.error(
                f"{column} would grow {ratio:,.0f} times, to {info.file_size:,} bytes, when read",
                hint=f"At most {MAX_RATIO} times is accepted; write it with numpy.savez.",
            )
        try:
            with self._zip.open(info) as stream:
                shape, dtype = _read_header(stream)
                header = stream.tell()
        except DAMAGE as err:
            raise self.error(f"{column} cannot be read: {err}", hint="Write the file again.") from err
        if dtype.hasobject:
            raise self.error(
                f"{column} holds Python objects, which are never unpickled",
                hint="Store plain numbers; concatenate episodes of different lengths.",
            )
        if dtype.kind not in NUMBER_KINDS:
            raise self.error(f"{column} has dtype {dtype}; expected numbers or booleans")
        declared = header + math.prod(shape) * dtype.itemsize
        if declared != info.file_size:
            given = info.file_size
            raise self.error(
                f"{column} declares {declared:,} bytes, {shape} {dtype}, but has {given:,}",
                hint="The file is damaged or was made by hand; write it again.",
            )
        return Member(column, shape, dtype, info.file_size)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of the .npy format is for named fields only")
    if any(side < 0 for side in shape):
        raise ValueError(f"negative shape {shape}")
    return shape, dtype


def _half_of_memory() -> int:
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_SHARE)
