"""Plant faults in diskreplay and look whether the suites catch them: a suite that finds nothing proves nothing else.

Ten faults of the kind that storage engines have had. The process under test plants one in itself: its environment
names it (TORTURE_FAULT), and a sitecustomize module, in a folder that is put before PYTHONPATH, calls `plant`; so
every process of a suite has it, and diskreplay has no hook for it. For each fault the cheapest suites that ought to
catch it are run, and, with the same settings, once without any fault: then they must find nothing.

A failed fsync is special: a kernel drops what it could not write and reports success the next time. So here the k-th
fsync of a shard or a description fails, and what that file held is gone: zeros of the same length. An engine that
tries again takes that for written.

Not covered: which further faults the suites would miss.

    python -m tests.torture.planted --all                every suite that ought to catch it, not only the cheapest
    python -m tests.torture.planted --fault "no fsync"
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parents[2]
FAULT, FSYNC_AT = "TORTURE_FAULT", "TORTURE_FSYNC_AT"
SITE = "from tests.torture import planted\n\nplanted.plant()\n"
SHARD = re.compile(r"/steps/[^/]+/c\.[^/]*$")
PATIENCE = 1800
PYTHON = sys.executable


def no_fsync() -> None:
    """Sync no files."""
    _sync_only(stat.S_ISDIR)


def no_directory_fsync() -> None:
    """Sync no directories."""
    _sync_only(stat.S_ISREG)


def _sync_only(kind: Callable[[int], bool]) -> None:
    from diskreplay.storage.durable import Disk

    original = Disk.sync

    def sync(disk: Disk, fd: int) -> None:
        if kind(os.fstat(fd).st_mode):
            original(disk, fd)

    Disk.sync = sync


def index_before_files() -> None:
    """Write shards after the transaction that puts them into the catalogue."""
    from diskreplay.storage.commit import Committer
    from diskreplay.storage.durable import Disk, Staged

    settle, transact, waiting = Disk.settle, Committer._transact, []

    def settle_others(disk: Disk, staged: Sequence[Staged]) -> None:
        shards = [item for item in staged if SHARD.search(str(item.path))]
        waiting.extend((disk, item) for item in shards)
        for item in shards:
            item.placed = True
        settle(disk, [item for item in staged if item not in shards])

    def _transact(committer: Committer, jobs: Any, participants: Any) -> None:
        transact(committer, jobs, participants)
        while waiting:
            disk, item = waiting.pop(0)
            with item.partial.open("rb") as file:
                disk.sync(file.fileno())
            item.partial.rename(item.path)
            disk.sync_directory(item.path.parent)

    Disk.settle, Committer._transact = settle_others, _transact


def acknowledge_early() -> None:
    """Return from commits before the disk has the transaction; it gets there when the kernel sees fit."""
    from diskreplay.storage.environment import Environment

    original = Environment.__init__

    def __init__(environment: Environment, path: Path, **options: Any) -> None:  # noqa: N807
        original(environment, path, **{**options, "synced": False})

    Environment.__init__ = __init__


def tail_dropped_early() -> None:
    """Delete the tail records of a segment in a transaction before the one that puts it into the catalogue."""
    from diskreplay.storage import layout
    from diskreplay.storage.commit import Committer

    original = Committer._commit

    def _commit(committer: Committer, participants: Any) -> None:
        engine = committer.engine
        with engine.lock:
            streams = [stream for stream in engine.streams.values() if stream.lock is not None]
            full = [(stream.number, tail.segment) for stream in streams for tail in stream.tails if tail.full]
            if full:
                with engine.index.write() as txn:
                    for stream, segment in full:
                        txn.delete_prefix("tails", layout.tail_key(stream, segment))
        original(committer, participants)

    Committer._commit = _commit


def id_reused() -> None:
    """Hand out again the id of a segment that was evicted."""
    from diskreplay.storage import layout
    from diskreplay.storage.engine import Engine

    original, given = Engine.take_segments, defaultdict(set)

    def take_segments(engine: Engine, stream: Any, count: int) -> list[int]:
        taken, used = original(engine, stream, count), given[engine.root]
        with engine.index.read() as txn:
            live = {int.from_bytes(key, "big") for key, _ in txn.items("segments")}
            live |= {int.from_bytes(key, "big") for key, _ in txn.items("garbage")}
        live |= {tail.segment for one in engine.streams.values() for tail in one.tails}
        oldest = min(live, default=0)
        free = [s for s in range(oldest) if s not in live | used]
        if count == 1 and free and engine.steps_evicted:
            used.add(free[-1])
            with engine.index.write() as txn:  # so that its own record of what it took fits
                key = layout.stream_key(stream.number)
                record = txn.json("streams", key) or {}
                txn.put_json("streams", key, {**record, "taken": [*record.get("taken", []), free[-1]]})
            return [free[-1]]
        return taken

    Engine.take_segments = take_segments


def rewrite_in_place() -> None:
    """Write files under their final name, and shards once more when they are committed."""
    import zlib

    from diskreplay.storage.commit import Committer
    from diskreplay.storage.durable import Disk, FileRecord, Staged, disk_error

    transact, written = Committer._transact, []

    def stage(_: Disk, path: Path, data: Any) -> Staged:
        view = memoryview(data).cast("B")
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            done = 0
            while done < len(view):
                done += os.write(fd, view[done:])
        except OSError as err:
            raise disk_error(err, path) from err
        if SHARD.search(str(path)):
            written.append((path, bytes(view)))
        return Staged(path, path, fd, FileRecord(len(view), zlib.crc32(view)))

    def _transact(committer: Committer, jobs: Any, participants: Any) -> None:
        transact(committer, jobs, participants)
        again, written[:] = list(written), []
        for path, data in again:
            committer.engine.disk.write_file(path, data)
        written.clear()

    Disk.stage, Committer._transact = stage, _transact


def checksum_not_checked() -> None:
    """Take every chunk for what it ought to be."""
    from diskreplay.storage import gather, native

    class Equal(int):
        """A number that is like every other."""

        __hash__ = int.__hash__

        def __eq__(self, _: object) -> bool:
            return True

        def __ne__(self, _: object) -> bool:
            return False

    class Crc:
        """The module google_crc32c, but for what it is for."""

        @staticmethod
        def value(_: bytes) -> Equal:
            return Equal(0)

    native.AVAILABLE = False
    gather.google_crc32c = Crc


def unlink_before_commit() -> None:
    """Remove the shards of evicted segments before the transaction that evicts them is committed."""
    from diskreplay.storage.commit import Committer

    original = Committer._evict

    def _evict(committer: Committer, *arguments: Any) -> list[int]:
        evicted = original(committer, *arguments)
        for segment in evicted:
            committer.engine.writer.remove(segment)
        return evicted

    Committer._evict = _evict


def fsync_retried() -> None:
    """Take a second fsync's word for it."""
    from diskreplay.storage.durable import Disk

    original = Disk.sync

    def sync(disk: Disk, fd: int) -> None:
        try:
            original(disk, fd)
        except OSError:
            original(disk, fd)

    Disk.sync = sync


