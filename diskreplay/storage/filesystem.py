"""Refuse file systems on which a store would not be safe.

LMDB rests on shared memory maps and on fcntl locks. Over a network neither holds. On an overlay a file that lies in a
lower layer is one file for those who opened it before it is first written, and another for those who come after. So
a store is looked up in /proc/self/mountinfo when it is opened.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from diskreplay.errors import ReplayError

NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "orangefs",
    "smb3", "smbfs", "virtiofs",
}  # fmt: skip
NETWORK_FUSE = {
    "blobfuse", "blobfuse2", "gcsfuse", "glusterfs", "goofys", "juicefs", "mount-s3", "rclone", "s3fs", "sshfs",
}  # fmt: skip
ANYWAY = "DISKREPLAY_ANY_FILESYSTEM"
MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo: where, which kind of file system, and its own options."""

    point: str
    kind: str
    options: dict[str, str]


def check_filesystem(path: Path, mounts: str | None = None) -> None:
    """Refuse a path on a file system where a store would not be safe.

    Args:
        path: A store's index, or the folder it is to be made in.
        mounts: What /proc/self/mountinfo says; read if None.

    Raises:
        ReplayError: If it lies there; says what to do. Not if DISKREPLAY_ANY_FILESYSTEM=1 is set.
    """
    if os.environ.get(ANYWAY) == "1":
        return
    try:
        real = path.resolve()
        found = _mount_of(real, MOUNTS.read_text() if mounts is None else mounts)
    except (OSError, ValueError, IndexError):
        return
    if found is None:
        return
    kind, _, fuse = found.kind.partition(".")
    if kind in NETWORK or (kind == "fuse" and fuse in NETWORK_FUSE):
        raise ReplayError(
            f"{path}: lies on a network file system ({found.kind} at {found.point})",
            path=path,
            hint="Keep the store on a local disk and copy it with `diskreplay backup`; "
            f"{ANYWAY}=1 allows it, if one machine alone ever opens it.",
        )
    if kind == "overlay" and _in_lower_layer(real, found):
        raise ReplayError(
            f"{path}: lies in a lower layer of the overlay at {found.point}",
            path=path,
            hint="Copy the store to a volume or a local disk (`cp -r` while nobody has it open), and use that copy.",
        )


def _mount_of(path: Path, mounts: str) -> Mount | None:
    best = None
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = _unescaped(left.split()[4])
        if path.is_relative_to(point) and (best is None or len(point) >= len(best.point)):
            kind, _, options = right.split(" ", 2)
            pairs = (option.partition("=") for option in options.split(","))
            best = Mount(point, kind, {name: value for name, _, value in pairs})
    return best


def _in_lower_layer(path: Path, mount: Mount) -> bool:
    """Return whether a path's file has not been copied up; False where that cannot be seen (inside a container).

    There it is copied up by its first writer: `Environment` opens the index for writing wherever it may.
    """
    upper, data = mount.options.get("upperdir"), path / "data.mdb"
    if upper is None or not data.exists():
        return False  # an overlay that nobody can write to, or a folder in which a store is to be made
    layer = Path(_unescaped(upper))
    return layer.is_dir() and not (layer / data.relative_to(mount.point)).exists()


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
