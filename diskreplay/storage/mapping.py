"""Shards of raw fields, mapped into memory as long as the page cache can hold all of them.

Of a row of a few bytes that no cache holds, pread takes 2 us; a copy out of a map takes 0.4, and its checksum is
compared as ever. What speaks against maps is how they fail: where a file was cut off, or its disk does not give a
page, the process dies of SIGBUS. So a handler puts a page of zeros there and lets it go on: zeros do not match the
checksum, and whoever finds that asks pread, which says what is wrong. Faults elsewhere are left to whoever had that
signal before.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import platform
import signal
import threading
from typing import TYPE_CHECKING

import llvmlite.binding as llvm
import numpy as np

from diskreplay.storage import native
from diskreplay.storage.cached import memory_limit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diskreplay.storage.fields import Coding, Field

MEMORY_SHARE = 1 / 2
MOST_MAPS = 16_384  # a quarter of those that a process may have
RANDOM = 1  # MADV_RANDOM: a page that is not in the cache is read alone, not with 8 MB around it
SA_SIGINFO, SA_ONSTACK, SA_RESTART = 4, 0x08000000, 0x10000000

_HANDLER = """
define void @handler(i32 %signal, i8* %info, i8* %context) {{
entry:
  %place = getelementptr i8, i8* %info, i64 16
  %at = bitcast i8* %place to i64*
  %address = load i64, i64* %at
  %ranges = inttoptr i64 {ranges} to i64*
  br label %look
look:
  %i = phi i64 [0, %entry], [%next, %other]
  %low = getelementptr i64, i64* %ranges, i64 %i
  %after = add i64 %i, 1
  %high = getelementptr i64, i64* %ranges, i64 %after
  %start = load volatile i64, i64* %low
  %end = load volatile i64, i64* %high
  %above = icmp ule i64 %start, %address
  %below = icmp ult i64 %address, %end
  %ours = and i1 %above, %below
  br i1 %ours, label %mend, label %other
other:
  %next = add i64 %i, 2
  %more = icmp ult i64 %next, {words}
  br i1 %more, label %look, label %foreign
mend:
  %page = and i64 %address, {mask}
  %map = inttoptr i64 {mmap} to i64 (i64, i64, i32, i32, i32, i64)*
  %got = call i64 %map(i64 %page, i64 {page}, i32 {read}, i32 {flags}, i32 -1, i64 0)
  %done = icmp eq i64 %got, %page
  br i1 %done, label %back, label %foreign
foreign:
  %act = inttoptr i64 {sigaction} to i32 (i32, i64, i64)*
  %ignored = call i32 %act(i32 %signal, i64 {former}, i64 0)
  br label %back
back:
  ret void
}}
"""


class _Action(ctypes.Structure):
    """What libc calls struct sigaction, on 64-bit Linux."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


class _Guard:
    """The handler, and the ranges of addresses that it watches; made once a process and never taken back."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
        self.libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.ranges = np.zeros((MOST_MAPS, 2), np.int64)
        self.free = list(range(MOST_MAPS))[::-1]
        self._former = _Action()
        self._engine = self._compile()
        action = _Action(self._engine.get_function_address("handler"), flags=SA_SIGINFO | SA_ONSTACK | SA_RESTART)
        if self.libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(self._former)):
            raise OSError(ctypes.get_errno(), "sigaction")

    def _compile(self) -> llvm.ExecutionEngine:
        """Compile the handler: it runs wherever the fault was, so it can take neither the GIL nor a lock."""
        call = {name: ctypes.cast(getattr(self.libc, name), ctypes.c_void_p).value for name in ("mmap", "sigaction")}
        module = llvm.parse_assembly(
            _HANDLER.format(
                **call, ranges=self.ranges.ctypes.data, words=self.ranges.size, former=ctypes.addressof(self._former),
                mask=-mmap.PAGESIZE, page=mmap.PAGESIZE, read=mmap.PROT_READ,
                flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10,  # MAP_FIXED
            )
        )  # fmt: skip
        engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
        engine.finalize_object()
        return engine


_lock = threading.Lock()
_guard: _Guard | None = None
_refused = False


class FileMap:
    """A file mapped for reading; given back by `close`, or when it is gone.

    Attributes:
        address: Of its first byte.
    """

    __slots__ = ("_entry", "_guard", "_length", "address")

    def __init__(self, guard: _Guard, entry: int, address: int, length: int) -> None:
        self._guard, self._entry, self._length = guard, entry, length
        self.address = address

    def close(self) -> None:
        """Unmap the file; nobody may be reading it."""
        address, self.address = self.address, 0
        if address:
            guard = self._guard
            guard.ranges[self._entry, 1] = 0  # then nothing lies below it
            guard.ranges[self._entry, 0] = 0
            guard.libc.munmap(address, self._length)  # last: another's map may lie there at once
            guard.free.append(self._entry)

    def __del__(self) -> None:
        self.close()


def map_file(fd: int, length: int) -> FileMap | None:
    """Map an open file; None where that cannot be done safely, or too many are mapped."""
    guard = _get_guard() if length else None
    if guard is None:
        return None
    try:
        entry = guard.free.pop()
    except IndexError:
        return None
    address = guard.libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        guard.free.append(entry)
        return None
    guard.libc.madvise(address, length, RANDOM)
    guard.ranges[entry, 0] = address  # first: a range without its end is empty
    guard.ranges[entry, 1] = address + length
    return FileMap(guard, entry, address, length)


def _get_guard() -> _Guard | None:
    """Return the guard, made at the first call; None if this platform has no such calls."""
    global _guard, _refused  # noqa: PLW0603  a process has one handler of a signal
    if _guard is None and not _refused:
        with _lock:
            known = platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64")
            if _guard is None and known and native.AVAILABLE:
                with contextlib.suppress(AttributeError, OSError, RuntimeError):
                    _guard = _Guard()
            _refused = _guard is None
    return _guard


def fields_to_map(
    fields: Sequence[Field], codings: Mapping[str, Coding], rows: int, budget: float | None = None
) -> frozenset[str]:
    """Return the raw fields that a batch reads, if the page cache can hold all their rows; else none.

    Of what it cannot hold every row would be a page fault, one after the other.

    Args:
        fields: All there are.
        codings: How each is coded.
        rows: Of each field.
        budget: In bytes; None: half of what this process may use.
    """
    raw = [field for field in fields if field.hot and codings[field.name].codec == "none"]
    if not native.AVAILABLE:
        return frozenset()
    most = memory_limit() * MEMORY_SHARE if budget is None else budget
    return frozenset(f.name for f in raw) if sum(f.row_bytes for f in raw) * rows <= most else frozenset()
