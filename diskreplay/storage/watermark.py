"""Lower bounds of what an index holds, noted beside it: the length of its file and its newest transaction.

LMDB has two meta pages, and where the newer is damaged it silently takes the older: the state of the commit before.
And a file that was cut off it maps as if it were whole. Neither can happen unnoticed if what was there is noted.

The note is written after a commit is durable, and not synced: an older one is a weaker bound, but no wrong one.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

import google_crc32c

from diskreplay.errors import CorruptStoreError
from diskreplay.storage.regular import open_regular, read_regular

if TYPE_CHECKING:
    from pathlib import Path

NAME = "watermark"
_NUMBERS, _CHECK = struct.Struct("<QQ"), struct.Struct("<I")


class Watermark(NamedTuple):
    """What an index held at least.

    Attributes:
        length: Bytes of data.mdb.
        transaction: LMDB's number of the newest transaction.
    """

    length: int = 0
    transaction: int = 0


def read_watermark(folder: Path) -> Watermark:
    """Return what is noted of the index in a folder; zeros if there is no note, or a damaged one."""
    with contextlib.suppress(OSError, CorruptStoreError, struct.error):
        data = read_regular(folder / NAME, _NUMBERS.size + _CHECK.size)
        if _CHECK.unpack(data[_NUMBERS.size :])[0] == google_crc32c.value(data[: _NUMBERS.size]):
            return Watermark(*_NUMBERS.unpack_from(data))
    return Watermark()


def write_watermark(folder: Path, mark: Watermark) -> None:
    """Note what the index in a folder holds. Where that is not possible, the older note stays."""
    data = _NUMBERS.pack(*mark)
    with contextlib.suppress(OSError, CorruptStoreError):
        fd = open_regular(folder / NAME, os.O_WRONLY | os.O_CREAT)
        try:
            os.pwrite(fd, data + _CHECK.pack(google_crc32c.value(data)), 0)
        finally:
            os.close(fd)