def failing_fsync(at: int) -> None:
    """Let the `at`-th fsync of a file fail as kernels do: what was not on the disk yet is gone."""
    fsync, calls = os.fsync, 0

    def failing(fd: int) -> None:
        nonlocal calls
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            calls += 1
            if calls == at:
                os.pwrite(fd, bytes(status.st_size), 0)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    os.fsync = failing


def plant() -> None:
    """Plant the fault that the environment names."""
    if os.environ.get(FSYNC_AT):
        failing_fsync(int(os.environ[FSYNC_AT]))
    if os.environ.get(FAULT):
        FAULTS[os.environ[FAULT]].plant()


# What looks for them.


class Suite(NamedTuple):
    """A command that ends with 0 if it finds nothing, and what it says when it has looked."""

    name: str
    command: list[str]
    looked: str


def suite(name: str, module: str, arguments: str, looked: str) -> Suite:
    return Suite(name, [PYTHON, "-m", f"tests.torture.{module}", *arguments.split()], looked)


SUITES = {
    "life": suite("life", "planted", "--life 60", "problems"),
    "order": suite("order", "planted", "--order 24", "violations in"),
    "kill": suite("kill", "every_call", "--kinds kill --commits 20 --first 150 --stride 17", "lives a second"),
    "fail": suite("fail", "every_call", "--kinds eio --commits 20 --first 150 --stride 17 --in-turn", "lives a second"),
    "states": suite("states", "oplog", "--states 300 --commits 25 --stride 40", "states,"),
    "random kills": suite("random kills", "kill_random", "--kills 300", ""),
    "damage": suite("damage", "damage", "--count 40", "trials in"),
    "power cut": suite("power cut", "power_cut", "--cuts 12 --fs ext4", ""),
    "failing fsync": suite("failing fsync", "planted", "--fsyncs 6", "problems"),
}  # fmt: skip


