"""Fork, kill and stop processes around an open store whose threads are busy: nothing may hang, nothing may be wrong.

One process has a store open with mode="a": a thread writes and commits, one iterates a ReplayLoader, one draws and
updates priorities, and the main thread holds an idle loader iterator. Meanwhile:

- forks: children by os.fork (leaving by os._exit, or through the interpreter's shutdown), multiprocessing fork,
  forkserver and spawn. A forked child uses what it inherited, which must raise a ReplayError, drops it, opens the
  store anew, reads rows, and every fourth writes and commits a stream of its own; what it reads is checked, and what
  it committed must be found by the parent. No child may take longer than PATIENCE seconds.
- loaders: a ReplayLoader with two worker processes under fork, forkserver and spawn, one of whose workers is killed
  in the end: torch's error, not a hang.
- readers: processes killed inside a read transaction, more than LMDB's default table has room for: new readers get
  in, and the index stops growing.
- stops: a writer process is stopped (SIGSTOP) at random moments and for some time: what the others may have to wait
  for is its write transaction, and all go on after SIGCONT.

Rows carry their stream, ordinal and episode, and everything else follows from those, so every row can be checked by
itself. Not covered: forks by threads other than the main one; a fork while a backup or a verification runs.

    python -m tests.torture.forks --count 1000
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from diskreplay import PrioritizedSampler, ReplayError, ReplayLoader, ReplayStore, StepEvictedError, UniformSampler
from diskreplay.storage.environment import READER_CHECK_S
from tests.torture import scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

PATIENCE = 60.0  # on a busy machine the end of an interpreter of this size was seen to compute for 10 s
STARTING = 90.0  # a spawned interpreter imports torch first, and the machine may be busy
SEGMENT_STEPS = 64
CAPACITY = 6000
GAMMA = 0.5
MODES = {"fork": 35, "fork-shutdown": 25, "mp-fork": 25, "forkserver": 12, "spawn": 3}
DEAD_READERS = 140


def keys_of(stream: int, first: int, count: int, episode: int) -> NDArray[np.int64]:
    """Return the keys of an episode's observations, (count + 1, 3)."""
    ordinals = np.arange(first, first + count + 1)
    return np.stack([np.full_like(ordinals, stream), ordinals, np.full_like(ordinals, episode)], axis=1)


def write_episode(writer: Any, stream: int, first: int, count: int, episode: int) -> NDArray[np.int64]:
    """Write an episode that follows from its arguments; return the step ids."""
    keys = keys_of(stream, first, count, episode)
    ordinals = keys[:-1, 1]
    last = ordinals == ordinals[-1]
    return writer.write_episode(
        scenario.observations(keys),
        scenario.action_of(stream, ordinals),
        scenario.reward_of(stream, ordinals),
        last & (episode % 2 == 0),
        last & (episode % 2 == 1),
    )


def check_batch(batch: Any, gamma: float = GAMMA) -> list[str]:
    """Return which columns of a batch of one-step transitions do not follow from the keys in their observations."""
    vector, following = np.asarray(batch.observation["vector"]), np.asarray(batch.next_observation["vector"])
    keys = vector.astype(np.int64)
    after = keys + np.array([0, 1, 0])
    discount = np.asarray(batch.discount)
    found = {
        "camera": (batch.observation["camera"], scenario.observations(keys)["camera"]),
        "next camera": (batch.next_observation["camera"], scenario.observations(after)["camera"]),
        "next vector": (following, after.astype(np.float32)),
        "action": (batch.action, scenario.action_of(keys[:, 0], keys[:, 1])),
        "reward": (batch.reward, scenario.reward_of(keys[:, 0], keys[:, 1])),
        "discount": (discount, np.where(discount == 0, 0, gamma)),
    }
    return [
        f"{name} of steps {np.asarray(batch.step_ids)[:4].tolist()}"
        for name, (one, two) in found.items()
        if not np.array_equal(np.asarray(one), two)
    ]


@dataclass
class Child:
    """A process under watch."""

    number: int
    mode: str
    pid: int
    began: float
    words: Path
    process: Any = None


@dataclass
class Tally:
    """What was done and found."""

    done: Counter[str] = field(default_factory=Counter)
    slowest: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    lost: int = 0
    wrong: int = 0
    problems: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


def note(path: Path, kind: str, text: str) -> None:
    """Write a line for the parent; small appends of several processes do not mix."""
    with path.open("a") as file:
        file.write(f"{kind}\t{text}\n")


