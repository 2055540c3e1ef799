"""Cut the power of a real file system under a running store, mount it again, and look what is left.

The scenario runs on a loop-mounted ext4 or XFS; its acknowledgements go to a file elsewhere. At a random time the
file system is shut down without flushing its log (what is neither on the image nor in its journal is gone), the
process is killed, the image is mounted again, which replays the journal, and the scenario's check is run. Then the
same store lives on, a few cuts long.

`--full` fills a small ext4 instead: the commit must fail with StoreFullError, the store must stay readable and
sound, here and in another handle, and go on with the same handle once there is room.

Covered: recovery by the file systems people use; syncs that were forgotten for whole files. Not covered: sectors
torn or written back in another order, and a forgotten sync of a directory: a shutdown keeps the order of calls, and
one fsync takes the directory's change to the journal with it. For those see oplog.py and write_order.py.

Needs root, loop devices and mkfs. Everything is mounted in a mount namespace of this process's own, so nothing stays
behind however it ends.

    python -m tests.torture.power_cut --cuts 200 --fs xfs
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from diskreplay import ArraySpec, ReplayStore, StepSpec
from diskreplay.errors import StoreFullError
from tests.torture import scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN
NO_LOG_FLUSH = 2
CLONE_NEWNS = 0x20000
MAKE = {"ext4": ["mkfs.ext4", "-q", "-F", "-m", "0"], "xfs": ["mkfs.xfs", "-q", "-f"]}
IMAGE_BYTES = 320 << 20  # the least mkfs.xfs takes is 300 MiB
FULL_BYTES = 24 << 20
BALLAST_BYTES = 8 << 20
BALLAST_FILES = 1000
STEPS = 20
MOST_EPISODES = 100
MOST_COMMIT_BYTES = 1 << 20
SKIPPED = 77  # by custom of automake
PATIENCE = 60.0


def images() -> str:
    """Return where images lie: in memory, where syncs are fast, for what is cut off is the file system above."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 4 * IMAGE_BYTES else "/var/tmp"


def missing(file_system: str = "ext4") -> str | None:
    """Return why power cuts are not possible here, or None."""
    if os.geteuid() != 0:
        return "needs root, to mount"
    for tool in (MAKE[file_system][0], "mount", "umount"):
        if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            return f"needs {tool}"
    if not Path("/dev/loop-control").exists():
        return "needs loop devices"
    with tempfile.TemporaryDirectory(dir=images()) as name:
        script = f"truncate -s {IMAGE_BYTES} image && {' '.join(MAKE[file_system])} image && mount -o loop image ."
        command = ["unshare", "--mount", "sh", "-c", script]
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        done = subprocess.run(
            command, cwd=name, check=False, capture_output=True, text=True, env={**os.environ, "PATH": path}
        )
    return None if done.returncode == 0 else f"cannot mount {file_system}: {done.stderr.strip()[:200]}"


def own_mounts() -> None:
    """Leave the mount namespace of everybody else: mounts made from here on die with this process."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


@dataclass
class Disk:
    """A file system in an image file."""

    folder: Path
    file_system: str
    size: int = IMAGE_BYTES
    mounted: bool = False

    def __post_init__(self) -> None:
        self.image, self.where = self.folder / "image", self.folder / "mount"
        self.where.mkdir(exist_ok=True)

    def make(self) -> None:
        self.unmount()
        with self.image.open("wb") as file:
            file.truncate(self.size)
        subprocess.run([*MAKE[self.file_system], self.image], check=True)

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", "-t", self.file_system, self.image, self.where], check=True)
        self.mounted = True

    def cut(self) -> None:
        """Pull the plug."""
        fd = os.open(self.where, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        for _ in range(100 if self.mounted else 0):
            if subprocess.run(["umount", self.where], check=False, capture_output=True).returncode == 0:
                self.mounted = False
                return
            time.sleep(0.05)
        if self.mounted:
            raise OSError(f"{self.where}: still in use")


@contextmanager
def disk(file_system: str, folder: Path | None = None, size: int = IMAGE_BYTES) -> Iterator[Disk]:
    """Make a file system that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="power-", dir=folder or images(), ignore_cleanup_errors=True) as name:
        made = Disk(Path(name), file_system, size)
        made.make()
        try:
            yield made
        finally:
            made.unmount()