class Fault(NamedTuple):
    """A fault, and the suites that ought to catch it, the cheapest first."""

    plant: Callable[[], None]
    suites: tuple[str, ...]


FAULTS = {
    "no fsync": Fault(no_fsync, ("order", "states", "power cut")),
    "no directory fsync": Fault(no_directory_fsync, ("order", "states")),
    "index before files": Fault(index_before_files, ("kill", "states", "random kills", "power cut")),
    "acknowledge early": Fault(acknowledge_early, ("order", "states", "power cut")),
    "tail dropped early": Fault(tail_dropped_early, ("kill", "fail", "random kills", "power cut")),
    "id reused": Fault(id_reused, ("life", "kill", "random kills")),
    "rewrite in place": Fault(rewrite_in_place, ("order", "kill", "states")),
    "checksum not checked": Fault(checksum_not_checked, ("damage",)),
    "unlink before commit": Fault(unlink_before_commit, ("order", "kill", "states")),
    "fsync retried": Fault(fsync_retried, ("failing fsync",)),
}


@dataclass
class Outcome:
    """What a suite made of a fault ("" for none): caught it, found nothing, or could not look."""

    fault: str
    suite: str
    verdict: str
    seconds: float
    words: list[str]

    @property
    def bad(self) -> bool:
        return self.verdict != ("caught" if self.fault else "clean")

    def __str__(self) -> str:
        what = f"{self.fault or 'no fault':22} {self.suite:14} {self.verdict:11}"
        return f"{what} {self.seconds:6.1f} s  {self.words[0][:110]}"


