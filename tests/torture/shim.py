"""Put shim.c between a process and its storage calls: build it, set it up, read what it logged."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).with_name("shim.c")
OPERATIONS = (
    *("", "CREATE", "WRITE", "SYNC", "RENAME", "UNLINK", "MKDIR", "RMDIR"),
    *("TRUNCATE", "LINK", "ALLOCATE", "SYNCFS", "ACK"),
)
NEED_ROOM = {"CREATE", "WRITE", "RENAME", "MKDIR", "LINK", "ALLOCATE"}  # as in shim.c
HEADER = struct.Struct("<BBHHIq")
COUNTER_BYTES = 8
SETTINGS = ("ROOT", "ACK", "COUNTER", "LOG", "KILL_AT", "KILL_AFTER", "FAIL_AT", "SHORT_AT", "LATE", "FOREVER", "ERRNO")


class Operation(NamedTuple):
    """One storage call that succeeded; `path2` is where a rename or a link went."""

    name: str
    dsync: bool
    pid: int
    offset: int
    path: str
    path2: str
    data: bytes


def missing() -> str | None:
    """Return why the shim cannot be used here, or None."""
    return None if shutil.which("gcc") else "needs gcc, to compile the shim"


@cache
def build() -> Path:
    """Compile the shim, once for each version of its source; return the library's path."""
    source = SOURCE.read_bytes()
    folder = Path(tempfile.gettempdir()) / f"diskreplay-shim-{os.getuid()}"
    library = folder / f"shim-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        command = ["gcc", "-O2", "-w", "-shared", "-fPIC", "-o", partial, SOURCE, "-ldl", "-lpthread"]
        subprocess.run(command, check=True)
        partial.replace(library)
    return library


def settings(
    root: str | os.PathLike[str] | None = None,
    *,
    ack: str | os.PathLike[str] | None = None,
    counter: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    kill_at: int | None = None,
    kill_after: int | None = None,
    fail_at: int | None = None,
    error: str = "EIO",
    late: bool = False,
    forever: bool = False,
    short_at: int | None = None,
) -> dict[str, str]:
    """Return the shim's own variables. Without a root it lets everything through uncounted."""
    given = {
        "ROOT": root, "ACK": ack, "COUNTER": counter, "LOG": log, "KILL_AT": kill_at, "KILL_AFTER": kill_after,
        "FAIL_AT": fail_at, "SHORT_AT": short_at, "LATE": int(late) or None, "FOREVER": int(forever) or None,
        "ERRNO": getattr(errno, error) if fail_at else None,
    }  # fmt: skip
    return {f"SHIM_{name}": os.fspath(v) if isinstance(v, Path) else str(v) for name, v in given.items() if v}


def environment(root: str | os.PathLike[str] | None, **options) -> dict[str, str]:
    """Return the environment of a process that is to start below the shim; for the options see `settings`."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SHIM_")}
    return {**inherited, "LD_PRELOAD": str(build()), **settings(root, **options)}


def restart(root: str | os.PathLike[str] | None = None, **options) -> None:
    """Set up anew the shim below which this process runs; without arguments, switch it off."""
    for name in SETTINGS:
        os.environ.pop(f"SHIM_{name}", None)
    os.environ.update(settings(root, **options))
    ctypes.CDLL(os.environ["LD_PRELOAD"]).shim_start()


def calls(counter: Path) -> int:
    """Return how many calls were counted in this file."""
    with counter.open("rb") as file, mmap.mmap(file.fileno(), COUNTER_BYTES, access=mmap.ACCESS_READ) as view:
        return int.from_bytes(view[:COUNTER_BYTES], "little")


def operations(counter: Path) -> list[str]:
    """Return the operations of the calls that were counted in this file, in their order, 65,536 at most."""
    return [OPERATIONS[op] for op in counter.read_bytes()[COUNTER_BYTES:][: calls(counter)]]


def read_log(log: Path) -> Iterator[Operation]:
    """Yield the logged operations, in the order in which they took effect."""
    with log.open("rb") as file:
        while len(prefix := file.read(4)) == 4:
            record = file.read(int.from_bytes(prefix, "little"))
            op, dsync, n, m, pid, offset = HEADER.unpack_from(record)
            at = HEADER.size
            path, path2 = os.fsdecode(record[at : at + n]), os.fsdecode(record[at + n : at + n + m])
            yield Operation(OPERATIONS[op], bool(dsync), pid, offset, path, path2, record[at + n + m :])