def start(function: Callable[..., Any], *arguments: Any) -> tuple[int, int]:
    """Call a function in a forked child, which has everything imported; return its pid and where its result comes."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    try:
        os.close(read)
        result = function(*arguments)
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(result, pipe)
    except BaseException:  # noqa: BLE001  a child ends here, whatever it was
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def finish(pid: int, read: int) -> Any:
    """Return the result of `start`, or a line that says how the child ended."""
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    return pickle.loads(data) if data else [f"the check died: {os.waitstatus_to_exitcode(status)}"]


@dataclass
class Tally:
    """What came of the cuts."""

    cuts: int = 0
    stores: int = 0
    acked: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def live(store: Path, seed: int, ack: Path) -> None:
    """Run the scenario for ever; its complaints about a dead disk are of no interest."""
    with Path(os.devnull).open("w") as void:
        os.dup2(void.fileno(), 1)
        os.dup2(void.fileno(), 2)
    scenario.Life(store, seed, ack).run(sys.maxsize)


def cut_power(
    file_system: str,
    cuts: int,
    *,
    seed: int = 0,
    cuts_per_store: int = 6,
    longest: float = 1.5,
    keep: Path | None = None,
    show: bool = False,
) -> Tally:
    """Cut the power a number of times.

    Args:
        file_system: "ext4" or "xfs".
        cuts: How often.
        seed: Of the times, and of the scenarios.
        cuts_per_store: How often a store is cut off before a new one is made.
        longest: Seconds that a store runs at most.
        keep: Where to leave copies of stores that have problems.
        show: Show a progress bar.
    """
    rng, tally, began = random.Random(seed), Tally(), time.monotonic()
    with disk(file_system) as plug, tqdm(total=cuts, disable=not show, unit="cut") as bar:
        ack, store, before = plug.folder / "ack", plug.where / "life.replay", 0
        for cut in range(cuts):
            if cut % cuts_per_store == 0:
                plug.make()
                ack.unlink(missing_ok=True)
                tally.stores += 1
                before = 0
            plug.mount()
            own = seed * 10_000 + tally.stores
            pid, read = start(live, store, own, ack)
            if cut % 3 == 2:
                _await_commit(ack, before)
            # Short times often: making a store, and the first thing after opening one, are the rarer states.
            time.sleep(longest * rng.random() ** 2)
            plug.cut()
            os.kill(pid, signal.SIGKILL)
            finish(pid, read)
            plug.unmount()
            plug.mount()
            acked = scenario.acknowledged(ack)
            problems = _judge(store, own, acked, plug.folder / "copy")
            if problems:
                tally.problems.append(f"cut {cut} of {file_system}, seed {own}, {acked} acked: " + "; ".join(problems))
                if keep is not None and store.exists():
                    shutil.copytree(store, keep / f"{file_system}-{cut}")
            tally.acked += acked - before
            before = acked
            plug.unmount()
            tally.cuts += 1
            bar.update()
    tally.seconds = time.monotonic() - began
    return tally


def _await_commit(ack: Path, before: int) -> None:
    until = time.monotonic() + PATIENCE
    while scenario.acknowledged(ack) <= before and time.monotonic() < until:
        time.sleep(0.005)


def _judge(store: Path, seed: int, acked: int, copy: Path) -> list[str]:
    """Check a copy, since the check goes on writing and the store itself is to live on."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    if store.exists():
        shutil.copytree(store, copy / store.name)
    return list(finish(*start(scenario.check, copy / store.name, seed, acked)))


def fill_up(rounds: int, *, seed: int = 0, show: bool = False) -> Tally:
    """Fill small disks."""
    tally, began = Tally(), time.monotonic()
    with disk("ext4", size=FULL_BYTES) as plug:
        for number in tqdm(range(rounds), disable=not show, unit="disk"):
            plug.make()
            plug.mount()
            found = finish(*start(_fill, plug.where, seed + number))
            tally.problems += [f"full disk {number}, seed {seed + number}: {line}" for line in found]
            plug.unmount()
            tally.cuts += 1
    tally.seconds = time.monotonic() - began
    return tally