def environment(fault: str, site: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process in which a fault is planted."""
    (site / "sitecustomize.py").write_text(SITE)
    paths = [str(site), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if name not in {FAULT, FSYNC_AT}}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), **({FAULT: fault} if fault else {}), **more}


def try_suite(fault: str, name: str) -> Outcome:
    """Run a suite over a fault."""
    what, began = SUITES[name], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="planted-") as site:
        done = subprocess.run(
            what.command, cwd=ROOT, env=environment(fault, Path(site)), check=False, capture_output=True, text=True,
            timeout=PATIENCE,
        )  # fmt: skip
    words = [line for line in [*done.stdout.splitlines(), *done.stderr.splitlines()[-3:]] if line.strip()]
    # A suite that is stopped by what the fault does to a life has seen it, too; but not one that has not begun.
    began_at_all = what.looked in done.stdout or "problems" in done.stderr or "exit code" in done.stderr
    if done.returncode == 77:
        verdict = "skipped"
    elif done.returncode == 0:
        verdict = "missed" if fault else "clean"
    else:
        verdict = ("caught" if fault else "false alarm") if began_at_all else "broken"
    telling = [line for line in words if re.search(r"problem|violation|wrong|R\d |acknowledged", line)]
    return Outcome(fault, name, verdict, time.monotonic() - began, [*reversed(telling), *words, "-"])


def live(commits: int) -> list[str]:
    """Return what is wrong with an undisturbed life."""
    from tests.torture import scenario

    with tempfile.TemporaryDirectory(prefix="life-") as name:
        store = Path(name) / "life.replay"
        try:
            life = scenario.Life(store, 0)
            life.run(commits)
            life.close()
        except Exception as err:  # noqa: BLE001  whatever the fault leads to
            return [repr(err)]
        return scenario.check(store, 0, commits)


def order(commits: int) -> tuple[list[str], list[str]]:
    """Return violations of the order of storage calls in a life, and what is to be said of it."""
    from tests.torture import write_order

    with tempfile.TemporaryDirectory(prefix="order-") as name:
        folder = Path(name)
        arguments = ["life.replay", "--seed", "0", "--commits", str(commits), "--ack", str(folder / "ack")]
        linter, lines = write_order.run_under_shim([[PYTHON, "-m", "tests.torture.scenario", *arguments]], folder)
        return [str(violation) for violation in linter.violations], lines


def fail_fsyncs(count: int) -> list[str]:
    """Let a life's k-th fsync fail, k = 1, 4, 7..., go on after each error, and check what is there in the end."""
    problems = []
    for at in range(8, 8 + 7 * count, 7):
        command = [PYTHON, "-m", "tests.torture.planted", "--fsync-life", str(at)]
        with tempfile.TemporaryDirectory(prefix="planted-") as site:
            env = environment(os.environ.get(FAULT, ""), Path(site), **{FSYNC_AT: str(at)})
            done = subprocess.run(command, cwd=ROOT, env=env, check=False, capture_output=True, text=True)
        problems += [f"fsync {at}: {line}" for line in (done.stdout + done.stderr).splitlines() if done.returncode]
    return problems


def fsync_life(commits: int = 25) -> list[str]:
    """Live with a failing fsync; return what is wrong in the end."""
    from diskreplay import ReplayError
    from tests.torture import scenario

    with tempfile.TemporaryDirectory(prefix="life-") as name:
        store, life, errors = Path(name) / "life.replay", None, 0
        while errors < 5:
            try:
                life = life or scenario.Life(store, 0)
                life.run(commits)
                life.close()
                break
            except ReplayError:
                errors += 1
        return scenario.check(store, 0, commits)


def campaign(faults: Sequence[str], *, every: bool = False, show: bool = False) -> list[Outcome]:
    """Plant each fault, and none, and run the suites.

    Args:
        faults: Which.
        every: All suites that ought to catch a fault, not only the first.
        show: Show a progress bar.
    """
    pairs = [(fault, name) for fault in faults for name in FAULTS[fault].suites[: None if every else 1]]
    pairs += [("", name) for name in dict.fromkeys(name for _, name in pairs)]
    return [try_suite(*pair) for pair in tqdm(pairs, disable=not show, unit="run", smoothing=0)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--fault", action="append", choices=tuple(FAULTS), default=[], help="this one; default: all")
    parser.add_argument("--all", action="store_true", help="run every suite that ought to catch a fault")
    parser.add_argument("--count", type=int, help="has no effect: there are ten")
    parser.add_argument("--seed", type=int, help="has no effect: the suites' seeds are fixed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    for inner in ("--life", "--order", "--fsyncs", "--fsync-life"):
        parser.add_argument(inner, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if "TMPDIR" not in os.environ and Path("/dev/shm").is_dir():
        os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"
    if options.life or options.fsyncs or options.order or options.fsync_life:
        return inside(options)
    began = time.monotonic()
    outcomes = campaign(options.fault or list(FAULTS), every=options.all, show=sys.stderr.isatty())
    for outcome in outcomes:
        print(outcome)  # noqa: T201
    caught = {outcome.fault for outcome in outcomes if outcome.verdict == "caught"}
    bad = [outcome for outcome in outcomes if outcome.bad and outcome.verdict != "skipped"]
    print(f"{len(caught)} of {len(options.fault or FAULTS)} faults caught, {len(bad)} runs not as they ought to be")  # noqa: T201
    if options.json:
        found = {
            "suite": "planted faults",
            "trials": len(outcomes),
            "acknowledged": None,
            "lost": None,
            "wrong": None,
            "problems": len(bad),
            "seconds": round(time.monotonic() - began, 1),
            "caught": sorted(caught),
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }
        options.json.write_text(json.dumps(found, indent=1))
    return int(bool(bad) or len(caught) < len(options.fault or FAULTS))


def inside(options: argparse.Namespace) -> int:
    """Be one of the suites that are at home here."""
    if options.order:
        found, lines = order(options.order)
        print(*lines, sep="\n")  # noqa: T201
    elif options.life:
        found = live(options.life)
    elif options.fsyncs:
        found = fail_fsyncs(options.fsyncs)
    else:
        found = fsync_life()
    print(*found[:20], f"{len(found)} problems", sep="\n")  # noqa: T201
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
