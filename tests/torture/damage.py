"""Damage one file of a store, whichever it is, and look whether anything wrong is served.

A store is built once: it has lived through the scenario of scenario.py (streams, one of them pinned, short segments,
tails, evictions, priorities), was compared with its model, and what it serves then is the truth. A trial copies it,
damages one file (bits, bytes, blocks, length, existence, another file's content), and in a process of its own opens
it and asks for everything: rows one by one and as windows, episodes, priorities, draws, batches of a ReplayLoader that
raises or skips. Outcomes:

- refused: something raised a ReplayError, and all that was served was right.
- right: everything was served, and right: the bytes did not matter, or are not read.
- partial: the store opened without a word and all it served was right, but rows are missing. A problem.
- rolled back: it opened without a word as it was some commits ago. Counted apart; a problem only where asked for.
- wrong: a row, an episode, a priority or a weight was served that is not the truth. A problem.
- died, hung, untyped: a signal, no end, an exception that is no ReplayError. Problems.
- unnamed: bytes that matter changed, and `verify` named neither the file nor, for the index, any record. A problem.

The truth comes from the store's own read path, after that was compared with the model; so this shows what damage
does, not whether the undamaged store is right. What only those who append read, such as the index's list of free
pages, `verify` need not name. Not covered: damage of several files at once; damage to an open store, but for what a
loader meets; whoever forges checksums.

    python -m tests.torture.damage --count 6000
    python -m tests.torture.damage --only 4711          this trial alone
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from diskreplay import CorruptionWarning, PrioritizedSampler, ReplayError, ReplayLoader, ReplayStore, UniformSampler
from diskreplay.storage import cached, layout, native
from diskreplay.storage.upkeep.verify import verify_path
from tests.torture import scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

COMMITS = 70
OLDER = 4
SEEDS = {"zstd": 2, "lz4": 3, "auto": 7, "none": 11}
PATIENCE = 30
PAGE = 4096
BLOCK = 64
WINDOWS: dict[str, dict[str, Any]] = {
    "plain": {"n_step": 1, "gamma": 0.5},
    "window": {"n_step": 3, "gamma": 0.5, "frame_stack": 2},
}
PARTS = ("observation", "next_observation", "action", "reward", "discount")
CLASSES = {"shard": 48, "array": 9, "group": 4, "index": 31, "note": 2, "lock": 3, "lock.mdb": 3}
HOWS = {
    "flip": 6, "overwrite": 3, "zero 512": 2, "zero 4096": 2, "truncate": 4, "extend": 2, "delete": 2, "replace": 4,
}  # fmt: skip
PROBLEMS = ("wrong", "partial", "died", "hung", "untyped", "unnamed")


class Truth(NamedTuple):
    """What an undamaged store serves at one commit."""

    ids: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]
    episodes: dict[str, NDArray[Any]]
    priorities: NDArray[np.float32]
    states: dict[str, Any]


@dataclass
class Base:
    """An undamaged store.

    Attributes:
        truths: commit -> what it serves.
        commit: The newest.
        stale: Its data.mdb as it was some commits ago.
    """

    path: Path
    truths: dict[int, Truth]
    commit: int
    stale: bytes


@dataclass
class Trial:
    """What one damage led to."""

    number: int
    base: str = ""
    file: str = ""
    how: str = ""
    outcome: str = ""
    lines: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    rolled_back: int = 0
    named: list[str] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        return self.outcome in PROBLEMS

    def __str__(self) -> str:
        what = "; ".join(self.lines[:4]) or "; ".join(self.refused[:2])
        return f"trial {self.number}: {self.outcome}: {self.base}: {self.how} of {self.file}: {what}"


def flat(prefix: str, batch: Any) -> dict[str, NDArray[Any]]:
    """Return a batch's arrays by name."""
    columns = {}
    for part in PARTS:
        value = getattr(batch, part)
        for leaf, values in value.items() if isinstance(value, dict) else [("", value)]:
            columns[f"{prefix} {part} {leaf}"] = np.asarray(values)
    return columns