def _fill(where: Path, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    problems: list[str] = []
    ballast = where / "ballast"
    ballast.mkdir()
    for number in range(BALLAST_FILES):  # inodes can run out, too
        (ballast / f"{number}").write_bytes(b"")
    (ballast / "room").write_bytes(bytes(BALLAST_BYTES))
    (where / "crumbs").write_bytes(bytes(int(rng.integers(1, 1 << 16))))  # another call is to meet the end each time
    width = int(rng.choice([64, 1024, 8192]))
    # A commit, and a segment, of 1 MiB and few files at most: what is made room for has to hold some.
    segment_steps = min(MOST_COMMIT_BYTES // width, int(rng.choice([16, 128, 1024])))
    most = max(STEPS + 1, min(MOST_COMMIT_BYTES // width, 16 * segment_steps))
    spec = StepSpec(ArraySpec("observation", (width,), "uint8"), ArraySpec("action", (), "int64", "discrete", n=5))
    store = ReplayStore.create(where / "full.replay", spec, segment_steps=segment_steps)
    writer, written = store.writer("a"), []

    def go_on(commits: int) -> tuple[int, BaseException | None]:
        """Write and commit so many times, or until it fails; return what is committed, and what it failed of."""
        committed = 0
        try:
            for _ in range(commits):
                for _ in range(int(rng.integers(1, most // (STEPS + 1) + 1))):
                    written.append((len(written), *_episode(writer, seed, len(written), width)))
                store.commit()
                committed = len(written)
        except Exception as err:  # noqa: BLE001  which one it was is the question
            return committed, err
        return committed, None

    committed, error = go_on(sys.maxsize)
    if not isinstance(error, StoreFullError):
        problems.append(f"a full disk raised {error!r}")
    problems += _sound(store, written[:committed], "the same handle")
    with ReplayStore.open(store.path) as other:
        problems += _sound(other, written[:committed], "another handle")
    shutil.rmtree(ballast)
    try:
        store.commit()
    except Exception as err:  # noqa: BLE001  same
        return [*problems, f"the commit after room was made: {err!r}"]
    problems += _sound(store, written, "the same handle, after room was made")
    _, error = go_on(3)
    if error is not None:
        return [*problems, f"some commits after room was made: {error!r}"]
    store.close()
    with ReplayStore.open(store.path) as other:
        problems += _sound(other, written, "another handle, in the end")
    return problems


def _episode(writer: Any, seed: int, number: int, width: int) -> tuple[Any, Any]:
    rng = np.random.default_rng((seed, number))
    observations = rng.integers(256, size=(STEPS + 1, width), dtype=np.uint8)
    last = np.arange(STEPS) == STEPS - 1
    actions, rewards = rng.integers(5, size=STEPS), np.ones(STEPS, np.float32)
    ids = writer.write_episode(observations, actions, rewards, last, np.zeros_like(last))
    return ids, observations


def _sound(store: ReplayStore, episodes: list[tuple[int, Any, Any]], who: str) -> list[str]:
    """Return what is wrong with a store that should hold these episodes, and no less."""
    try:
        wrong = [f"{who}: {problem}" for problem in store.verify() if problem.kind != "orphan"]
        for number, ids, observations in episodes[:: len(episodes) // MOST_EPISODES + 1]:
            read = store.read(ids)
            if not (
                np.array_equal(read.observation, observations[:-1])
                and np.array_equal(read.next_observation, observations[1:])
            ):
                wrong.append(f"{who}: episode {number} reads differently")
    except Exception as err:  # noqa: BLE001  whatever it is, it is a problem
        return [f"{who}: {err!r}"]
    return wrong[:5]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--fs", action="append", choices=tuple(MAKE), help="ext4, xfs; default: both")
    parser.add_argument("--full", type=int, default=0, metavar="N", help="fill N small disks instead")
    parser.add_argument("--longest", type=float, default=1.5, help="seconds a store runs at most before its cut")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for copies of stores that have problems")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    systems = ["ext4"] if options.full else options.fs or list(MAKE)
    for file_system in systems:
        reason = missing(file_system)
        if reason:
            print(f"skipped: {reason}")  # noqa: T201
            return SKIPPED
    own_mounts()
    failed = False
    for file_system in systems:
        show = sys.stderr.isatty()
        if options.full:
            tally = fill_up(options.full, seed=options.seed, show=show)
            print(f"{tally.cuts} full disks, {len(tally.problems)} problems, {tally.seconds:.0f} s")  # noqa: T201
        else:
            tally = cut_power(
                file_system, options.cuts, seed=options.seed, longest=options.longest, keep=options.keep, show=show
            )
            print(  # noqa: T201
                f"{file_system}: {tally.cuts} cuts of {tally.stores} stores, {tally.acked:,} commits acknowledged, "
                f"{len(tally.problems)} problems, {tally.seconds / tally.cuts:.1f} s a cut"
            )
        for problem in tally.problems:
            print(problem)  # noqa: T201
        failed |= bool(tally.problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
