"""Kill -9 at random times: two writers, a learner and a reader, all processes of their own, over one store.

Each process notes in a file outside the store what was acknowledged to it; the learner notes, before it commits, which
priorities it is about to commit, and puts the number of that round into the store's metadata. Every stored value is a
function of the stream and the ordinal of the step, so a batch says by itself whether it is right; writers, learner and
reader look at every batch they read, too. Now and then one process is killed and started again beside the others; at
the end of a round all are killed, at once or one after the other, and the store is checked as it lies there:

- it opens, and verify finds nothing but orphans
- of each stream there is an unbroken run of ordinals that reaches at least to the last one acknowledged; what is
  missing before it was evicted, is counted as such, and was above the capacity
- every byte is right
- the learner's last round is the one acknowledged to it or the one on its way, and every priority is what the
  rounds up to it say: the last value given, or else the largest seen when the learner met the step

Then the next round goes on with the same store; after a number of kills a new one is made.

    python -m tests.torture.kill_random --kills 10000
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from diskreplay import PrioritizedSampler, ReplayStore, UniformSampler
from diskreplay.errors import NotEnoughStepsError, StepEvictedError, StoreLockedError
from tests.torture.scenario import (
    MOST_LINES,
    SPEC,
    action_of,
    describe,
    observation,
    observations,
    reward_of,
    small_journal,
)
from tests.torture.trial import fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from diskreplay import Batch

SEGMENT_STEPS = 16
CAPACITY = 240
ROLES = ("writer-0", "writer-1", "learner", "reader")
STREAMS = ("actor-0", "actor-1")
KILLS_PER_STORE = 50
IDLE_KILLS = 40
PATIENCE = 5.0
SHOWN = 20
PR_SET_PDEATHSIG = 1


def wrong_in(batch: Batch) -> list[str]:
    """Return what is wrong with a batch of single steps, each of which says who it is."""
    keys = batch.observation["vector"].astype(np.int64)
    stream, ordinal, episode = keys.T
    following = np.stack([stream, ordinal + 1, episode], axis=1)
    ended = batch.discount == 0
    checks = {
        "camera": (batch.observation["camera"], observations(keys)["camera"]),
        "next vector": (batch.next_observation["vector"], following),
        "next camera": (batch.next_observation["camera"], observations(following)["camera"]),
        "action": (batch.action, action_of(stream, ordinal)),
        "reward": (batch.reward, reward_of(stream, ordinal)),
        "discount": (batch.discount, np.where(ended & (ordinal % 3 == 0), 0.0, 0.5)),
    }
    out = []
    for name, (found, expected) in checks.items():
        wrong = np.flatnonzero((found != expected).reshape(len(keys), -1).any(axis=1))
        if len(wrong):
            where = f"step {int(batch.step_ids[wrong[0]])}, {keys[wrong[0]].tolist()}"
            out.append(f"{name} of {len(wrong)} steps, such as {where}: {found[wrong[0]].ravel()[:4].tolist()}")
    return out


@dataclass
class Files:
    """Where the processes of one store note what was acknowledged, and what they found wrong."""

    folder: Path

    def __post_init__(self) -> None:
        self.store = self.folder / "store.replay"
        self.problems = self.folder / "problems"

    def note(self, name: str) -> Callable[[Any], None]:
        """Return a function that appends a JSON line with a single write."""
        fd = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.write(fd, b"\n")  # a line that a kill cut off ends here

        def write(value: Any) -> None:
            os.write(fd, json.dumps(value).encode() + b"\n")

        return write

    def read(self, name: str) -> Iterator[Any]:
        """Yield the lines of a file; one that was cut off is left out."""
        path = self.folder / name
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def last(self, name: str) -> int:
        return max(self.read(name), default=0)

    def size(self, name: str) -> int:
        path = self.folder / name
        return path.stat().st_size if path.exists() else 0


def write_life(files: Files, number: int, rng: random.Random) -> None:
    """Write episodes for ever."""
    store, acknowledge = ReplayStore.open(files.store, mode="a"), files.note(f"writer-{number}")
    writer = _claim(store, STREAMS[number])

    def commit() -> None:
        (store.seal if rng.random() < 0.05 else store.commit)()
        acknowledge(writer.steps)

    while True:
        episode, first, count = writer.episodes, writer.steps, rng.randint(1, 24)
        if rng.random() < 0.3:
            ordinals = first + np.arange(count + 1)
            keys = np.stack([np.full(count + 1, number), ordinals, np.full(count + 1, episode)], axis=1)
            ends = (ordinals[:-1] == ordinals[-2]) * (1 + ordinals[:-1] % 3)
            given = action_of(number, ordinals[:-1]), reward_of(number, ordinals[:-1])
            writer.write_episode(observations(keys), *given, ends == 1, ends == 2)
        else:
            writer.reset(observation((number, first, episode)))
            for ordinal in range(first, first + count):
                end = ordinal % 3 if ordinal == first + count - 1 else -1
                follows = observation((number, ordinal + 1, episode))
                given = action_of(number, ordinal), reward_of(number, ordinal)
                writer.step(*given, end == 0, end == 1, follows)
                if rng.random() < 0.1:
                    commit()
        if rng.random() < 0.5:
            commit()


def _claim(store: ReplayStore, stream: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return store.writer(stream)
        except StoreLockedError:  # by somebody who seals what the last writer left
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)


def learn_life(files: Files, rng: random.Random) -> None:
    """Draw, change priorities and commit for ever."""
    small_journal()
    store = ReplayStore.open(files.store, mode="a")
    intend, acknowledge = files.note("rounds"), files.note("learner")
    acknowledge(
        store.metadata.get("round", 0)
    )  # the last may have been committed, and its learner killed before it said so
    sampler = PrioritizedSampler(store, eps=0.0)
    while True:
        _let_others(rng)
        store.refresh()
        try:
            ids = sampler.draw(rng.choice((1, 8, 32))).step_ids
        except NotEnoughStepsError:
            time.sleep(0.002)
            continue
        _look(files, store, ids)
        number = store.metadata.get("round", 0) + 1
        values = [rng.randrange(257) / 256 * (4 + number / 64) for _ in ids]
        live = [column.tolist() for column in store.access.live_segments()]
        intend({"round": number, "largest": sampler.largest, "live": live, "ids": ids.tolist(), "values": values})
        sampler.update_priorities(ids, values)
        store.update_metadata({"round": number})
        (store.seal if rng.random() < 0.02 else store.commit)()
        acknowledge(number)


def read_life(files: Files, rng: random.Random) -> None:
    """Read what is there for ever."""
    store = ReplayStore.open(files.store)
    note = files.note("reader")
    kinds = (UniformSampler, PrioritizedSampler)
    while True:
        sampler = rng.choice(kinds)(store, seed=rng.randrange(1 << 30))
        for _ in range(5):
            _let_others(rng)
            store.refresh()
            try:
                _look(files, store, sampler.draw(16).step_ids)
            except NotEnoughStepsError:
                time.sleep(0.002)
        note(len(store))


def _let_others(rng: random.Random) -> None:
    """Sleep now and then: others seal, cut and evict, and one refresh takes it all in."""
    if rng.random() < 0.3:
        time.sleep(rng.uniform(0, 0.05))


def _look(files: Files, store: ReplayStore, ids: NDArray[np.int64]) -> None:
    try:
        wrong = wrong_in(store.read(ids, gamma=0.5))
    except StepEvictedError:  # by another process, since the draw
        return
    if wrong:
        files.note("problems")(f"a batch of a running process: {wrong}")


def check(files: Files) -> list[str]:
    """Return what is wrong with a store whose processes are all dead."""
    try:
        with ReplayStore.open(files.store) as store:
            problems = [f"verify: {p.kind}: {p.where}: {p.what}" for p in store.verify() if p.kind != "orphan"]
            ids = store.step_ids_of(np.arange(len(store)))
            if len(ids):
                batch = store.read(ids, gamma=0.5)
                problems += wrong_in(batch)
                problems += _check_streams(files, store, batch.observation["vector"].astype(np.int64))
            problems += _check_priorities(files, store, ids)
    except Exception as err:  # noqa: BLE001  whatever it is, the store cannot be read
        problems = [describe("it cannot be read", err)]
    return problems[:MOST_LINES]


def _check_streams(files: Files, store: ReplayStore, keys: NDArray[np.int64]) -> Iterable[str]:
    evicted, live = store.stats().steps_evicted, len(keys)
    gone = 0
    steps = {stream.name: stream.steps for stream in store._engine.streams.values()}
    for number, name in enumerate(STREAMS):
        ordinals = keys[keys[:, 0] == number, 1]
        acked, end = files.last(f"writer-{number}"), steps.get(name, 0)
        if len(ordinals) and (np.diff(ordinals) != 1).any():
            broken = ordinals[np.diff(ordinals, append=0) != 1]
            yield f"stream {number}: a step is missing or twice there, after {broken.tolist()}"
        if end < acked or (len(ordinals) and ordinals[-1] != end - 1):
            yield f"stream {number}: {acked} steps acknowledged, {end} counted, the last one here is {ordinals[-1:]}"
        gone += int(ordinals[0]) if len(ordinals) else end
    if gone != evicted:
        yield f"{gone} steps are gone, {evicted} are counted as evicted"
    if gone and live <= CAPACITY - SEGMENT_STEPS:
        yield f"{gone} steps were evicted, and {live} are left, of a capacity of {CAPACITY}"
    if live > CAPACITY + 2 * len(STREAMS) * SEGMENT_STEPS:
        yield f"{live} steps are there, the capacity is {CAPACITY}"


def _check_priorities(files: Files, store: ReplayStore, ids: NDArray[np.int64]) -> Iterable[str]:
    committed, acked = store.metadata.get("round", 0), files.last("learner")
    if not acked <= committed <= acked + 1:
        yield f"the last round is {committed}, {acked} was acknowledged"
    # A round that was cut off is tried again under its number: the last attempt is the one that counts.
    rounds = {entry["round"]: entry for entry in files.read("rounds") if entry["round"] <= committed}
    if len(rounds) != committed:
        yield f"{committed} rounds were committed, {len(rounds)} begun"
        return
    sampler = PrioritizedSampler(store, eps=0.0)
    expected: dict[int, float] = {}
    known: dict[int, int] = defaultdict(int)
    for _, entry in sorted(rounds.items()):
        for segment, rows in zip(*entry["live"], strict=True):
            first = segment * SEGMENT_STEPS
            expected.update(dict.fromkeys(range(first + known[segment], first + rows), entry["largest"]))
            known[segment] = max(known[segment], rows)
        expected.update(zip(entry["ids"], entry["values"], strict=True))
    largest = max([1.0, *(max(entry["values"]) for entry in rounds.values())])
    if rounds and sampler.largest != np.float32(largest):
        yield f"the largest priority is {sampler.largest}, {largest} was given"
    wanted = np.array([expected.get(step_id, largest) for step_id in ids.tolist()], np.float32)
    found = sampler.priorities_of(ids)
    wrong = np.flatnonzero(found != wanted)
    if len(wrong):
        at = int(wrong[0])
        yield f"{len(wrong)} priorities differ, that of step {int(ids[at])} is {found[at]}, not {wanted[at]}"
    sound, why = sampler.check_valid()
    if not sound:
        yield f"the sum tree: {why}"


@dataclass
class Tally:
    """What came of a number of kills."""

    kills: int = 0
    rounds: int = 0
    stores: int = 0
    steps: int = 0
    commits: int = 0
    killed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def add(self, other: dict[str, Any]) -> None:
        self.killed.update(other.pop("killed"))
        for name, value in other.items():
            setattr(self, name, getattr(self, name) + value)


class Arena:
    """One store after the other, and the processes that live and die over it.

    Args:
        folder: An empty folder.
        seed: Of the times, the victims, and what the processes do.
        keep: Where to leave copies of stores that have problems.
    """

    def __init__(self, folder: Path, seed: int, keep: Path | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.rng = random.Random(seed)
        self.stores = 0
        self.kills_here = KILLS_PER_STORE
        self.seen: dict[str, tuple[int, int]] = {}
        self.running: dict[str, int] = {}

    def round(self) -> Tally:
        """Let all live for a moment, kill some on the way and all in the end, check."""
        tally, rng = Tally(rounds=1), self.rng
        if self.kills_here >= KILLS_PER_STORE:
            self._new_store()
            tally.stores = 1
        before = self._progress()
        for role in ROLES:
            self._start(role)
        for _ in range(rng.randint(0, 3)):
            time.sleep(rng.uniform(0.0, 0.15))
            role = rng.choice(ROLES)
            self._kill([role], tally)
            self._start(role)
        time.sleep(rng.uniform(0.02, 0.3))
        roles = rng.sample(ROLES, len(ROLES))
        if rng.random() < 0.5:
            self._kill(roles, tally)
        else:
            for role in roles:
                self._kill([role], tally)
                time.sleep(rng.uniform(0.0, 0.03))
        self.kills_here += tally.kills
        self._check(tally)
        after = self._progress()
        tally.steps, tally.commits = (b - a for a, b in zip(before, after, strict=True))
        return tally

    def _new_store(self) -> None:
        self.stores += 1
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.files = Files(self.folder)
        self.seen, self.kills_here = {}, 0
        fork(self._create)

    def _create(self) -> None:
        ReplayStore.create(self.files.store, SPEC, capacity=CAPACITY, segment_steps=SEGMENT_STEPS).close()

    def _progress(self) -> tuple[int, int]:
        steps = [self.files.last(f"writer-{number}") for number in range(len(STREAMS))]
        commits = sum(1 for name in ROLES[:3] for _ in self.files.read(name))
        return sum(steps), commits

    def _start(self, role: str) -> None:
        seed, parent = self.rng.randrange(1 << 30), os.getpid()
        pid = os.fork()
        if pid:
            self.running[role] = pid
            return
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == parent:
                _live(self.files, role, random.Random(seed))
        finally:
            os._exit(1)

    def _kill(self, roles: Sequence[str], tally: Tally) -> None:
        for role in roles:
            os.kill(self.running[role], signal.SIGKILL)
        for role in roles:
            _, status = os.waitpid(self.running.pop(role), 0)
            code = os.waitstatus_to_exitcode(status)
            if code == -signal.SIGKILL:
                tally.kills += 1
                tally.killed[role] += 1
            elif code != 1:
                tally.problems.append(f"{role} ended with {code} before it was killed")

    def _check(self, tally: Tally) -> None:
        found, ended = fork(check, self.files)
        tally.problems += found if found is not None else [f"the check {ended or 'ended without a word'}"]
        tally.problems += list(self.files.read("problems"))
        self.files.problems.unlink(missing_ok=True)
        for role in ROLES:
            size = self.files.size(role)
            known, since = self.seen.get(role, (0, 0))
            if size > known + tally.kills:  # a start alone leaves one byte
                self.seen[role] = size, self.kills_here
            elif self.kills_here - since > IDLE_KILLS:
                tally.problems.append(f"{role} got nothing done in {self.kills_here - since} kills")
        if tally.problems:
            if self.keep is not None:
                shutil.copytree(self.folder, self.keep / f"{self.folder.name}-{self.stores}-{self.kills_here}")
            self.kills_here = KILLS_PER_STORE


def _live(files: Files, role: str, rng: random.Random) -> None:
    try:
        if role == "learner":
            learn_life(files, rng)
        elif role == "reader":
            read_life(files, rng)
        else:
            write_life(files, int(role[-1]), rng)
    except BaseException as err:  # noqa: BLE001  nothing may end such a life but a kill
        files.note("problems")(describe(f"{role} failed", err))


def serve(folder: Path, seed: int, keep: Path | None) -> None:
    """Do rounds for as long as somebody reads the results."""
    arena = Arena(folder / "warm", seed)
    arena._new_store()
    with ReplayStore.open(arena.files.store, mode="a") as store:
        with store.writer("warm") as writer:
            keys = np.arange(3 * 41).reshape(-1, 3)
            flags = np.zeros(40, bool)
            writer.write_episode(observations(keys), np.zeros(40, int), np.zeros(40), flags, flags)
        sampler = PrioritizedSampler(store)
        store.read(sampler.draw(8).step_ids)
        sampler.update_priorities(sampler.draw(8).step_ids, np.ones(8))
        store.read(UniformSampler(store).draw(8).step_ids)
        store.commit()
    del sampler
    check(arena.files)
    arena = Arena(folder / "arena", seed, keep)
    while True:
        print(json.dumps(vars(arena.round())), flush=True)  # noqa: T201


def kill(kills: int, *, seed: int = 0, workers: int = 2, keep: Path | None = None, show: bool = False) -> Tally:
    """Kill a number of processes.

    Args:
        kills: How many at least.
        seed: Of everything but what the clock decides.
        workers: Stores at the same time.
        keep: Where to leave copies of stores that have problems.
        show: Show a progress bar.
    """
    tally, began, done = Tally(), time.monotonic(), SimpleQueue[str]()
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as name:
        servers = []
        for number in range(workers):
            command = [sys.executable, "-m", "tests.torture.kill_random", "--serve", f"{name}/{number}"]
            command += ["--seed", str(1000 * seed + number), *(["--keep", str(keep)] if keep else [])]
            servers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        try:
            for server in servers:
                threading.Thread(target=_collect, args=(server, done), daemon=True).start()
            with tqdm(total=kills, unit="kill", disable=not show, smoothing=0) as bar:
                while tally.kills < kills:
                    line = done.get()
                    if not line:
                        raise RuntimeError("a process that kills ended")
                    before = tally.kills
                    tally.add(json.loads(line))
                    bar.update(tally.kills - before)
        finally:
            for server in servers:
                server.kill()
                server.wait()
    tally.seconds = time.monotonic() - began
    return tally


def _collect(server: subprocess.Popen[str], done: SimpleQueue[str]) -> None:
    with server.stdout as lines:
        for line in lines:
            done.put(line)
    done.put("")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="stores at the same time")
    parser.add_argument("--keep", type=Path, help="folder for copies of stores that have problems")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if "TMPDIR" not in os.environ and Path("/dev/shm").is_dir():
        os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"
    if options.serve:
        serve(options.serve, options.seed, options.keep)
    tally = kill(options.kills, seed=options.seed, workers=options.workers, keep=options.keep, show=True)
    rate = tally.kills / tally.seconds
    print(f"{tally.kills} kills in {tally.seconds:.0f} s, {rate:.1f}/s: {dict(tally.killed)}")  # noqa: T201
    print(f"{tally.stores} stores, {tally.rounds} checks; acknowledged: {tally.steps} steps, {tally.commits} commits")  # noqa: T201
    print(f"{len(tally.problems)} problems")  # noqa: T201
    for line in tally.problems[:SHOWN]:
        print(line)  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps(vars(tally)))
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