# What a child does.


class Inherited:
    """What the parent has and a forked child finds."""

    def __init__(self, store: ReplayStore, writer: Any, sampler: Any, batches: Iterator[Any]) -> None:
        self.store: Any = store
        self.writer = writer
        self.sampler = sampler
        self.batches: Any = batches

    def uses(self) -> dict[str, Callable[[], Any]]:
        """Return calls that a child must not get away with."""
        store = self.store
        return {
            "read": lambda: store.read(np.array([0])),
            "commit": store.commit,
            "refresh": store.refresh,
            "writer": lambda: store.writer("other"),
            "write_episode": lambda: write_episode(self.writer, 0, 0, 2 * SEGMENT_STEPS, 0),
            "draw": lambda: self.sampler.draw(4),
            "next": lambda: next(self.batches),
        }

    def drop(self) -> None:
        self.store.close()
        self.store = self.writer = self.sampler = self.batches = None
        gc.collect()


def child(number: int, path: Path, words: Path, inherited: Inherited | None) -> None:
    """Use what was inherited, drop it, open the store anew, read, and maybe write."""
    rng = random.Random(number)
    faulthandler.register(signal.SIGUSR1, file=words.with_suffix(f".{number}.stack").open("w"), all_threads=True)
    try:
        if inherited is not None:
            for name, use in inherited.uses().items():
                try:
                    use()
                except ReplayError:
                    continue
                note(words, "problem", f"child {number}: {name} of an inherited store raised nothing")
            inherited.drop()
        look(path, rng, words, number)
        if rng.random() < 0.25:
            append(path, words, number)
    except BaseException as err:  # noqa: BLE001  to be told by the parent
        frames = " < ".join(
            f"{Path(f.filename).name}:{f.lineno}" for f in reversed(traceback.extract_tb(err.__traceback__)[-5:])
        )
        note(words, "problem", f"child {number}: {err!r} at {frames}")
    note(words, "end", str(number))


def look(path: Path, rng: random.Random, words: Path, number: int) -> None:
    """Read rows of a store opened anew, and check them."""
    with ReplayStore.open(path) as store:
        sampler = (UniformSampler if rng.random() < 0.5 else PrioritizedSampler)(store, seed=number)
        if rng.random() < 0.3:
            loader = ReplayLoader(sampler, batch_size=32, gamma=GAMMA, prefetch=2, threads=2)
            batches = iter(loader)
            found = list(islice(batches, 3))
            batches.close()
        else:
            found = [read_current(store, sampler, 64)]
        for wrong in [line for batch in found for line in check_batch(batch)]:
            note(words, "wrong", f"child {number}: {wrong}")
    gc.collect()


def read_current(store: ReplayStore, sampler: Any, size: int) -> Any:
    """Read a draw; another, where what was drawn has been evicted meanwhile."""
    for _ in range(20):
        store.refresh()
        try:
            return store.read(sampler.draw(size).step_ids, gamma=GAMMA)
        except StepEvictedError:
            continue
    raise RuntimeError("whatever is drawn is evicted before it is read")


def append(path: Path, words: Path, number: int) -> None:
    """Write and commit an episode of a stream of one's own."""
    with ReplayStore.open(path, mode="a") as store:
        stream = 1000 + number
        with store.writer(f"child-{number % 4}") as writer:
            ids = write_episode(writer, stream, 0, 10, number)
            store.commit()
            note(words, "ack", f"{number} {stream} {int(ids[0])} {int(ids[-1])}")


def child_of_its_own(number: int, path: Path, words: Path) -> None:
    """Be the target of a multiprocessing child that inherits nothing."""
    child(number, path, words, None)


def new_reader(path: Path, words: Path) -> None:
    """Be a process that opens the store and reads."""
    look(path, random.Random(0), words, 0)


_inherited: Inherited | None = None


def forked_child(number: int, path: Path, words: Path) -> None:
    """Be the target of a multiprocessing child that inherits everything."""
    child(number, path, words, _inherited)


# The parent.


