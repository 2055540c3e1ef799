"""Many processes over one store for a long time, one of them killed every few seconds: nothing lost, wrong or growing.

Writers with a stream each; a learner that owns the priorities, draws through a ReplayLoader, updates and commits
while the capacity evicts; readers that refresh, draw and read, one by one and through loaders. Each row says which it
is, so whoever reads it checks it. What a writer was promised (`commit` returned) it notes outside the store, with what
it was about to commit; the learner does the same with priorities. Checked:

- after each restart: a writer's stream holds what was promised, no more than was begun; all priorities of the last
  promised commit are there, those of the one under way all or none.
- at the end: each stream's rows are a run without gaps up to its newest, nothing was evicted that the capacity had
  room for, every row is right, `verify` finds nothing.
- all the time: every process gets on with its work within PATIENCE seconds, and none ends by itself.
- flat, from the second quarter of the time to the last, for processes that are never killed: anonymous memory within
  5 % + 16 MB, open files within 10 % + 16; the index file and the disk space within 25 % + 8 MB. Judged for runs of
  at least JUDGED seconds; shorter ones only report.

The capacity is such that a store's whole content is replaced within some ten seconds, many times faster than in a
training run, so that whatever is drawn is soon evicted. Rates are of processes that compete for the cores there are.
Not covered: several machines, other file systems.

    python -m tests.torture.soak --minutes 30 --plot soak.png
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import mmap
import os
import random
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from diskreplay import PrioritizedSampler, ReplayLoader, ReplayStore, UniformSampler
from diskreplay.errors import StepEvictedError
from tests.torture import scenario
from tests.torture.forks import GAMMA, check_batch, write_episode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

PATIENCE = 30.0
JUDGED = 120.0
CAPACITY = 200_000
SEGMENTS = 80
PROMISE = struct.Struct("<cq")
UPDATES = 8
BATCH = 64


@dataclass
class Plan:
    """What is to run, and where."""

    folder: Path
    writers: int = 8
    readers: int = 4
    seconds: float = 1800.0
    kill_every: float = 3.0
    seed: int = 0
    durability: str = "power"
    capacity: int = CAPACITY

    def __post_init__(self) -> None:
        self.path = self.folder / "soak.replay"
        self.segment_steps = max(64, self.capacity // SEGMENTS // 64 * 64)

    @property
    def roles(self) -> list[str]:
        """Return the names of the processes."""
        writers = [f"writer {number}" for number in range(self.writers)]
        return [*writers, "learner", *(f"reader {number}" for number in range(self.readers))]


class Board:
    """What processes tell of themselves: numbers in memory that all share, which outlives them.

    Attributes:
        turns: Rounds of work of each role.
        rows: Steps written, or transitions read and checked.
        wrong: Rows that were wrong.
    """

    def __init__(self, roles: int) -> None:
        self._memory = mmap.mmap(-1, 3 * 8 * roles)
        self.turns, self.rows, self.wrong = np.frombuffer(self._memory, np.int64).reshape(3, roles)

    def tell(self, role: int, rows: int, wrong: Sequence[str] = ()) -> None:
        self.turns[role] += 1
        self.rows[role] += rows
        self.wrong[role] += bool(wrong)
        if wrong:
            raise AssertionError(f"wrong rows: {wrong}")


# The processes.


class Promises:
    """A file of what was begun (b"?") and what was promised (b"!"), outside the store."""

    def __init__(self, path: Path) -> None:
        self.begun, self.promised = promises(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def begin(self, steps: int) -> None:
        os.write(self._fd, PROMISE.pack(b"?", steps))

    def promise(self, steps: int) -> None:
        os.write(self._fd, PROMISE.pack(b"!", steps))


def promises(path: Path) -> tuple[int, int]:
    """Return how many steps were begun and how many promised."""
    data = path.read_bytes() if path.exists() else b""
    found = {b"?": 0, b"!": 0}
    for kind, steps in PROMISE.iter_unpack(data[: len(data) // PROMISE.size * PROMISE.size]):
        found[kind] = max(found[kind], steps)
    return found[b"?"], found[b"!"]


def write(plan: Plan, board: Board, role: int, number: int, rng: random.Random) -> None:
    """Write a stream for ever, going on where it ends."""
    known = Promises(plan.folder / f"promises-{number}")
    with ReplayStore.open(plan.path, mode="a") as store, store.writer(f"stream-{number}") as writer:
        if not known.promised <= writer.steps <= max(known.begun, known.promised):
            raise AssertionError(
                f"stream {number} has {writer.steps} steps, promised {known.promised}, begun {known.begun}"
            )
        while True:
            episodes = [rng.randint(1, 60) for _ in range(rng.choice((1, 1, 1, 3)))]
            known.begin(writer.steps + sum(episodes))
            for length in episodes:
                write_episode(writer, number, writer.steps, length, writer.episodes)
            store.commit()
            known.promise(writer.steps)
            board.tell(role, sum(episodes))


def learn(plan: Plan, board: Board, role: int, rng: random.Random) -> None:
    """Draw, update and commit priorities for ever."""
    done, under_way = plan.folder / "priorities-promised.npy", plan.folder / "priorities-begun.npy"
    with ReplayStore.open(plan.path, mode="a") as store:
        sampler = PrioritizedSampler(store, eps=0.0)
        wait_for_steps(store, BATCH)
        with_what_is_there(store, lambda: check_priorities(store, sampler, done, under_way))
        loader = ReplayLoader(sampler, batch_size=BATCH, gamma=GAMMA, prefetch=4, threads=2)
        changes: dict[int, float] = {}
        for turn, batch in enumerate(loader):
            ids = batch.step_ids.numpy()
            values = np.random.default_rng(rng.randrange(1 << 30)).random(len(ids)).astype(np.float32) + 0.125
            sampler.update_priorities(ids, values)
            changes.update(zip(ids.tolist(), values.tolist(), strict=True))
            board.tell(role, len(ids), check_batch(batch))
            if turn % UPDATES == UPDATES - 1:
                save(under_way, changes)
                store.commit()
                under_way.rename(done)
                changes = {}
                store.refresh()


def save(path: Path, values: dict[int, float]) -> None:
    """Write (id, priority) pairs, whole or not at all."""
    partial = path.with_suffix(".tmp.npy")
    np.save(partial, np.array(list(values.items()), np.float64))
    partial.rename(path)


def check_priorities(store: ReplayStore, sampler: PrioritizedSampler, done: Path, under_way: Path) -> None:
    """Compare priorities with those promised; what was under way counts wholly or not at all."""
    found = []
    for path in (under_way, done):
        if path.exists():
            pairs = np.load(path)
            ids = pairs[:, 0].astype(np.int64)
            with store.lock:
                live = store.access.can_sample(ids)
                found.append((ids[live], sampler.priorities_of(ids[live]) == pairs[live, 1].astype(np.float32)))
        else:
            found.append((np.empty(0, np.int64), np.ones(0, bool)))
    (begun, new), (promised, kept) = found
    kept = kept | (np.isin(promised, begun) if new.all() else False)
    if not kept.all():
        raise AssertionError(f"{(~kept).sum()} of {len(kept)} promised priorities are lost: {promised[~kept][:5]}")
    under_way.unlink(missing_ok=True)


def read(plan: Plan, board: Board, role: int, number: int, rng: random.Random) -> None:
    """Read rows for ever, of a store opened again from time to time."""
    while True:
        with ReplayStore.open(plan.path) as store:
            wait_for_steps(store, BATCH)
            sampler: Any = UniformSampler(store, seed=rng.randrange(1 << 30))
            for turn in range(400):
                store.refresh()
                if turn % 50 == 49:
                    kind = sampler if number % 2 else PrioritizedSampler(store, seed=turn)
                    loader = ReplayLoader(kind, batch_size=BATCH, gamma=GAMMA, prefetch=2, threads=2)
                    batches = iter(loader)
                    for batch in islice(batches, 10):
                        board.tell(role, BATCH, check_batch(batch))
                    batches.close()
                try:
                    batch = store.read(sampler.draw(BATCH).step_ids, gamma=GAMMA)
                except StepEvictedError:
                    continue
                board.tell(role, BATCH, check_batch(batch))


def with_what_is_there(store: ReplayStore, work: Callable[[], None]) -> None:
    """Do something, again as long as what it looks at is evicted meanwhile."""
    for _ in range(50):
        store.refresh()
        try:
            return work()
        except StepEvictedError:
            continue
    raise RuntimeError("whatever is looked at is evicted meanwhile")


def wait_for_steps(store: ReplayStore, count: int) -> None:
    """Wait until there is something to draw."""
    while len(store) < count:
        time.sleep(0.02)
        store.refresh()


# The one that starts, kills and watches them.


class Sample(NamedTuple):
    """What was seen at one moment: seconds since the start, index and disk bytes; of each role memory, files, rows.

    Memory is anonymous.
    """

    at: float
    index: int
    disk: int
    memory: list[int]
    files: list[int]
    rows: list[int]


@dataclass
class Running:
    """A process under watch."""

    pid: int
    turns: int
    since: float


@dataclass
class Tally:
    """What was found."""

    samples: list[Sample] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    growth: dict[str, float] = field(default_factory=dict)
    acknowledged: int = 0
    lost: int = 0
    wrong: int = 0
    steps: int = 0
    evicted: int = 0
    seconds: float = 0.0


class Soak:
    """Start the processes, kill one now and then, and sample."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.roles = plan.roles
        self.board = Board(len(self.roles))
        self.tally = Tally()
        self.running: dict[int, Running] = {}
        self.rng = random.Random(plan.seed)
        # Growth can only be seen in those that live long; the learner is killed, but not in the second half.
        self.spared = {0, plan.writers + 1}

    def run(self, *, show: bool = False) -> Tally:
        """Do it all; return what was found."""
        plan = self.plan
        self._child(make, plan)
        began = time.monotonic()
        for role in range(len(self.roles)):
            self._start(role)
        kill_at = plan.kill_every
        bar = tqdm(total=int(plan.seconds), disable=not show, unit="s")
        try:
            while (at := time.monotonic() - began) < plan.seconds:
                time.sleep(0.2 if plan.seconds < 60 else 1.0)
                self._watch()
                self._sample(at)
                if at >= kill_at:
                    kill_at += plan.kill_every
                    self._kill(late=at > plan.seconds / 2)
                bar.update(int(at) - bar.n)
        finally:
            bar.close()
            for running in self.running.values():
                os.kill(running.pid, signal.SIGKILL)
                os.waitpid(running.pid, 0)
        self.tally.seconds = time.monotonic() - began
        self._child(look_at_all, plan)
        result = plan.folder / "result.json"
        if result.exists():
            for name, value in json.loads(result.read_text()).items():
                known = getattr(self.tally, name)
                setattr(self.tally, name, known + value)
        self.tally.wrong += int(self.board.wrong.sum())
        self._judge_growth()
        return self.tally

    def _fork(self, work: Callable[..., None], *arguments: Any) -> int:
        pid = os.fork()
        if pid:
            return pid
        words, status = self.plan.folder / f"words-{os.getpid()}", 0
        try:
            with words.open("w") as file:
                os.dup2(file.fileno(), 2)
                faulthandler.register(signal.SIGUSR1, all_threads=True)
                work(*arguments)
        except BaseException:  # noqa: BLE001  to be told by the parent
            traceback.print_exc()
            status = 1
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _child(self, work: Callable[..., None], *arguments: Any) -> None:
        pid = self._fork(work, *arguments)
        if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            self._say(f"{work.__name__} ended with {status}", pid)

    def _start(self, role: int) -> None:
        kind, _, number = self.roles[role].partition(" ")
        rng = random.Random(f"{self.plan.seed}/{role}/{sum(self.tally.kills.values())}")
        work, arguments = {
            "writer": (write, (self.plan, self.board, role, int(number or 0), rng)),
            "learner": (learn, (self.plan, self.board, role, rng)),
            "reader": (read, (self.plan, self.board, role, int(number or 0), rng)),
        }[kind]
        pid = self._fork(work, *arguments)
        self.running[role] = Running(pid, int(self.board.turns[role]), time.monotonic())

    def _watch(self) -> None:
        for role, running in list(self.running.items()):
            pid, code = os.waitpid(running.pid, os.WNOHANG)
            if pid:
                self._say(f"{self.roles[role]} ended with {os.waitstatus_to_exitcode(code)}", running.pid)
                self._start(role)
            elif self.board.turns[role] != running.turns:
                running.turns, running.since = int(self.board.turns[role]), time.monotonic()
            elif time.monotonic() - running.since > PATIENCE:
                os.kill(running.pid, signal.SIGUSR1)
                time.sleep(1)
                self._say(f"{self.roles[role]} stands still", running.pid)
                self._end(role)
                self._start(role)

    def _kill(self, *, late: bool) -> None:
        learner = self.plan.writers
        victims = [role for role in self.running if role not in self.spared and not (late and role == learner)]
        if victims:
            role = self.rng.choice(victims)
            self._end(role)
            self.tally.kills[self.roles[role].split()[0]] += 1
            self._start(role)

    def _end(self, role: int) -> None:
        os.kill(self.running[role].pid, signal.SIGKILL)
        os.waitpid(self.running[role].pid, 0)

    def _say(self, what: str, pid: int) -> None:
        words = self.plan.folder / f"words-{pid}"
        self.tally.problems.append(f"{what}: {words.read_text()[-3000:] if words.exists() else ''}")

    def _sample(self, at: float) -> None:
        memory, files = [], []
        for role in range(len(self.roles)):
            process = Path(f"/proc/{self.running[role].pid}")
            try:
                resident, of_files = map(int, (process / "statm").read_text().split()[1:3])
                memory.append((resident - of_files) * mmap.PAGESIZE)  # pages of libraries and files come and go
                files.append(len(os.listdir(process / "fd")))  # noqa: PTH208  the names are not needed
            except OSError:
                memory.append(0)
                files.append(0)
        samples = self.tally.samples
        due = not samples or len(samples) % 5 == 0
        disk = disk_bytes(self.plan.path) if due else samples[-1].disk
        index = (self.plan.path / "index.lmdb" / "data.mdb").stat().st_size
        samples.append(Sample(at, index, disk, memory, files, self.board.rows.tolist()))

    def _judge_growth(self) -> None:
        """Compare the second quarter of the time with the last."""
        tally = self.tally
        end = tally.samples[-1].at
        early = [sample for sample in tally.samples if end * 0.25 <= sample.at < end * 0.5]
        late = [sample for sample in tally.samples if sample.at >= end * 0.75]
        if not early or not late:
            return

        def judge(name: str, of: Callable[[Sample], int], share: float, room: float, unit: float) -> None:
            one, two = (statistics.median(of(sample) for sample in part) for part in (early, late))
            tally.growth[name] = round((two - one) / unit, 2)
            if two > one * (1 + share) + room and tally.seconds >= JUDGED:
                tally.problems.append(f"{name} grew from {one / unit:.1f} to {two / unit:.1f}")

        judge("index, MB", lambda sample: sample.index, 0.25, 8e6, 1e6)
        judge("disk, MB", lambda sample: sample.disk, 0.25, 8e6, 1e6)
        for role in sorted(self.spared & set(range(len(self.roles)))):
            judge(f"memory of {self.roles[role]}, MB", lambda s, role=role: s.memory[role], 0.05, 16e6, 1e6)
            judge(f"files of {self.roles[role]}", lambda s, role=role: s.files[role], 0.10, 16, 1)