def observe(path: Path) -> Truth:
    """Ask an undamaged store for everything."""
    with ReplayStore.open(path) as store:
        ids = store.step_ids_of(np.arange(len(store)))
        columns = {}
        for name, window in WINDOWS.items():
            columns.update(flat(name, store.read(ids, **window)))
        samplers = {
            "prioritized": PrioritizedSampler(store, eps=0.0, resume=True, seed=1),
            "uniform": UniformSampler(store, resume=True, seed=1),
        }
        return Truth(
            ids,
            columns,
            vars(store.episodes()),
            samplers["prioritized"].priorities_of(ids),
            {name: sampler.state_dict() for name, sampler in samplers.items()},
        )


def build(folder: Path, compression: str) -> Base:
    """Make a store that has lived, and compare it with its model."""
    path, seed, truths = folder / f"{compression}.replay", SEEDS[compression], {}
    ReplayStore.create(
        path, scenario.SPEC, capacity=scenario.CAPACITY, segment_steps=scenario.SEGMENT_STEPS, compression=compression
    ).close()
    stale = b""
    life = scenario.Life(path, seed)
    while life.model.commits < COMMITS:
        life.run(life.model.commits + 1)
        if life.model.commits >= COMMITS - OLDER:
            truths[life.model.commits] = observe(path)
            stale = stale or (path / layout.INDEX / "data.mdb").read_bytes()
    life.close()
    with ReplayStore.open(path) as store:
        problems = scenario.compare(store, scenario.Model.at(seed, *scenario.progress(store)))
    if problems:
        raise RuntimeError(f"the undamaged store is wrong: {problems[:5]}")
    return Base(path, truths, COMMITS, stale)


def files_of(base: Base) -> dict[str, list[str]]:
    """Return a store's files, class by class, as paths relative to it."""
    found: dict[str, list[str]] = {name: [] for name in CLASSES}
    for file in sorted(base.path.rglob("*")):
        name = str(file.relative_to(base.path))
        if file.is_dir() or name.startswith(layout.LOST):
            continue
        if name in {"zarr.json", "steps/zarr.json"}:
            found["group"].append(name)
        elif name.endswith("zarr.json"):
            found["array"].append(name)
        elif name.startswith(layout.STEPS):
            found["shard"].append(name)
        elif name.startswith(layout.LOCKS):
            found["lock"].append(name)
        else:
            found[{"data.mdb": "index", "lock.mdb": "lock.mdb"}.get(file.name, "note")].append(name)
    return found


def copy(base: Base, to: Path) -> None:
    """Copy a store; what nobody writes to is linked."""
    for file in sorted(base.path.rglob("*")):
        name = file.relative_to(base.path)
        if file.is_dir():
            (to / name).mkdir(parents=True)
        elif name.parts[0] == layout.STEPS:
            os.link(file, to / name)
        else:
            shutil.copyfile(file, to / name)


def put(path: Path, data: bytes | None) -> None:
    """Give a file another content, or none; a file linked to it keeps its own."""
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)


def changed(data: bytes, how: str, where: str, rng: random.Random) -> bytes:
    """Return damaged content."""
    out = bytearray(data)
    at = rng.randrange(max(1, len(out)))
    if where == "index" and rng.random() < 0.25:
        at = rng.randrange(2 * PAGE if rng.random() < 0.5 else 2 * 168)  # a meta page, or the part of it that counts
        at = at if at < 168 or at >= 336 else PAGE + at - 168
    match how.split(maxsplit=1)[0]:
        case "flip" if out:
            out[at] ^= 1 << rng.randrange(8)
        case "overwrite" if out:
            piece = rng.randbytes(min(rng.choice((1, 4, 8, 16)), len(out) - at))
            out[at : at + len(piece)] = piece
        case "zero":
            size = int(how.split()[1])
            start = at // size * size
            out[start : start + size] = bytes(len(out[start : start + size]))
        case "truncate":
            keep = at if rng.random() < 0.8 or where != "index" else at // PAGE * PAGE
            del out[0 if rng.random() < 0.1 else keep :]
        case "extend":
            size = rng.choice((1, 4, 512, PAGE))
            out += rng.randbytes(size) if rng.random() < 0.7 else bytes(size)
    return bytes(out)