class Parent:
    """A process with a store whose threads are busy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path, self.words = folder / "fork.replay", folder / "words"
        self.words.touch()
        self.tally = Tally()
        self.stopping = threading.Event()
        self.progress: Counter[str] = Counter()
        self.failures: list[str] = []
        self.pid = os.getpid()

    def start(self) -> None:
        """Open the store and set the threads to work."""
        self.store = ReplayStore.create(
            self.path, scenario.SPEC, capacity=CAPACITY, segment_steps=SEGMENT_STEPS, compression="zstd"
        )
        self.writer, self.ordinal, self.episode = self.store.writer("parent"), 0, 0
        for _ in range(30):
            self._write()
        self.prioritized = PrioritizedSampler(self.store, seed=0)
        self.idle = iter(
            ReplayLoader(UniformSampler(self.store, seed=1, name="idle"), batch_size=16, gamma=GAMMA, threads=1)
        )
        next(self.idle)
        self.busy = ReplayLoader(UniformSampler(self.store, seed=2), batch_size=32, gamma=GAMMA, threads=2)
        self.threads = [threading.Thread(target=self._keep, args=(name,)) for name in ("write", "load", "update")]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Let the threads end, and close the store."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(PATIENCE)
            if thread.is_alive():
                self.tally.problems.append("a thread of the parent does not end")
        self.idle.close()
        self.store.close()

    def _keep(self, name: str) -> None:
        batches = iter(self.busy)
        try:
            while not self.stopping.is_set():
                match name:
                    case "write":
                        self._write()
                        time.sleep(0.005)
                    case "load":
                        self._check(next(batches))
                        time.sleep(0.002)
                    case "update":
                        drawn = self.prioritized.draw(32)
                        self.prioritized.update_priorities(drawn.step_ids, np.random.default_rng(0).random(32))
                        time.sleep(0.002)
                self.progress[name] += 1
        except BaseException as err:  # noqa: BLE001  to be told at the end
            self.failures.append(f"thread {name}: {err!r}\n{traceback.format_exc()}")
        finally:
            batches.close()

    def _write(self) -> None:
        length = 5 + self.episode % 30
        write_episode(self.writer, 0, self.ordinal, length, self.episode)
        self.ordinal, self.episode = self.ordinal + length, self.episode + 1
        self.store.commit()

    def _check(self, batch: Any) -> None:
        wrong = check_batch(batch)
        self.tally.wrong += bool(wrong)
        self.tally.problems += [f"the parent's loader: {line}" for line in wrong]

    # Forks.

    def forks(self, count: int, modes: Sequence[str], *, at_once: int = 3, show: bool = False) -> None:
        """Make children, a few at a time, and wait for each as long as it may take."""
        global _inherited  # noqa: PLW0603  how a multiprocessing child gets at it
        inherited = Inherited(self.store, self.writer, self.prioritized, self.idle)
        _inherited = inherited
        plan = random.Random(count).choices(modes, [MODES[mode] for mode in modes], k=count)
        plan[: len(modes)] = modes[:count]
        contexts = {name: multiprocessing.get_context(name) for name in ("fork", "forkserver", "spawn")}
        contexts["forkserver"].set_forkserver_preload(["tests.torture.forks"])
        running: list[Child] = []
        before, waited = Counter(self.progress), time.monotonic()
        for number, mode in enumerate(tqdm(plan, disable=not show, unit="fork", smoothing=0)):
            began = time.monotonic()
            if mode in {"fork", "fork-shutdown"}:
                made = Child(number, mode, self._raw_fork(number, mode, inherited), began, self.words)
            else:
                name = mode.removeprefix("mp-")
                target = forked_child if name == "fork" else child_of_its_own
                process = contexts[name].Process(target=target, args=(number, self.path, self.words))
                process.start()
                made = Child(number, mode, process.pid, began, self.words, process)
            self.tally.slowest["fork in ms"] = max(
                self.tally.slowest["fork in ms"], int(1000 * (time.monotonic() - began))
            )
            self.tally.done[mode] += 1
            running.append(made)
            while len(running) >= at_once or (number == count - 1 and running):
                running = [one for one in running if not self._ended(one)]
                time.sleep(0.001)
            if time.monotonic() - waited > PATIENCE:
                self._alive(before)
                before, waited = Counter(self.progress), time.monotonic()
        self._hear()

    def _raw_fork(self, number: int, mode: str, inherited: Inherited) -> int:
        pid = os.fork()
        if pid:
            return pid
        child(number, self.path, self.words, inherited)
        if mode == "fork":
            os._exit(0)
        # The child's copies of the parent's objects go the way of all objects, at the interpreter's end; but
        # multiprocessing would wait for the parent's children.
        multiprocessing.process._children.clear()
        self.store = self.writer = self.prioritized = self.idle = self.busy = None  # type: ignore[assignment]
        sys.exit(0)

    def _ended(self, one: Child) -> bool:
        patience = STARTING if one.mode in {"spawn", "forkserver"} else PATIENCE
        took = time.monotonic() - one.began
        status: int | None
        if one.process is not None:
            one.process.join(0)
            status = one.process.exitcode
        else:
            pid, code = os.waitpid(one.pid, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if pid else None
        if status is None and took < patience:
            return False
        self.tally.slowest[f"{one.mode} in ms"] = max(self.tally.slowest[f"{one.mode} in ms"], int(1000 * took))
        if status is None:
            self.tally.problems.append(f"child {one.number} ({one.mode}) hangs: {self._stack(one)}")
            os.kill(one.pid, signal.SIGKILL)
            if one.process is None:
                os.waitpid(one.pid, 0)
            else:
                one.process.join()
        elif status:
            self.tally.problems.append(f"child {one.number} ({one.mode}) ended with {status}")
        return True

    def _stack(self, one: Child) -> str:
        """Return where a child is, as far as it can be had."""
        stack, process = self.words.with_suffix(f".{one.number}.stack"), Path(f"/proc/{one.pid}")
        if not stack.exists():
            return "it has not begun"
        os.kill(one.pid, signal.SIGUSR1)
        time.sleep(0.5)
        done = f"end\t{one.number}\n" in self.words.read_text()
        waits = {task.name: (task / "wchan").read_text() for task in (process / "task").iterdir()}
        return f"its work is {'' if done else 'not '}done; its threads wait in {waits}\n{stack.read_text()[:3000]}"

    def _alive(self, before: Counter[str]) -> None:
        for name in ("write", "load", "update"):
            if self.progress[name] == before[name] and not self.failures:
                where = self.words.with_suffix(".stack")
                with where.open("w") as file:
                    faulthandler.dump_traceback(file)
                self.tally.problems.append(f"thread {name} of the parent stands still:\n{where.read_text()}")

    def _hear(self) -> None:
        """Take in what the children wrote, and look whether what they committed is there."""
        kinds: dict[str, list[str]] = {"ack": [], "problem": [], "wrong": [], "end": []}
        for line in self.words.read_text().splitlines():
            kind, text = line.split("\t", 1)
            kinds[kind].append(text)
        self.words.write_text("")
        tally = self.tally
        tally.problems += kinds["problem"] + kinds["wrong"]
        tally.wrong += len(kinds["wrong"])
        tally.acknowledged += len(kinds["ack"])
        try:
            self._look_for([tuple(map(int, text.split())) for text in kinds["ack"]])
        except Exception:  # noqa: BLE001  whatever it is, the parent cannot go on
            tally.problems.append(f"the parent cannot read what its children wrote: {traceback.format_exc()}")

    def _look_for(self, acknowledged: Sequence[tuple[int, ...]]) -> None:
        """Look whether committed episodes are there, or evicted."""
        with self.store.lock, ReplayStore.open(self.path) as store:  # so that nothing is evicted meanwhile
            live = store.access.live_segments()[0]
            every = store.step_ids_of(np.arange(len(store)))
            for number, stream, first, last in acknowledged:
                segments = {step // SEGMENT_STEPS for step in (first, last)}
                ids = every[(every >= first) & (every <= last)]
                if len(ids) == 0 and min(live) > max(segments):
                    continue  # evicted: everything older is gone, too
                got = store.read(ids, gamma=GAMMA).observation["vector"]
                mine = got[(got[:, 0] == stream) & (got[:, 2] == number)]
                if len(mine) != 10 and segments <= set(live.tolist()):
                    self.tally.lost += 1
                    self.tally.problems.append(f"child {number}: {len(mine)} of 10 committed steps are there")
        self.store.refresh()

    # Worker processes of a loader.

    def loaders(self, contexts: Sequence[str], batches: int = 30) -> None:
        """Have worker processes read while the store is written, and kill one."""
        for context in contexts:
            loader = ReplayLoader(
                UniformSampler(self.store, seed=3, name=f"workers-{context}"), batch_size=32, gamma=GAMMA,
                num_workers=2, multiprocessing_context=context, prefetch=4,
            )  # fmt: skip
            outcome: list[str] = []
            thread = threading.Timer(STARTING, faulthandler.dump_traceback)
            thread.start()
            began = time.monotonic()
            iterator = iter(loader)
            try:
                for batch in islice(iterator, batches):
                    self._check(batch)
                workers = loader._iterator._workers
                os.kill(random.Random(context).choice(workers).pid, signal.SIGKILL)
                killed = time.monotonic()
                for batch in islice(iterator, 200):
                    self._check(batch)
                outcome.append("nothing was raised")
            except RuntimeError as err:
                took = time.monotonic() - killed
                self.tally.notes[f"{context}: a killed worker is noticed after ms"] = int(1000 * took)
                if "worker" not in str(err):
                    outcome.append(repr(err))
                if took > PATIENCE:
                    outcome.append(f"it took {took:.0f} s until the killed worker was noticed")
            except Exception as err:  # noqa: BLE001  a finding
                outcome.append(repr(err))
            finally:
                thread.cancel()
                iterator.close()
                loader.close()
            self.tally.done[f"loader, {context}"] += 1
            self.tally.notes[f"{context}: seconds"] = round(time.monotonic() - began, 1)
            self.tally.problems += [f"loader with workers by {context}: {line}" for line in outcome]

    # Dead readers.

    def readers(self, count: int = DEAD_READERS, commits: int = 300, patience: float = 0.0) -> None:
        """Kill processes inside a read transaction; new readers must get in, and the index stops growing.

        Args:
            count: How many.
            commits: Over how many the index must not grow.
            patience: Seconds to leave it to those who commit to find the dead; 0: to a process that opens the store.
        """
        pids = []
        for number in range(count):
            read, write = os.pipe()
            pid = os.fork()
            if not pid:
                try:
                    store = ReplayStore.open(self.path)
                    with store._engine.index.read() as txn:
                        txn.counters()
                        os.write(write, b"x")
                        time.sleep(600)
                finally:
                    os._exit(1)
            os.close(write)
            pids.append(pid)
            if os.read(read, 1) != b"x":
                self.tally.problems.append(f"reader {number} does not get in")
            os.close(read)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.tally.done["dead readers"] += count
        data = self.path / "index.lmdb" / "data.mdb"
        sizes = [data.stat().st_size]
        if patience:  # until whoever commits looks for dead readers
            self._wait(lambda: False, patience)
            sizes.append(data.stat().st_size)
        self._reader_gets_in()
        for _ in range(3):
            done = self.progress["write"]
            self._wait(lambda done=done: self.progress["write"] >= done + commits // 3, 6 * PATIENCE)
            sizes.append(data.stat().st_size)
        how = "and they were noticed in time" if patience else "and a new process opened it"
        self.tally.notes[f"index size when {count} readers were dead, {how}, and every {commits // 3} commits"] = sizes
        if sizes[-1] > 1.2 * sizes[-3] + (1 << 20):
            self.tally.problems.append(f"the index grows behind dead readers: {sizes}")
        self._hear()

    def _reader_gets_in(self) -> None:
        """Have a new process open the store and read."""
        process = multiprocessing.get_context("fork").Process(target=new_reader, args=(self.path, self.words))
        process.start()
        process.join(STARTING)
        if process.exitcode:
            self.tally.problems.append(f"a new reader does not get in: exit code {process.exitcode}")

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline and not self.failures:
            time.sleep(0.01)

    # A stopped writer.

    def stops(self, count: int = 20, longest: float = 3.0) -> None:
        """Stop another writer again and again; the parent's writer may have to wait, no longer than the stop."""
        path = self.folder / "other"
        pid = os.fork()
        if not pid:
            try:
                keep_writing(self.path, path)
            finally:
                os._exit(1)
        deadline = time.monotonic() + STARTING
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        rng, blocked, waits = random.Random(0), 0, []
        for number in range(count):
            time.sleep(rng.random() * 0.05)
            os.kill(pid, signal.SIGSTOP)
            pause = longest if number == count // 2 else 0.25
            time.sleep(0.05)
            done, since = self.progress["write"], time.monotonic()
            time.sleep(pause)
            held = self.progress["write"] == done
            blocked += held
            os.kill(pid, signal.SIGCONT)
            while self.progress["write"] == done and not self.failures and time.monotonic() < since + pause + PATIENCE:
                time.sleep(0.001)
            if held:
                waits.append(time.monotonic() - since - pause)
            if self.progress["write"] == done:
                self.tally.problems.append("the parent's writer does not go on after another was stopped")
        before = path.read_bytes()
        time.sleep(0.5)
        if path.read_bytes() == before:
            self.tally.problems.append("the stopped writer does not go on")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.tally.done["stops"] += count
        self.tally.notes["stops in which the other writer had to wait"] = f"{blocked} of {count}"
        self.tally.notes["longest until it went on, in ms"] = int(1000 * max(waits, default=0))

    def finish(self) -> None:
        """Look at the store as a whole."""
        self.tally.problems[:0] = self.failures
        with ReplayStore.open(self.path) as store:
            found = [problem for problem in store.verify() if problem.kind != "orphan"]
            self.tally.problems += [f"verify: {problem}" for problem in found]
            ids = store.step_ids_of(np.arange(len(store)))
            wrong = check_batch(store.read(ids, gamma=GAMMA))
            self.tally.wrong += bool(wrong)
            self.tally.problems += wrong
        self.tally.notes["commits of the parent meanwhile"] = self.progress["write"]
        self.tally.notes["batches of the parent meanwhile"] = self.progress["load"]


