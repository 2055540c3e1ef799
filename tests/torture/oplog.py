"""Replay a recorded run as crashes: which states may a disk be in after a power cut, and does the store open in each?

One run of the scenario is recorded below the shim. The log is walked through a model of a POSIX file system that
knows, at every point, what is durable and what is pending:

- Data. A write is pending until an fsync of its file; with O_DSYNC its sectors are durable at once, but not earlier
  writes to other sectors. A crash keeps, drops or tears each pending write by itself, at 512-byte sectors. A kept
  sector holds what the cache held right after that write, since that is what a write-back sends. The file reaches to
  its last kept sector or, as often, to the end of a write whose sectors were lost; what was never written is zeros.
- Truncation and allocation are pending until an fsync, and kept or dropped.
- Names (create, rename, unlink, mkdir, link) are pending until an fsync of their directory. "ordered": a directory
  keeps any prefix of its changes, as a journal does, but each directory its own. "strict": any subset in which
  changes of one name stay in order; a rename within a directory is one change, across directories it is two.
- An fsync of a file does not make its name durable. On ext4 and XFS it usually does; nothing here relies on it.

Three classes of states, at a point between two calls: "all", everything applied (a killed process); "none", nothing
that was pending; "random", a legal draw, every other one strict. Each is laid out in a folder of its own and handed to
the scenario's check, with the number of commits acknowledged before the point. States that are equal are checked once.

Not covered: old blocks showing up in files that grew; a disk that lies about its cache; writes through memory
maps, which the shim does not see (LMDB's lock.mdb, void after a reboot); reads that fail; other interleavings of
the calls than the recorded one.

    python -m tests.torture.oplog --states 10000
    python -m tests.torture.oplog --log KEPT.log --seed 0 --only random:4711
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection, get_context
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from tests.torture import scenario, shim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Tree = dict[str, bytes | None]

SECTOR = 512
PATIENCE = 120.0
MOST_KEPT = 20
CLASSES = ("all", "none", "random")
STORE = "life.replay"
KILLS = (400, 900)
GO_ON_EVERY = 8  # living on takes twice as long as looking: done in two of so many states, one ordered, one strict


class Effect(NamedTuple):
    """One pending change of a file; `data` is None for a change of its size to `offset`."""

    offset: int
    data: bytes | None
    sectors: set[int]
    pid: int

    @property
    def end(self) -> int:
        return self.offset + len(self.data or b"")

    def apply(self, buffer: bytearray) -> None:
        if self.data is None:
            del buffer[self.offset :]
        pad(buffer, self.offset)
        if self.data is not None:
            buffer[self.offset : self.end] = self.data


class Entry(NamedTuple):
    """One pending change of a directory: what names point to afterwards, None for nothing."""

    changes: dict[str, Node | None]
    kind: str
    pid: int


@dataclass(eq=False)
class Node:
    """A file or a directory, and under which name the cache has it."""

    parent: Directory | None = None
    name: str = ""

    @property
    def path(self) -> str:
        return "" if self.parent is None else f"{self.parent.path}/{self.name}".lstrip("/")


@dataclass(eq=False)
class File(Node):
    """What is on disk, what the cache holds, and the effects in between, in order."""

    disk: bytes = b""
    cache: bytearray = field(default_factory=bytearray)
    pending: list[Effect] = field(default_factory=list)
    _cached: bytes | None = None

    def change(self, effect: Effect, *, durable: bool = False) -> None:
        effect.apply(self.cache)
        self._cached = None
        if durable and any(item.data is None for item in self.pending):
            self.sync()
            return
        if durable:
            # Earlier effects stay in the list, for what they did to the cache, but can no longer undo these sectors.
            disk = bytearray(self.disk)
            write_back(disk, self.cache, effect.sectors)
            self.disk = bytes(disk)
            for item in self.pending:
                item.sectors.difference_update(effect.sectors)
            effect = effect._replace(sectors=set())
            self.pending.append(effect)
            if not any(item.sectors for item in self.pending):
                self.pending.clear()
        else:
            self.pending.append(effect)

    def sync(self) -> None:
        if self.pending:
            self.disk = self.cached()
            self.pending.clear()

    def cached(self) -> bytes:
        if not self.pending:
            return self.disk
        if self._cached is None:
            self._cached = bytes(self.cache)
        return self._cached

    def draw(self, rng: random.Random) -> bytes:
        """Return a legal content after a crash."""
        if not self.pending:
            return self.disk
        keep, tear = rng.choice((0.1, 0.5, 0.9, 1.0)), rng.choice((0.0, 0.3, 1.0))
        out, view = bytearray(self.disk), bytearray(self.disk)
        for effect in self.pending:
            effect.apply(view)
            if rng.random() >= keep:
                continue
            if effect.data is None:
                effect.apply(out)
                continue
            sectors: Iterable[int] = effect.sectors
            if rng.random() < tear:
                order = sorted(effect.sectors)
                if rng.random() < 0.3:
                    sectors = order[: rng.randint(0, len(order))]
                else:
                    sectors = [sector for sector in order if rng.random() < 0.5]
                if effect.sectors and rng.random() < 0.5:
                    pad(out, effect.end)
            write_back(out, view, sectors)
        return bytes(out)


@dataclass(eq=False)
class Directory(Node):
    """The names on disk, those in the cache, and the changes in between, in order."""

    disk: dict[str, Node] = field(default_factory=dict)
    cache: dict[str, Node] = field(default_factory=dict)
    pending: list[Entry] = field(default_factory=list)

    def change(self, entry: Entry) -> None:
        apply_entry(self.cache, entry)
        self.pending.append(entry)
        for name, node in entry.changes.items():
            if node is not None:
                node.parent, node.name = self, name

    def sync(self) -> None:
        self.disk = dict(self.cache)
        self.pending.clear()

    def draw(self, rng: random.Random, *, strict: bool) -> dict[str, Node]:
        """Return legal names after a crash."""
        if not self.pending:
            return self.disk
        names = dict(self.disk)
        if not strict:
            for entry in self.pending[: rng.randint(0, len(self.pending))]:
                apply_entry(names, entry)
            return names
        keep, lost = rng.choice((0.1, 0.5, 0.9)), set()
        for entry in self.pending:
            if lost.isdisjoint(entry.changes) and rng.random() < keep:
                apply_entry(names, entry)
            else:
                lost |= entry.changes.keys()
        return names


def apply_entry(names: dict[str, Node], entry: Entry) -> None:
    for name, node in entry.changes.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def pad(buffer: bytearray, length: int) -> None:
    if len(buffer) < length:
        buffer.extend(bytes(length - len(buffer)))


def write_back(out: bytearray, view: bytearray, sectors: Iterable[int]) -> None:
    for sector in sectors:
        start = sector * SECTOR
        pad(out, start)
        out[start : start + SECTOR] = view[start : start + SECTOR]


class FileSystem:
    """What a log did below `root`, split into what is durable and what is pending.

    Attributes:
        top: The root's directory.
        dirty: Nodes that have pending changes.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root).rstrip("/")
        self.top = Directory()
        self.dirty: set[File | Directory] = set()

    def find(self, path: str) -> File | Directory | None:
        """Return what the cache has at an absolute path below the root, or None."""
        node: Node | None = self.top
        for part in self.parts(path) or ():
            node = node.cache.get(part) if isinstance(node, Directory) else None
        return node if self.parts(path) is not None else None

    def parts(self, path: str) -> list[str] | None:
        if path != self.root and not path.startswith(self.root + "/"):
            return None
        return [part for part in path[len(self.root) :].split("/") if part]

    def apply(self, op: shim.Operation) -> None:
        """Do what one record of the log says.

        Raises:
            ValueError: If the log does not fit together: a call on something that was never made.
        """
        kind = op.name
        if kind == "ACK" or op.path.endswith(" (deleted)"):
            return
        if kind == "SYNCFS":
            for node in list(self.dirty):
                self._settle(node, node.sync)
        elif kind in {"CREATE", "MKDIR", "UNLINK", "RMDIR", "RENAME", "LINK"}:
            self._rename(op)
        else:
            node = self.find(op.path)
            if kind == "SYNC" and node is not None:
                self._settle(node, node.sync)
            elif isinstance(node, File):
                self._settle(node, partial(node.change, self._effect(op, node), durable=op.dsync))
            else:
                raise ValueError(f"{kind} on {op.path}, which the log never made")

    def _effect(self, op: shim.Operation, node: File) -> Effect:
        if op.name == "WRITE":
            last = (op.offset + len(op.data) - 1) // SECTOR
            return Effect(op.offset, op.data, set(range(op.offset // SECTOR, last + 1)), op.pid)
        return Effect(max(op.offset, len(node.cache)) if op.name == "ALLOCATE" else op.offset, None, set(), op.pid)

    def _rename(self, op: shim.Operation) -> None:
        kind = op.name
        if kind in {"CREATE", "MKDIR"}:
            node: Node | None = self.find(op.path) or (File() if kind == "CREATE" else Directory())
            self._enter(op, [(op.path, node)])
        elif kind in {"UNLINK", "RMDIR"}:
            self._enter(op, [(op.path, None)])
        else:
            node = self.find(op.path)
            if node is None and self.parts(op.path) is not None:
                raise ValueError(f"{kind} of {op.path}, which the log never made")
            self._enter(op, [(op.path, None if kind == "RENAME" else node), (op.path2, node)])

    def _enter(self, op: shim.Operation, changes: list[tuple[str, Node | None]]) -> None:
        by_folder: dict[str, dict[str, Node | None]] = {}
        for path, node in changes:
            if self.parts(path) is not None:
                folder, name = path.rstrip("/").rsplit("/", 1)
                by_folder.setdefault(folder, {})[name] = node
        for folder, entries in by_folder.items():
            directory = self.find(folder)
            if not isinstance(directory, Directory):
                raise ValueError(f"{op.name} in {folder}, which the log never made")  # noqa: TRY004  the log's fault
            self._settle(directory, partial(directory.change, Entry(entries, op.name, op.pid)))

    def _settle(self, node: File | Directory, change: Callable[[], None]) -> None:
        change()
        if node.pending:
            self.dirty.add(node)
        else:
            self.dirty.discard(node)

    def tree(self, names: Callable[[Directory], dict[str, Node]], content: Callable[[File], bytes]) -> Tree:
        """Return paths and contents (None: a directory), as a choice of names and contents makes them."""
        tree: Tree = {}
        todo: list[tuple[str, Directory]] = [("", self.top)]
        while todo:
            prefix, directory = todo.pop()
            for name, node in names(directory).items():
                path = f"{prefix}{name}"
                if isinstance(node, Directory):
                    tree[path] = None
                    todo.append((path + "/", node))
                elif isinstance(node, File):
                    tree[path] = content(node)
        return tree

    def everything(self) -> Tree:
        """Return the state of a crash that kept everything."""
        return self.tree(lambda directory: directory.cache, File.cached)

    def durable(self) -> Tree:
        """Return the state of a crash that kept nothing that was pending."""
        return self.tree(lambda directory: directory.disk, lambda file: file.disk)

    def draw(self, rng: random.Random, *, strict: bool) -> Tree:
        """Return the state of a crash that kept something."""
        drawn: dict[File, bytes] = {}

        def content(file: File) -> bytes:
            if file not in drawn:
                drawn[file] = file.draw(rng)
            return drawn[file]

        return self.tree(lambda directory: directory.draw(rng, strict=strict), content)


class Crash(NamedTuple):
    """A state to check: after `point` calls, of a class, the `number`-th of it."""

    point: int
    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}"


@dataclass
class Recording:
    """A recorded run: the calls, and what is derived from them."""

    root: str
    seed: int
    log: Path

    def __post_init__(self) -> None:
        self.operations = list(shim.read_log(self.log))
        file_system, self.pending_points = FileSystem(self.root), []
        self.ack_points, self.acks = [], []
        began: int | None = None
        pid = None
        for point, op in enumerate(self.operations, 1):
            file_system.apply(op)
            if file_system.dirty:
                self.pending_points.append(point)
            if op.pid != pid:
                began, pid = point - 1, op.pid
            if op.name == "ACK":
                number = int(op.data.split()[-1])
                if began is not None and number > 1:
                    # What a killed process committed without a word, its successor went on from.
                    self.ack_points.append(began)
                    self.acks.append(number - 1)
                began = None
                self.ack_points.append(point)
                self.acks.append(number)
        self.end = file_system

    def __reduce__(self) -> tuple[type, tuple[str, int, Path]]:
        return Recording, (self.root, self.seed, self.log)

    def acked(self, point: int) -> int:
        """Return the number of commits acknowledged in the first `point` calls."""
        found = bisect.bisect_right(self.ack_points, point)
        return self.acks[found - 1] if found else 0

    def prefixes(self, stride: int = 1) -> list[Crash]:
        """Return every stride-th prefix of the log, with everything and with nothing pending applied."""
        points = range(0, len(self.operations) + 1, stride)
        return [Crash(point, kind, point) for point in points for kind in ("all", "none")]

    def random_states(self, count: int, seed: int) -> list[Crash]:
        """Return draws at points where something is pending."""
        return [self.random_state(number, seed) for number in range(count)]

    def random_state(self, number: int, seed: int) -> Crash:
        return Crash(random.Random(f"{seed}/{number}").choice(self.pending_points), "random", number)

    def crash(self, text: str, seed: int) -> Crash:
        """Return the state that `str(crash)` names."""
        kind, number = text.split(":")
        return self.random_state(int(number), seed) if kind == "random" else Crash(int(number), kind, int(number))

    def states(self, crashes: Iterable[Crash], seed: int) -> Iterator[tuple[Crash, Tree]]:
        """Yield the states of some crashes, which are sorted by point."""
        file_system, done = FileSystem(self.root), 0
        for crash in crashes:
            for op in self.operations[done : crash.point]:
                file_system.apply(op)
            done = crash.point
            if crash.kind == "all":
                yield crash, file_system.everything()
            elif crash.kind == "none":
                yield crash, file_system.durable()
            else:
                rng = random.Random(f"{seed}/{crash.number}/state")
                yield crash, file_system.draw(rng, strict=crash.number % 2 == 1)


@dataclass
class Problem:
    """A state in which the store is not what it promised to be."""

    crash: Crash
    acked: int
    lines: list[str]
    folder: Path | None = None

    def __str__(self) -> str:
        where = f", kept in {self.folder}" if self.folder else ""
        return f"{self.crash} after {self.crash.point} calls, {self.acked} acknowledged{where}: " + "; ".join(
            self.lines
        )


@dataclass
class Tally:
    """What came of checking states."""

    checked: Counter[str] = field(default_factory=Counter)
    distinct: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    seconds: float = 0.0


def materialise(tree: Tree, folder: Path) -> None:
    """Write a state into an empty folder."""
    for path in sorted(tree):
        content = tree[path]
        if content is None:
            os.mkdir(f"{folder}/{path}")  # noqa: PTH102  a hundred thousand times
        else:
            with open(f"{folder}/{path}", "wb", buffering=0) as file:  # noqa: PTH123
                file.write(content)


def check_tree(tree: Tree, seed: int, acked: int, folder: Path, *, go_on: bool = True) -> list[str]:
    """Lay a state out in a folder and let the scenario judge it."""
    folder.mkdir(parents=True)
    materialise(tree, folder)
    return scenario.check(folder / STORE, seed, acked, go_on=2 * go_on)


def _work(recording: Recording, job: Job, start: int, pipe: connection.Connection) -> None:
    """Check a worker's share of the distinct states, from the start-th on, and tell of each."""
    folder = Path(tempfile.gettempdir()) / f"crash-{os.getpid()}"
    seen: set[int] = set()
    try:
        for position, (crash, tree) in enumerate(recording.states(job.crashes, job.seed)):
            acked = recording.acked(crash.point)
            key = hash((acked, *sorted(tree.items())))
            if key % job.workers != job.worker:
                continue
            if position >= start:
                pipe.send(("begin", position, []))
                go_on = crash.number % GO_ON_EVERY < 2
                lines = [] if key in seen else check_tree(tree, recording.seed, acked, folder, go_on=go_on)
                pipe.send(("same" if key in seen else "end", position, lines))
                shutil.rmtree(folder, ignore_errors=True)
            seen.add(key)
        pipe.send(("bye", len(job.crashes), []))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Job(NamedTuple):
    """What a worker checks: of all states those whose hash is its own, so that equal states meet in one worker."""

    crashes: list[Crash]
    seed: int
    worker: int
    workers: int


@dataclass
class _Worker:
    """A worker process, and at which state it is."""

    recording: Recording
    job: Job
    position: int = -1
    began: int = -1
    deadline: float = 0.0
    done: bool = False

    def start(self) -> None:
        # A process that imports once and never opens a store forks the workers: a store in their parent's hands,
        # or its threads, would be another experiment.
        context = get_context("forkserver")
        context.set_forkserver_preload(["tests.torture.scenario"])
        self.pipe, theirs = context.Pipe(duplex=False)
        arguments = (self.recording, self.job, self.position + 1, theirs)
        self.process = context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        self.began = self.position
        theirs.close()
        self.deadline = time.monotonic() + PATIENCE

    def news(self) -> Iterator[tuple[Crash, list[str], bool]]:
        """Yield what was checked since: the state, its problems, whether it was new. Replace a process that died."""
        try:
            while self.pipe.poll():
                what, self.position, lines = self.pipe.recv()
                self.deadline = time.monotonic() + PATIENCE
                if what == "bye":
                    self.done = True
                    self._end()
                    return
                if what != "begin":
                    yield self.job.crashes[self.position], lines, what == "end"
            if time.monotonic() < self.deadline:
                return
        except EOFError:
            pass
        why = self._end()
        if self.position == self.began:
            raise RuntimeError(f"a worker did not start: {why}")
        yield self.job.crashes[self.position], [why], True
        self.start()

    def _end(self) -> str:
        """Wait for the process's end; return what it died of."""
        hung = time.monotonic() > self.deadline
        if hung:
            self.process.kill()
        self.process.join()
        shutil.rmtree(Path(tempfile.gettempdir()) / f"crash-{self.process.pid}", ignore_errors=True)
        self.pipe.close()
        return "the check hung" if hung else f"the check died: exit code {self.process.exitcode}"


def check_states(
    recording: Recording,
    crashes: Iterable[Crash],
    *,
    seed: int = 0,
    workers: int = 2,
    keep: Path | None = None,
    show: bool = False,
) -> Tally:
    """Check states in processes that may die of what they meet.

    Args:
        recording: The run.
        crashes: Which states.
        seed: Of the random ones.
        workers: Processes.
        keep: Where to leave the states that have problems.
        show: Show a progress bar.
    """
    crashes = sorted(crashes)
    tally, began = Tally(), time.monotonic()
    running = [_Worker(recording, Job(crashes, seed, worker, workers)) for worker in range(workers)]
    for worker in running:
        worker.start()
    with tqdm(total=len(crashes), disable=not show, unit="state", smoothing=0) as bar:
        while running:
            connection.wait([worker.pipe for worker in running], timeout=1.0)
            for worker in list(running):
                for crash, lines, new in worker.news():
                    bar.update()
                    tally.checked[crash.kind] += 1
                    tally.distinct[crash.kind] += new
                    if lines:
                        tally.problems.append(Problem(crash, recording.acked(crash.point), lines))
                if worker.done:
                    running.remove(worker)
    tally.seconds = time.monotonic() - began
    if keep is not None and tally.problems:
        _keep(recording, tally, seed, keep)
    return tally


def _keep(recording: Recording, tally: Tally, seed: int, keep: Path) -> None:
    tally.problems.sort(key=lambda problem: problem.crash)
    by_crash = {problem.crash: problem for problem in tally.problems[:MOST_KEPT]}
    shutil.copy(recording.log, keep / "ops.log")
    for crash, tree in recording.states(list(by_crash), seed):
        problem = by_crash[crash]
        problem.folder = keep / str(crash).replace(":", "-")
        problem.folder.mkdir()
        materialise(tree, problem.folder)


def record(folder: Path, *, seed: int = 0, commits: int = 40, kills: Sequence[int] = ()) -> Recording:
    """Run the scenario below the shim and return what it did.

    Args:
        folder: An empty folder; the store is made in `folder / "root"`.
        seed: The scenario's.
        commits: Its length.
        kills: Storage calls, counted from each start, before which a run is killed; the next one goes on. So the
            recording holds recoveries, too.
    """
    root, log = (folder / "root").resolve(), folder / "ops.log"
    root.mkdir(parents=True)
    for kill in (*kills, None):
        options = {} if kill is None else {"kill_at": kill}
        environment = shim.environment(root, ack=folder / "ack", log=log, **options)
        command = [sys.executable, "-m", "tests.torture.scenario", root / STORE, "--seed", seed, "--commits", commits]
        done = subprocess.run(
            [*map(str, command), "--ack", str(folder / "ack")], env=environment, check=False, capture_output=True
        )
        if done.returncode != (0 if kill is None else -9):
            raise RuntimeError(f"the scenario ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return Recording(str(root), seed, log)


def report(recording: Recording, tally: Tally, seed: int, keep: Path | None) -> Iterator[str]:
    """Yield what came of it, in lines."""
    for kind in CLASSES:
        bad = sum(problem.crash.kind == kind for problem in tally.problems)
        yield f"{kind:8} {tally.checked[kind]:7,} states, {tally.distinct[kind]:7,} distinct, {bad} with problems"
    rate = sum(tally.distinct.values()) / tally.seconds
    calls, commits = len(recording.operations), max(recording.acks)
    yield f"{calls:,} calls, {commits} commits, {tally.seconds:.0f} s: {rate:.0f} states/s"
    yield from map(str, tally.problems[:MOST_KEPT])
    if tally.problems and keep is not None:
        command = f"python -m tests.torture.oplog --log {keep / 'ops.log'} --root {recording.root}"
        only = tally.problems[0].crash
        yield f"again: {command} --scenario-seed {recording.seed} --seed {seed} --only {only}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--states", type=int, default=10_000, help="random states to check")
    parser.add_argument("--seed", type=int, default=0, help="of the random states")
    parser.add_argument("--scenario-seed", type=int, default=0)
    parser.add_argument("--commits", type=int, default=40)
    parser.add_argument("--stride", type=int, default=1, help="check every n-th prefix")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--log", type=Path, help="replay this log instead of recording one")
    parser.add_argument("--root", help="the folder the log was recorded in")
    parser.add_argument("--only", action="append", default=[], metavar="CLASS:N", help="check this state alone")
    parser.add_argument("--keep", type=Path, help="folder for the states that have problems")
    options = parser.parse_args(arguments)
    if "TMPDIR" not in os.environ and Path("/dev/shm").is_dir():
        os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"
    with tempfile.TemporaryDirectory(prefix="oplog-") as name:
        if options.log:
            recording = Recording(options.root, options.scenario_seed, options.log)
        else:
            recording = record(Path(name), seed=options.scenario_seed, commits=options.commits, kills=KILLS)
        crashes = [*recording.prefixes(options.stride), *recording.random_states(options.states, options.seed)]
        if options.only:
            crashes = [recording.crash(text, options.seed) for text in options.only]
        keep = Path(tempfile.mkdtemp(prefix="oplog-kept-", dir=options.keep))
        tally = check_states(
            recording, crashes, seed=options.seed, workers=options.workers, keep=keep, show=sys.stderr.isatty()
        )
        for line in report(recording, tally, options.seed, keep):
            print(line)  # noqa: T201
    with contextlib.suppress(OSError):
        keep.rmdir()
    return 1 if tally.problems else 0


if __name__ == "__main__":
    # Under its own name, for what is sent to other processes is found by the name of its module.
    from tests.torture.oplog import main as run

    sys.exit(run())
