"""Walk an index from end to end in a process of its own: what may crash there does not crash us."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from diskreplay.errors import CorruptStoreError
from diskreplay.storage.regular import require_own

if TYPE_CHECKING:
    from pathlib import Path

SLOWEST = 4 << 20  # bytes a second
PATIENCE_S = 60.0
# With a reader's slot, where one can be had: without, what writers free meanwhile is used again under the walk.
_WALK = """
import os, sys, lmdb
lock = os.access(os.path.join(sys.argv[1], "lock.mdb"), os.W_OK)
env = lmdb.open(sys.argv[1], map_size=1 << 40, max_dbs=64, readonly=True, lock=lock, create=False, lib_version=0)
with env.begin() as txn:
    for name in [bytes(name) for name, _ in txn.cursor()]:
        db = env.open_db(name, txn=txn, create=False)
        left, before = txn.stat(db)["entries"], None
        for key, value in txn.cursor(db=db):
            sum(value[::512])
            left -= 1
            if left < 0 or (before is not None and key <= before):
                sys.exit(f"table {name.decode()} is not in order")
            before = key
        if left:
            sys.exit(f"table {name.decode()} lacks {left} records")
"""


def probe(index: Path) -> str:
    """Walk an index from end to end in a process of its own, which may crash; return what is wrong, or nothing."""
    data = index / "data.mdb"
    try:
        require_own([data, index / "lock.mdb"])
    except CorruptStoreError as err:
        return str(err).removeprefix(f"{index}/")
    if not data.exists():
        return "data.mdb is missing"
    size = data.stat().st_size
    try:
        # -P: nothing is imported from the current folder, which may be the store itself.
        walk = subprocess.run(  # noqa: S603  our own interpreter; what may crash there must not crash us
            [sys.executable, "-P", "-c", _WALK, str(index)],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S + size / SLOWEST,
        )
    except subprocess.TimeoutExpired:
        return "walking the index does not end"
    if walk.returncode < 0:
        return f"the index cannot be walked: {signal.Signals(-walk.returncode).name}"
    if walk.returncode:
        lines = walk.stderr.strip().splitlines()
        return f"the index cannot be walked: {lines[-1] if lines else 'no reason given'}"
    return ""
