"""LMDB's list of free pages: nothing that is read needs it, and the next commit writes into what it names.

py-lmdb does not show it, so trees are read from the file, in the state that a transaction sees: as long as that lasts,
its pages are not used again. A page that is neither free nor in use is lost room, and no damage. As of LMDB 0.9.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import numpy as np

from diskreplay.errors import CorruptStoreError
from diskreplay.storage.regular import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from diskreplay.storage.index import Index

_PAGE = struct.Struct("<QHHHH")  # number, unused, flags, then the bounds of what is free in it
_NODE = struct.Struct("<HHHH")  # length or page below, low and high half; flags, or its third part; length of the key
_TREE = struct.Struct("<IHHQQQQQ")  # page's size, flags, depth, branches, leaves, pages of large values, records, root
_FREE_AT, _TABLES_AT, _NEWEST_AT = 40, 88, 136  # in a meta page; last: number of its last page, of its transaction
BRANCH, LEAF, LARGE, NO_PAGE = 1, 2, 4, (1 << 64) - 1
IS_LARGE, IS_TABLE = 1, 2  # of a record
ATTEMPTS = 16


def free_pages_trouble(index: Index, *, quick: bool = False) -> str:
    """Say what is wrong with an index's list of free pages; nothing if it is sound.

    Cost: O(free pages); unless `quick`, also O(records): whether it names what is in use.
    """
    for _ in range(ATTEMPTS):  # others may commit twice between beginning and reading, and the state's page is gone
        with index.read() as txn:
            try:
                fd = open_regular(index.path / "data.mdb")
                try:
                    looked = _look(fd, int(txn.txn.id()), quick=quick)
                finally:
                    os.close(fd)
            except struct.error:
                return "a page of it holds something else"
            except (ValueError, CorruptStoreError) as err:
                return str(err)
            except OSError as err:
                return err.strerror or str(err)
        if looked:
            break
    return ""


def _look(fd: int, number: int, *, quick: bool) -> bool:
    """Look at the state of a transaction; return whether it was still there; raise ValueError if it is wrong."""
    head = os.pread(fd, 1 << 17, 0)
    size = _TREE.unpack_from(head, _FREE_AT)[0]
    for meta in (head[:size], head[size : 2 * size]):
        last, newest = struct.unpack_from("<QQ", meta, _NEWEST_AT)
        if newest == number:
            break
    else:
        return False
    free = _Trees(fd, size, last)
    ids = free.named(_TREE.unpack_from(meta, _FREE_AT), number)
    if len(ids) and not (ids.min() >= 2 and ids.max() <= last):
        raise ValueError("it names pages that the file does not have")
    if len(np.unique(ids)) < len(ids):
        raise ValueError("it names a page twice")
    if not quick:
        tables = _Trees(fd, size, last)
        for flags, _, _, data in tables.records(*_root(meta, _TABLES_AT)):
            if flags & IS_TABLE:
                for _ in tables.records(*_root(data)):
                    pass
        wrong = np.intersect1d(ids, np.concatenate([tables.pages(), free.pages()]))
        if len(wrong):
            raise ValueError(f"it names {len(wrong)} pages that are in use, such as {int(wrong[0])}")
    return True


def _root(data: bytes, at: int = 0) -> tuple[int, int]:
    """Return the root of a tree and its depth."""
    tree = _TREE.unpack_from(data, at)
    return tree[-1], tree[2]


class _Trees:
    """Trees of LMDB's, and which pages they take."""

    def __init__(self, fd: int, size: int, last: int) -> None:
        self.fd, self.size, self.last = fd, size, last
        self._first: list[int] = []
        self._count: list[int] = []
        self._seen = 0

    def pages(self) -> NDArray[np.uint64]:
        """Return the pages that were met."""
        runs = zip(self._first, self._count, strict=True)
        return np.fromiter((page for first, count in runs for page in range(first, first + count)), np.uint64)

    def records(self, root: int, depth: int) -> Iterator[tuple[int, int, bytes, bytes]]:
        """Yield flags, length, key and value of each record; of a large one, only where it lies."""
        if root == NO_PAGE:
            return
        self._take(root, 1)
        page = os.pread(self.fd, self.size, root * self.size)
        found, _, flags, lower, upper = _PAGE.unpack_from(page)
        if found != root or flags != (LEAF if depth == 1 else BRANCH) or not 16 <= lower <= upper <= len(page):
            raise ValueError(f"page {root} is none of its own")
        for at in struct.unpack_from(f"<{(lower - 16) // 2}H", page, 16):
            low, high, more, width = _NODE.unpack_from(page, at)
            if depth > 1:
                yield from self.records(low | high << 16 | more << 32, depth - 1)
                continue
            length, start = low | high << 16, at + 8 + width
            data = page[start : start + (8 if more & IS_LARGE else length)]
            if more & IS_LARGE:
                self._take(int.from_bytes(data, "little"), -(-(length + 16) // self.size))
            yield more, length, page[at + 8 : start], data

    def named(self, tree: tuple[int, ...], newest: int) -> NDArray[np.uint64]:
        """Return what a list of free pages names: transaction -> how many it freed, then which, descending."""
        out, before = [np.empty(0, np.uint64)], -1
        for flags, length, key, value in self.records(tree[-1], tree[2]):
            (transaction,) = struct.unpack("<Q", key)
            if not before < transaction <= newest:
                raise ValueError("it is not in the order of transactions")
            before = transaction
            data = self._large(int.from_bytes(value, "little"), length) if flags & IS_LARGE else value
            (count,) = struct.unpack_from("<Q", data)
            ids = np.frombuffer(data, "<u8", count, 8)  # ValueError if there are not as many
            if (ids[:-1] <= ids[1:]).any():
                raise ValueError("it names pages in no order")
            out.append(ids)
        if len(out) - 1 != tree[-2] or self._seen != sum(tree[3:6]):
            raise ValueError(f"it has {len(out) - 1} records in {self._seen} pages, not {tree[-2]} in {sum(tree[3:6])}")
        return np.concatenate(out)

    def _large(self, number: int, length: int) -> bytes:
        page = os.pread(self.fd, 16 + length, number * self.size)
        found, _, flags, *count = _PAGE.unpack_from(page)
        if found != number or flags != LARGE or count[0] | count[1] << 16 != -(-(length + 16) // self.size):
            raise ValueError(f"page {number} is none of its own")
        return page[16:]

    def _take(self, number: int, count: int) -> None:
        self._seen += count
        if number < 2 or number + count > self.last + 1 or self._seen > self.last:
            raise ValueError(f"page {number} is none of the file's")
        self._first.append(number)
        self._count.append(count)