def swap_pages(data: bytes, stale: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return an index with a page in the place of another, or one from an older state of it."""
    out, pages = bytearray(data), len(data) // PAGE
    one, two = (slice(p * PAGE, (p + 1) * PAGE) for p in rng.sample(range(pages), 2))
    kind = rng.choice(("two pages swapped", "a page copied", "a stale page", "a stale page", "stale"))
    if kind == "stale":
        return stale, kind
    if kind == "two pages swapped":
        out[one], out[two] = data[two], data[one]
    elif kind == "a page copied":
        out[one] = data[two]
    else:
        old = slice(0, len(stale))
        differ = [
            p for p in range(len(stale) // PAGE) if stale[p * PAGE : (p + 1) * PAGE] != data[p * PAGE : (p + 1) * PAGE]
        ]
        page = rng.choice(differ)
        old = slice(page * PAGE, (page + 1) * PAGE)
        out[old] = stale[old]
    return bytes(out), kind


def damage(base: Base, to: Path, rng: random.Random) -> tuple[str, list[str], str]:
    """Damage a file of a copy; return its class, the files that now say something else, and what was done."""
    kinds = files_of(base)
    present = [name for name in CLASSES if kinds[name]]
    where = rng.choices(present, [CLASSES[name] for name in present])[0]
    how = rng.choices(list(HOWS), list(HOWS.values()))[0]
    if where == "shard":
        folder = rng.choice(sorted({str(Path(name).parent) for name in kinds["shard"]}))
        kinds["shard"] = [name for name in kinds["shard"] if str(Path(name).parent) == folder]
    name = rng.choice(kinds[where])
    before = {name: (to / name).read_bytes()}
    after: dict[str, bytes | None] = {}
    if how != "replace":
        after[name] = None if how == "delete" else changed(before[name], how, where, rng)
    elif where == "index":
        after[name], how = swap_pages(before[name], base.stale, rng)
    else:
        other = another(files_of(base)[where], name, rng)
        before[other] = (to / other).read_bytes()
        after[name], how = before[other], f"replaced by {other}"
        if rng.random() < 0.5:
            after[other], how = before[name], f"swapped with {other}"
    for file, data in after.items():
        put(to / file, data)
    return where, [file for file in after if differs(where, before[file], after[file])], f"{how} of {name}"


def another(names: list[str], name: str, rng: random.Random) -> str:
    """Return another file of the same class: for a shard, of the same field or of the same segment."""
    others = [other for other in names if other != name]
    folder, segment = Path(name).parent, layout.shard_segment(name)
    alike = [
        o for o in others if Path(o).parent == folder or (segment is not None and layout.shard_segment(o) == segment)
    ]
    return rng.choice(alike or others or [name])


def differs(where: str, before: bytes, after: bytes | None) -> bool:
    """Return whether a file says something else than before; spaces in a JSON document do not."""
    if where in {"array", "group"} and after is not None:
        with contextlib.suppress(ValueError):
            return bool(json.loads(before) != json.loads(after))
    return before != after


class Examination:
    """Ask a damaged store for everything and compare with the truth."""

    def __init__(self, path: Path, base: Base, rng: random.Random, trial: Trial) -> None:
        self.path = path
        self.base = base
        self.rng = rng
        self.trial = trial
        self.truth = base.truths[base.commit]
        self.missing: list[str] = []
        self.wrong: list[str] = []
        self.untyped: list[str] = []

    def run(self) -> None:
        """Do it; what came out is in the trial."""
        store = None
        with self._stage("open"):
            store = ReplayStore.open(self.path)
        if store is not None:
            self._look(store)
            with self._stage("verify"):
                self.trial.named = [f"{p.where}: {p.what}" for p in store.verify() if p.kind != "orphan"]
            store.close()
        else:
            with self._stage("verify"):  # as the command does it
                self.trial.named = [f"{p.where}: {p.what}" for p in verify_path(self.path).problems]
        if store is not None and self.rng.random() < 0.3:
            with self._stage("append"):
                self._append()
        trial = self.trial
        named = {"wrong": self.wrong, "untyped": self.untyped, "partial": [] if trial.refused else self.missing}
        trial.outcome = next((name for name, lines in named.items() if lines), "")
        trial.lines = [line for lines in named.values() for line in lines]
        if not trial.outcome:
            trial.outcome = "refused" if trial.refused else "rolled back" if trial.rolled_back else "right"

    def _look(self, store: ReplayStore) -> None:
        commit = -1
        with self._stage("state"):
            commit = scenario.progress(store)[0]
            self.trial.rolled_back = int(commit < self.base.commit)
        if commit not in self.base.truths:
            self.wrong.append(f"the store is at commit {commit}")
            return
        self.truth = self.base.truths[commit]
        live = self.truth.ids[:0]
        with self._stage("ids"):
            live = store.step_ids_of(np.arange(len(store)))
            self._ids("step ids", live)
            if len(live) != len(self.truth.ids):
                self.missing.append(f"{len(live)} of {len(self.truth.ids)} steps")
        for name, window in WINDOWS.items():
            for start in range(0, len(live), BLOCK):
                with self._stage(f"read {name}"):
                    self._batch(name, store.read(live[start : start + BLOCK], **window))
        with self._stage("episodes"):
            table = vars(store.episodes())
            for name, expected in self.truth.episodes.items():
                if len(table[name]) < len(expected):
                    self.missing.append(f"{len(table[name])} of {len(expected)} episodes")
                elif not np.array_equal(table[name], expected):
                    self.wrong.append(f"episodes: {name}")
        self._samplers(store, live)
        self._loader(store, on_corruption="raise")
        if self.rng.random() < 0.5:
            self._loader(store, on_corruption="skip")

    def _samplers(self, store: ReplayStore, live: NDArray[np.int64]) -> None:
        with self._stage("priorities"):
            sampler = PrioritizedSampler(store, eps=0.0, resume=True, seed=1)
            state = sampler.state_dict()
            for start in range(0, len(live), BLOCK):
                ids = live[start : start + BLOCK]
                with self._stage("priorities"):
                    self._compare("priorities", ids, sampler.priorities_of(ids), self.truth.priorities)
            with self._stage("draw"):
                for _ in range(4):
                    drawn = sampler.draw(16)
                    self._ids("draws", drawn.step_ids)
                    if not (np.isfinite(drawn.weight).all() and (drawn.weight > 0).all()):
                        self.wrong.append("weights")
            if state != self.truth.states["prioritized"]:
                self.wrong.append("the prioritized sampler's state")
        with self._stage("uniform"):
            uniform = UniformSampler(store, resume=True, seed=1)
            if uniform.state_dict() != self.truth.states["uniform"]:
                self.wrong.append("the uniform sampler's state")

    def _loader(self, store: ReplayStore, *, on_corruption: str) -> None:
        # A stack or a return may rightly be cut where a segment is left out: those of one step are not.
        name = "plain" if on_corruption == "skip" else self.rng.choice(list(WINDOWS))
        with self._stage(f"loader {on_corruption}"), warnings.catch_warnings():
            warnings.simplefilter("ignore", CorruptionWarning)
            kind = self.rng.choice((UniformSampler, PrioritizedSampler))
            loader = ReplayLoader(
                kind(store, seed=self.trial.number), batch_size=24, prefetch=2, threads=2, on_corruption=on_corruption,
                **WINDOWS[name],
            )  # fmt: skip
            batches = iter(loader)
            try:
                for batch in islice(batches, 10):
                    self._batch(name, batch)
            finally:
                batches.close()

    def _append(self) -> None:
        """Let the damaged store go on: what is new must be right, what was there too."""
        with ReplayStore.open(self.path, mode="a") as store:
            writer = store.writer(scenario.STREAMS[1])
            first, count = 100_000, 20
            keys = np.stack(
                [np.ones(count + 1, np.int64), np.arange(first, first + count + 1), np.full(count + 1, 999)]
            )
            ordinals = keys[1][:-1]
            ids = writer.write_episode(
                scenario.observations(keys.T),
                scenario.action_of(1, ordinals),
                scenario.reward_of(1, ordinals),
                np.zeros(count, bool),
                ordinals == ordinals[-1],
            )
            writer.close()
            store.seal()
        with ReplayStore.open(self.path) as store:
            batch = store.read(ids, gamma=0.5)
            expected = {
                "camera": scenario.observations(keys.T[:-1])["camera"],
                "vector": scenario.observations(keys.T[:-1])["vector"],
            }
            good = all(np.array_equal(batch.observation[leaf], values) for leaf, values in expected.items())
            if not good or not np.array_equal(batch.reward, scenario.reward_of(1, ordinals)):
                self.wrong.append("rows appended to the damaged store")
            if np.isin(ids, self.truth.ids).any():
                self.wrong.append("step ids were used again")
            live = store.step_ids_of(np.arange(len(store)))
            for start in range(0, len(live), BLOCK):
                block = live[start : start + BLOCK]
                old = block[np.isin(block, self.truth.ids)]
                with self._stage("read after append"):
                    self._batch("plain", store.read(old, **WINDOWS["plain"]), but=ids[0])

    def _batch(self, name: str, batch: Any, but: int = -1) -> None:
        ids = np.asarray(batch.step_ids)
        self._ids("batch", ids)
        for column, values in flat(name, batch).items():
            self._compare(column, ids, values, self.truth.columns[column])

    def _compare(self, what: str, ids: NDArray[np.int64], found: NDArray[Any], truth: NDArray[Any]) -> None:
        place = np.searchsorted(self.truth.ids, ids)
        inside = place < len(self.truth.ids)
        differ = found[inside] != truth[place[inside]]
        if differ.any():
            bad = ids[inside][np.flatnonzero(differ.reshape(len(differ), -1).any(axis=1))]
            self.wrong.append(f"{what} of steps {bad[:4].tolist()}")

    def _ids(self, what: str, ids: NDArray[np.int64]) -> None:
        if not np.isin(ids, self.truth.ids).all():
            self.wrong.append(f"{what}: {ids[~np.isin(ids, self.truth.ids)][:4].tolist()} are no steps")

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        try:
            yield
        except ReplayError as err:
            self.trial.refused.append(f"{name}: {err!r}")
        except Exception as err:  # noqa: BLE001  whatever it is, it is not of our tree
            frames = traceback.extract_tb(err.__traceback__)
            where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
            self.untyped.append(f"{name}: {err!r} at {where}")


def judge_verify(trial: Trial, where: str, names: list[str]) -> None:
    """Say so if `verify` named nothing of what changed and matters."""
    if trial.outcome not in {"right", "refused", "rolled back"} or not names:
        return
    said = [*trial.named, *trial.refused]
    opened = not any(line.startswith("open:") for line in trial.refused)
    if where == "shard":
        silent = [name for name in names if not any(str(Path(*Path(name).parts[-2:])) in line for line in said)]
    elif where in {"array", "group"}:
        silent = [name for name in names if not any(name in line for line in said)]
    elif where == "index" and not all(line.startswith("append:") for line in trial.refused):
        refused = any(line.startswith("verify:") for line in trial.refused)
        silent = [] if trial.named or refused or not opened or trial.outcome == "rolled back" else ["the index"]
    else:
        silent = []
    if silent:
        trial.lines.insert(0, f"verify does not name {', '.join(silent)}, only {trial.named[:2]}")
        trial.outcome = "unnamed"


def run_trial(number: int, seed: int, bases: Sequence[Base], folder: Path) -> Trial:
    """Do one trial in a process of its own."""
    rng = random.Random(f"{seed}/{number}")
    base = bases[number % len(bases)]
    trial = Trial(number, base.path.stem)
    shutil.rmtree(folder, ignore_errors=True)
    store = folder / "damaged.replay"
    store.mkdir(parents=True)
    copy(base, store)
    where, names, trial.how = damage(base, store, rng)
    trial.file = where
    status, got, stderr = in_child(lambda: examine(store, base, rng, trial), folder)
    if got is None:
        name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        trial.outcome = "hung" if status == -signal.SIGALRM else "died"
        trial.lines = [name, *stderr]
    else:
        trial = got
        judge_verify(trial, where, names)
    return trial


def examine(store: Path, base: Base, rng: random.Random, trial: Trial) -> Trial:
    """Ask the damaged store for everything, now and then without the compiled read path, or with no rows kept."""
    native.AVAILABLE = native.AVAILABLE and rng.random() > 1 / 8
    cached.MEMORY_SHARE *= rng.random() > 1 / 2  # then raw shards are mapped, and compressed ones read
    Examination(store, base, rng, trial).run()
    return trial


def in_child(work: Callable[[], Trial], folder: Path) -> tuple[int, Trial | None, list[str]]:
    """Call a function in a forked child that may die of it; return how it ended, the result, its last words."""
    result, words = folder / "result", folder / "stderr"
    pid = os.fork()
    if not pid:
        status = 3
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(PATIENCE)
            os.dup2(os.open(words, os.O_WRONLY | os.O_CREAT), 2)
            faulthandler.enable()
            result.write_bytes(pickle.dumps(work()))
            status = 0
        except BaseException:  # noqa: BLE001  to be told by the parent
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    last = words.read_text(errors="replace").splitlines()[:12] if words.exists() else []
    return status, pickle.loads(result.read_bytes()) if status == 0 else None, last


def work(numbers: Sequence[int], seed: int, bases: Sequence[Base], folder: Path, pipe: int) -> None:
    """Do trials one after the other, and write each outcome into a pipe."""
    for base in bases:
        observe(base.path)  # compiles what each child then has
    with os.fdopen(pipe, "wb") as out:
        for number in numbers:
            pickle.dump(run_trial(number, seed, bases, folder), out)
            out.flush()


def campaign(numbers: Sequence[int], *, seed: int = 0, workers: int = 1, show: bool = False) -> list[Trial]:
    """Do trials, shared out to processes that each fork one more for every trial."""
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        bases = build_apart(Path(name))
        pipes, pids = [], []
        for worker in range(workers):
            read, write = os.pipe()
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    work(numbers[worker::workers], seed, bases, Path(name) / f"trial-{worker}", write)
                    status = 0
                except BaseException:  # noqa: BLE001  a fault of the campaign itself
                    traceback.print_exc()
                finally:
                    os._exit(status)
            os.close(write)
            pipes.append(os.fdopen(read, "rb"))
            pids.append(pid)
        with tqdm(total=len(numbers), disable=not show, unit="trial", smoothing=0) as bar:
            for at in range(len(numbers)):
                trials.append(pickle.load(pipes[at % workers]))
                bar.update()
        for pipe in pipes:
            pipe.close()
        for pid in pids:
            os.waitpid(pid, 0)
    return trials


def build_apart(folder: Path) -> list[Base]:
    """Build the undamaged stores in a process of its own, so that those who fork have never had one open."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            (folder / "bases").write_bytes(pickle.dumps([build(folder, compression) for compression in SEEDS]))
            status = 0
        except BaseException:  # noqa: BLE001  to be told by the parent
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the undamaged stores could not be built")
    return list(pickle.loads((folder / "bases").read_bytes()))


def report(trials: Sequence[Trial], seconds: float) -> None:
    """Print outcomes by class of files, and the first problems."""
    outcomes = ("right", "refused", "rolled back", *PROBLEMS)
    table = Counter((trial.file, trial.outcome) for trial in trials)
    print(f"{'file':10}" + "".join(f"{name:>12}" for name in ("trials", *outcomes)))  # noqa: T201
    for where in (*CLASSES, ""):
        counts = [sum(n for key, n in table.items() if key[1] == o and where in ("", key[0])) for o in outcomes]
        if sum(counts):
            print(f"{where or 'all':10}" + "".join(f"{n:12,}" for n in (sum(counts), *counts)))  # noqa: T201
    print(f"{len(trials):,} trials in {seconds:.0f} s")  # noqa: T201
    for trial in [trial for trial in trials if trial.bad][:30]:
        print(trial)  # noqa: T201


def summary(trials: Sequence[Trial], seconds: float) -> dict[str, Any]:
    """Return what the campaign found as a JSON object."""
    outcomes = Counter(trial.outcome for trial in trials)
    return {
        "suite": "damage",
        "trials": len(trials),
        "acknowledged": None,
        "lost": outcomes["partial"],
        "wrong": outcomes["wrong"],
        "problems": sum(trial.bad for trial in trials),
        "seconds": round(seconds, 1),
        "outcomes": outcomes,
        "found": [asdict(trial) for trial in trials if trial.bad][:100],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", type=int, action="append", default=[], metavar="N", help="do this trial alone")
    parser.add_argument("--rolled-back", action="store_true", help="count an older state as a problem, too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if "TMPDIR" not in os.environ and Path("/dev/shm").is_dir():
        os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"
    numbers = options.only or list(range(options.count))
    began = time.monotonic()
    trials = campaign(numbers, seed=options.seed, workers=min(options.workers, len(numbers)), show=sys.stderr.isatty())
    seconds = time.monotonic() - began
    report(trials, seconds)
    if options.only:
        for trial in trials:
            print(trial, *trial.lines, *trial.refused, *trial.named, sep="\n    ")  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps(summary(trials, seconds), indent=1))
    bad = sum(trial.bad or (options.rolled_back and bool(trial.rolled_back)) for trial in trials)
    return int(bool(bad))


if __name__ == "__main__":
    # Under its own name, for what is sent to other processes is found by the name of its module.
    from tests.torture.damage import main as run

    sys.exit(run())
