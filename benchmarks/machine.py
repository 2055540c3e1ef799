"""Facts about the machine, a memory limit for a process, and a page cache without some files."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

CGROUP = Path("/sys/fs/cgroup/memory")
VERSIONS = (
    "import json, sys; from importlib.metadata import distributions as d; "
    "print(json.dumps(dict((x.metadata['Name'], x.version) for x in d() if x.metadata['Name'] in sys.argv[1:])))"
)
LIBRARIES = ("numpy", "torch", "zarr", "lmdb", "numba", "cpprb", "torchrl", "tensordict", "stable-baselines3",
             "tensorstore", "gymnasium", "ale-py")  # fmt: skip


def facts(folder: Path) -> dict[str, Any]:
    """Describe the machine, and the file system under a folder."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if line.startswith("model name")]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "filesystem": _output("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(folder)),
        "read_ahead_kib": _read_ahead(folder),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _output("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"),
        "load_at_start": os.getloadavg()[0],
    }


def versions(python: str) -> dict[str, str]:
    """Return the versions of the libraries that an interpreter has."""
    import json  # noqa: PLC0415

    return dict(json.loads(_output(python, "-c", VERSIONS, *LIBRARIES) or "{}"))


def has_module(python: str, name: str) -> bool:
    """Return whether an interpreter can find a module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([python, "-c", code], check=False, capture_output=True).returncode == 0


def can_limit_memory() -> bool:
    """Return whether this user may limit a process's memory, page cache included (cgroup v1)."""
    return (CGROUP / "memory.limit_in_bytes").exists() and os.access(CGROUP, os.W_OK)


@contextmanager
def memory_limit(name: str, limit: int | None) -> Iterator[list[str]]:
    """Yield what to put before a command so that it runs with so much memory, its page cache included."""
    if limit is None:
        yield []
        return
    group = CGROUP / f"diskreplay-{os.getpid()}-{name}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit), encoding="ascii")
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        (group / "memory.force_empty").write_text("0", encoding="ascii")
        group.rmdir()


def forget_files(*folders: Path) -> None:
    """Have the files under these folders leave the page cache, but for pages that a process has mapped."""
    os.sync()
    for path in files_under(*folders):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def files_under(*folders: Path) -> list[Path]:
    """Return all files under these folders."""
    return [path for folder in folders for path in ([folder] if folder.is_file() else folder.rglob("*"))
            if path.is_file() and not path.is_symlink()]  # fmt: skip


def bytes_under(*folders: Path) -> int:
    """Return the bytes that the files under these folders take on disk."""
    return sum(path.stat().st_blocks * 512 for path in files_under(*folders))


def _read_ahead(folder: Path) -> int | None:
    """Return how much the kernel reads around a fault in a file of this file system, in KiB."""
    if not folder.exists():
        return None
    device = folder.stat().st_dev
    path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return int(path.read_text(encoding="ascii")) if path.exists() else None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
