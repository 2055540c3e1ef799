"""The two pages an LMDB file begins with: each names a whole state of the index, and either will do.

LMDB opens nothing while one of them is no meta page at all. Then the other takes its place, too: the index is what it
says, the newest commit or the one before.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diskreplay.storage.durable import disk_error
from diskreplay.storage.lmdb_errors import MAGIC
from diskreplay.storage.regular import open_regular, read_regular

if TYPE_CHECKING:
    from pathlib import Path

    from diskreplay.storage.durable import Disk

_HEADER = struct.Struct("<QHHI")  # page number, unused, flags, unused
_META = struct.Struct("<IIQQI")  # magic, version, address, map size, page size
VERSION, IS_META = 1, 0x08


@dataclass(frozen=True)
class MetaPage:
    """A meta page that is to be made anew.

    Attributes:
        number: 0 or 1.
        content: What it becomes.
        before: What it is.
    """

    number: int
    content: bytes
    before: bytes

    def write(self, data: Path, disk: Disk) -> None:
        """Put it into an index's file, durably; what a crash leaves is still mended by the other page."""
        try:
            fd = open_regular(data, os.O_RDWR)
            try:
                os.pwrite(fd, self.content, self.number * len(self.content))
                disk.sync(fd)
            finally:
                os.close(fd)
        except OSError as err:
            raise disk_error(err, data) from err


def find_damaged_meta_page(data: Path) -> MetaPage | None:
    """Return the meta page that is none, if the other one is; None if both are, or neither.

    Raises:
        CorruptStoreError: If it is no regular file.
    """
    try:
        begin = read_regular(data, 1 << 17)
    except OSError:
        return None
    sizes = {_page_size(begin, 0)} | {_page_size(begin, at) for at in (1 << n for n in range(12, 17))}
    for size in sorted(sizes - {0}):
        pages = [begin[:size], begin[size : 2 * size]]
        sound = [_page_size(page, 0) == size for page in pages]
        if sum(sound) == 1 and len(pages[1]) == size:
            number = sound.index(False)
            other = pages[1 - number]
            return MetaPage(number, number.to_bytes(8, "little") + other[8:], pages[number])
    return None


def _page_size(content: bytes, at: int) -> int:
    """Return the page size that a meta page at this place names; 0 if there is none."""
    if len(content) < at + _HEADER.size + _META.size:
        return 0
    flags = _HEADER.unpack_from(content, at)[2]
    magic, version, _, _, size = _META.unpack_from(content, at + _HEADER.size)
    return int(size) if (magic, version) == (MAGIC, VERSION) and flags & IS_META and 1 << 12 <= size <= 1 << 16 else 0