def make(plan: Plan) -> None:
    """Make the store."""
    ReplayStore.create(
        plan.path, scenario.SPEC, capacity=plan.capacity, segment_steps=plan.segment_steps, compression="zstd",
        durability=plan.durability,
    ).close()  # fmt: skip


def disk_bytes(path: Path) -> int:
    """Return the bytes that a folder takes on the disk; files may go meanwhile."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(f"{folder}/{name}").st_blocks * 512  # noqa: PTH116  thousands of times
            except FileNotFoundError:
                continue
    return total


def look_at_all(plan: Plan) -> None:
    """Check every row, and that each stream is whole; write what was found to result.json."""
    found: dict[str, Any] = {"problems": [], "acknowledged": 0, "lost": 0, "wrong": 0}
    with ReplayStore.open(plan.path) as store:
        found["problems"] += [f"verify: {problem}" for problem in store.verify() if problem.kind != "orphan"]
        ids = store.step_ids_of(np.arange(len(store)))
        batch = store.read(ids, gamma=GAMMA)
        wrong = check_batch(batch)
        found["wrong"] += bool(wrong)
        found["problems"] += wrong
        keys = batch.observation["vector"].astype(np.int64)
        stats, begun_in_all = store.stats(), 0
        for number in range(plan.writers):
            begun, promised = promises(plan.folder / f"promises-{number}")
            ordinals = np.sort(keys[keys[:, 0] == number][:, 1])
            found["acknowledged"] += promised
            begun_in_all += begun
            newest = int(ordinals[-1]) + 1 if len(ordinals) else 0
            gaps = int((np.diff(ordinals) != 1).sum())
            if gaps or not promised <= newest <= begun:
                found["lost"] += gaps + max(0, promised - newest)
                found["problems"].append(
                    f"stream {number}: {newest} steps, {promised} promised, {begun} begun, {gaps} gaps"
                )
        found["steps"], found["evicted"] = len(store), stats.steps_evicted
        total = len(store) + stats.steps_evicted
        if not found["acknowledged"] <= total <= begun_in_all:
            found["problems"].append(f"{total} steps are there or evicted, {found['acknowledged']} were promised")
        if len(store) < min(total, plan.capacity - plan.segment_steps):
            found["problems"].append(f"{len(store)} steps are left of {total}, there is room for {plan.capacity}")
        sampler = PrioritizedSampler(store, seed=0)
        check_priorities(store, sampler, plan.folder / "priorities-promised.npy", plan.folder / "priorities-begun.npy")
        sampler.draw(BATCH)
        sound, why = sampler.check_valid()
        if not sound:
            found["problems"].append(why)
    (plan.folder / "result.json").write_text(json.dumps(found))


def plot(tally: Tally, roles: Sequence[str], to: Path) -> None:
    """Draw memory, files, sizes and rates over time."""
    from matplotlib.figure import Figure

    at = [sample.at for sample in tally.samples]
    figure = Figure(figsize=(10, 12))
    panels = figure.subplots(4, 1, sharex=True)
    for role, name in enumerate(roles):
        style = {"label": name, "linewidth": 1.0}
        panels[0].plot(at, [sample.memory[role] / 1e6 for sample in tally.samples], **style)
        panels[1].plot(at, [sample.files[role] for sample in tally.samples], **style)
        rows = np.array([sample.rows[role] for sample in tally.samples], float)
        span = max(1, len(at) // 60)
        rates = (rows[span:] - rows[:-span]) / np.maximum(1e-9, np.subtract(at[span:], at[:-span]))
        panels[3].plot(at[span:], np.maximum(rates, 1), **style)
    panels[2].plot(at, [sample.index / 1e6 for sample in tally.samples], label="index")
    panels[2].plot(at, [sample.disk / 1e6 for sample in tally.samples], label="store on disk")
    titles = ("Anonymous memory, MB", "Open files", "Size, MB", "Rows per second (log scale)")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, loc="left")
        panel.grid(alpha=0.3)
    panels[3].set_yscale("log")
    panels[3].set_xlabel("Seconds")
    panels[2].legend()
    panels[0].legend(ncols=2, fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    figure.savefig(to, dpi=110)


def warm_up(folder: Path) -> None:
    """Compile what the processes use, once for all of them; no store stays open.

    What is compiled to choose codings, too: writers that are killed every few seconds would not get that far.
    """
    plan = Plan(folder / "warm", writers=1)
    plan.folder.mkdir()
    make(plan)
    with ReplayStore.open(plan.path, mode="a") as store, store.writer("stream-0") as writer:
        for episode in range(20):
            write_episode(writer, 0, writer.steps, 30, episode)
        store.seal()
        batches = iter(ReplayLoader(PrioritizedSampler(store), batch_size=8, gamma=GAMMA, threads=1))
        next(batches)
        batches.close()


def soak(plan: Plan, *, show: bool = False) -> tuple[Tally, list[str]]:
    """Run a plan; return what was found and the roles."""
    pid = os.fork()  # with the threads that warming up leaves, nobody should fork
    if not pid:
        status = 1
        try:
            warm_up(plan.folder)
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("what the processes use could not be compiled")
    running = Soak(plan)
    return running.run(show=show), running.roles


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--capacity", type=int, default=CAPACITY, metavar="STEPS")
    parser.add_argument("--kill-every", type=float, default=3.0, metavar="SECONDS")
    parser.add_argument("--durability", choices=("power", "process"), default="power")
    parser.add_argument("--count", type=int, help="has no effect: see --minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="where the store is made; default: a temporary folder")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if "TMPDIR" not in os.environ and Path("/dev/shm").is_dir():
        os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir=options.dir))
    plan = Plan(
        folder, options.writers, options.readers, options.minutes * 60, options.kill_every, options.seed,
        options.durability, options.capacity,
    )  # fmt: skip
    try:
        tally, roles = soak(plan, show=sys.stderr.isatty())
        if options.plot:
            plot(tally, roles, options.plot)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report(tally, roles, options.json)


def report(tally: Tally, roles: Sequence[str], to: Path | None) -> int:
    """Print and write down what was found; return the exit status."""
    rows: NDArray[np.int64] = np.array(tally.samples[-1].rows)
    rates = {role: round(int(count) / tally.samples[-1].at) for role, count in zip(roles, rows, strict=True)}
    for kind in ("writer", "learner", "reader"):
        mine = [rate for role, rate in rates.items() if role.startswith(kind)]
        print(f"{kind:8} {len(mine)} processes, rows/s {min(mine):,} to {max(mine):,}, {sum(mine):,} in all")  # noqa: T201
    for name, value in tally.growth.items():
        print(f"growth of {name}: {value:+}")  # noqa: T201
    print(  # noqa: T201
        f"{tally.seconds:.0f} s, {sum(tally.kills.values())} kills ({dict(tally.kills)}), {tally.steps:,} steps kept, "
        f"{tally.evicted:,} evicted, {tally.acknowledged:,} acknowledged, {tally.lost} lost, {tally.wrong} wrong, "
        f"{len(tally.problems)} problems"
    )
    for problem in tally.problems[:10]:
        print(problem)  # noqa: T201
    if to:
        found = {
            "suite": "soak",
            "trials": sum(tally.kills.values()),
            "acknowledged": tally.acknowledged,
            "lost": tally.lost,
            "wrong": tally.wrong,
            "problems": len(tally.problems),
            "seconds": round(tally.seconds, 1),
            "rows_per_second": rates,
            "kills": tally.kills,
            "growth": tally.growth,
            "samples": [sample._asdict() for sample in tally.samples[:: max(1, len(tally.samples) // 300)]],
            "found": tally.problems[:20],
        }
        to.write_text(json.dumps(found))
    return int(bool(tally.problems))


if __name__ == "__main__":
    sys.exit(main())