def keep_writing(path: Path, beat: Path) -> None:
    """Write and commit until killed; note each commit in a file."""
    with ReplayStore.open(path, mode="a") as store, store.writer("other") as writer:
        for episode in range(1 << 30):
            write_episode(writer, 7, episode * 10, 10, episode)
            store.commit()
            beat.write_bytes(struct.pack("<q", episode))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=1000, help="forks")
    parser.add_argument("--modes", default=",".join(MODES), help="how children are made: any of " + ", ".join(MODES))
    parser.add_argument("--loaders", nargs="*", default=["fork", "forkserver", "spawn"], metavar="CONTEXT")
    parser.add_argument("--readers", type=int, default=DEAD_READERS)
    parser.add_argument("--commits", type=int, default=300, help="over which the index must not grow behind them")
    parser.add_argument("--timer", action="store_true", help="dead readers once more, found by who commits")
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds of the longest stop")
    parser.add_argument("--seed", type=int, default=0, help="has no effect: what the threads do is not repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if "TMPDIR" not in os.environ and Path("/dev/shm").is_dir():
        os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"
    os.environ["PYTHONWARNINGS"] = "ignore:::runpy"  # it finds this module imported already in spawned children
    parent, began = Parent(Path(tempfile.mkdtemp(prefix="forks-"))), time.monotonic()
    try:
        parent.start()
        parent.forks(options.count, options.modes.split(","), show=sys.stderr.isatty())
        if options.readers:
            parent.readers(options.readers, options.commits)
            if options.timer:
                parent.readers(options.readers, options.commits, patience=READER_CHECK_S + 2)
        if options.stops:
            parent.stops(options.stops, options.longest)
        parent.loaders(options.loaders)
        parent.stop()
        parent.finish()
    finally:
        if os.getpid() == parent.pid:
            parent.stopping.set()
            shutil.rmtree(parent.folder, ignore_errors=True)
    return report(parent.tally, time.monotonic() - began, options.json)


def report(tally: Tally, seconds: float, to: Path | None) -> int:
    """Print and write down what was found; return the exit status."""
    for name, count in tally.done.items():
        slowest = tally.slowest.get(f"{name} in ms")
        print(f"{name:20} {count:6,}" + ("" if slowest is None else f"   slowest {slowest:6,} ms"))  # noqa: T201
    for name, value in tally.notes.items():
        print(f"{name}: {value}")  # noqa: T201
    print(  # noqa: T201
        f"{sum(tally.done.values()):,} trials in {seconds:.0f} s, {tally.acknowledged} acknowledged, "
        f"{tally.lost} lost, {tally.wrong} wrong, {len(tally.problems)} problems"
    )
    alike: dict[str, list[str]] = {}
    for problem in tally.problems:
        alike.setdefault(re.sub(r"\d+", "N", problem[:200]), []).append(problem)
    for problems in list(alike.values())[:20]:
        print(f"{len(problems)} times: {problems[0]}")  # noqa: T201
    if to:
        found = {
            "suite": "forks",
            "trials": sum(tally.done.values()),
            "acknowledged": tally.acknowledged,
            "lost": tally.lost,
            "wrong": tally.wrong,
            "problems": len(tally.problems),
            "seconds": round(seconds, 1),
            "done": tally.done,
            "slowest": tally.slowest,
            "notes": tally.notes,
            "found": tally.problems[:100],
        }
        to.write_text(json.dumps(found, indent=1))
    return int(bool(tally.problems))


if __name__ == "__main__":
    # Under its own name, for a child that is spawned finds its function by the name of the module.
    from tests.torture.forks import main as run

    sys.exit(run())
