"""One life of a store in which everything is a function of the seed, and a naive model that knows what it must be.

A life is a list of operations: steps, episodes, interruptions, seals, commits, draws, priorities, on three streams,
one of them pinned, above a capacity that evicts. The model draws the next operation from the seed and from its own
state, so whoever has the seed and the number of commits knows every row, episode and priority. Commits that the store
makes by itself, when a segment is full, are numbered like those that are asked for. The number of the commit is
committed with it, as metadata, and so are the commits from which a life went on after it had ended: what a new
process does first, ending running episodes, is part of the history. So are the commits that failed, or seemed to, and
were tried again with more in them.

    python -m tests.torture.scenario STORE --seed 0 --ack FILE --commits 62

makes the store, or goes on from its last commit. After each commit its number is appended to the ack file.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diskreplay import ArraySpec, PrioritizedSampler, ReplayStore, StepSpec, UniformSampler
from diskreplay.errors import StoreNotFoundError
from diskreplay.sampling import changes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

SEGMENT_STEPS = 16
CAPACITY = 160
STREAMS = ("demo", "actor-0", "actor-1")
PINNED = 0
DEMO_STEPS = 40
COMMITS = 62
BATCH = 8
ACTIONS = 4
SIDE = 8
MOST_LINES = 12
# So that a few steps exercise what millions do: blocks that are not written whole, records that are joined, sweeps.
JOURNAL = {"DENSE": 2, "LEAST": 8, "MOST": 24, "SHARE": 8, "JOIN": 3, "RECORD": 5, "KEPT": 6}
SPEC = StepSpec(
    {
        "camera": ArraySpec("observation.camera", (SIDE, SIDE), "uint8"),
        "vector": ArraySpec("observation.vector", (3,), "float32"),
    },
    ArraySpec("action", (), "int64", "discrete", n=ACTIONS),
)


def observations(keys: Any) -> dict[str, NDArray[Any]]:
    """Return what is seen at (stream, ordinal, episode) keys, (N, 3); some images are black."""
    keys = np.asarray(keys, np.int64).reshape(-1, 3)
    shade = keys @ [7, 3, 1]
    ramp = np.arange(SIDE) // 2
    camera = (shade[:, None, None] + ramp[:, None] * 5 + ramp) % 251 * (keys[:, 1] % 5 > 0)[:, None, None]
    return {"camera": camera.astype(np.uint8), "vector": keys.astype(np.float32)}


def observation(key: Key) -> dict[str, NDArray[Any]]:
    """Return what is seen at one key."""
    return {name: values[0] for name, values in observations([key]).items()}


def action_of(stream: Any, ordinal: Any) -> Any:
    return (ordinal + stream) % ACTIONS


def reward_of(stream: Any, ordinal: Any) -> Any:
    """Return a number that float32 holds exactly, and sums of it too."""
    return (ordinal * 5 + stream) % 17 * 0.25 - 2


class Key(NamedTuple):
    """Which step an observation belongs to: the ordinal in its stream and the number of the episode there."""

    stream: int
    ordinal: int
    episode: int


@dataclass(eq=False)
class Row:
    """A row of the store: a step, or the last observation of an episode."""

    key: Key
    segment: Segment
    index: int
    place: int
    terminated: bool = False
    ended: Episode | None = None
    priority: np.float32 | None = None
    step_id: int | None = None


@dataclass(eq=False)
class Episode:
    first: Row | None = None
    length: int = 0
    total: float = 0.0
    terminated: bool = False


@dataclass(eq=False)
class Segment:
    stream: int
    rows: list[Row] = field(default_factory=list)
    closed: bool = False
    sealed: bool = False

    @property
    def full(self) -> bool:
        return self.closed or len(self.rows) == SEGMENT_STEPS

    @property
    def steps(self) -> int:
        return sum(row.ended is None for row in self.rows)


@dataclass(eq=False)
class Stream:
    number: int
    rows: list[Row] = field(default_factory=list)
    pending: Key | None = None
    episode: Episode | None = None
    steps: int = 0
    episodes: int = 0
    latest: Segment | None = None


class Op(NamedTuple):
    """One operation; which of the fields matter depends on the kind."""

    kind: str
    stream: int = 0
    count: int = 0
    terminated: bool = False
    truncated: bool = False
    rows: tuple[Row, ...] = ()
    values: tuple[float, ...] = ()


class Model:
    """The state that the store must have; lists and loops, nothing of the store's own code.

    Attributes:
        commits: Commits so far.
        restarts: The commits from which a new process went on.
        joined: The commits that failed, and more joined them before they were tried again.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.operations = 0
        self.commits = 0
        self.restarts: list[int] = []
        self.joined: list[int] = []
        self.live_before: list[Row] = []
        self.streams = [Stream(number) for number in range(len(STREAMS))]
        self.segments: list[Segment] = []
        self.steps = 0
        self.steps_evicted = 0
        self.fresh: list[Row] = []
        self.largest = np.float32(1.0)
        self.batches = 0
        self.random = {name: np.random.default_rng(seed) for name in ("prioritized", "uniform")}
        self.held: tuple[Row, ...] | None = None
        self.recalled: tuple[Row, ...] | None = None

    @classmethod
    def at(cls, seed: int, commits: int, restarts: Sequence[int] = (), joined: Sequence[int] = ()) -> Model:
        """Return the state right after a commit of a life that went on anew from some, while more joined others."""
        model = cls(seed)
        while True:
            if model.commits in joined and model.commits not in model.joined:
                for op in model.more():
                    model.apply(op)
                model.join()
            if model.commits in restarts and model.commits not in model.restarts:
                model.restart()
            if model.commits >= commits:
                return model
            before = model.commits
            while model.commits == before:
                model.apply(model.next())

    def restart(self) -> None:
        """Let a new process claim the streams and resume the samplers; the model must be at a commit."""
        self.restarts.append(self.commits)
        for stream in self.streams:
            self._interrupt(stream)
        self.recalled, self.held = self.recalled or self.held, None

    def more(self) -> list[Op]:
        """Return what joins a commit that failed; no segment gets full by it."""
        rng = random.Random(f"{self.seed}/more/{self.commits}")
        steps = self.live_steps()
        values = tuple(rng.randrange(65) * (5.0 + self.commits) / 64 for _ in range(20))
        out = [Op("priorities", rows=tuple(rng.choices(steps, k=20)), values=values)] if steps else []
        for stream in self.streams:
            latest = stream.latest
            if stream.pending is not None and latest is not None and len(latest.rows) < SEGMENT_STEPS - 2:
                out.append(Op("step", stream.number, 1))
                break
        return out

    def join(self) -> None:
        """Let the commit be tried again."""
        self.joined.append(self.commits)
        self._settle()

    def next(self) -> Op:  # noqa: PLR0911  one line an operation
        """Return the operation that follows."""
        rng = random.Random(f"{self.seed}/{self.operations}")
        dice = rng.random()
        if dice < 0.06:
            return Op("commit")
        if dice < 0.075:
            return Op("seal")
        if dice < 0.17 and self.steps:
            if dice < 0.11:
                return Op("draw")
            rows = tuple(rng.choices(self.live_steps(), k=6))
            values = tuple(rng.randrange(65) * (4.0 + self.commits) / 64 for _ in rows)
            return Op("priorities", rows=rows, values=values)
        number = rng.randrange(len(STREAMS))
        if number == PINNED and self.streams[PINNED].steps >= DEMO_STEPS:
            number = rng.randrange(1, len(STREAMS))
        running = self.streams[number].pending is not None
        dice, how = rng.random(), rng.random()
        if running and dice < 0.9:
            return Op("step", number, 1, terminated=how < 0.05, truncated=0.03 < how < 0.08)
        if running and dice < 0.93:
            return Op("close", number)
        if dice < (0.96 if running else 0.6):
            return Op("reset", number)
        return Op("episode", number, rng.randint(1, 24), terminated=how < 0.5, truncated=0.4 < how < 0.8)

    def apply(self, op: Op) -> bool:  # noqa: C901  one case an operation
        """Do an operation; return whether the store commits in it."""
        self.operations += 1
        stream = self.streams[op.stream]
        commit = False
        match op.kind:
            case "commit" | "seal":
                commit = True
                if op.kind == "seal":
                    self._close_segments()
            case "draw":
                self._draw()
            case "priorities":
                self._sync()
                for row, value in zip(op.rows, op.values, strict=True):
                    row.priority = np.float32(value)
                self.largest = max(self.largest, np.float32(max(op.values)))
            case "close":
                self._interrupt(stream)
            case "reset":
                self._reset(stream)
            case "step":
                self._step(stream, op)
            case "episode":
                self._reset(stream)
                for left in reversed(range(op.count)):
                    self._step(stream, op if not left else Op("step"))
                self._interrupt(stream)
        if op.kind in {"reset", "step", "episode"}:
            commit = any(s.full and not s.sealed for s in self.segments if s.stream == op.stream)
        if commit:
            self._commit()
        return commit

    def live_steps(self) -> list[Row]:
        """Return the steps that can be sampled, in the order of their ids."""
        return [row for segment in self.segments for row in segment.rows if row.ended is None]

    def live_episodes(self) -> list[Row]:
        """Return the last rows of the episodes that end in live segments."""
        return [row for segment in self.segments for row in segment.rows if row.ended is not None]

    def following(self, row: Row) -> Key:
        """Return what was seen after a step."""
        rows = self.streams[row.key.stream].rows
        pending = self.streams[row.key.stream].pending
        if row.place + 1 < len(rows):
            return rows[row.place + 1].key
        if pending is None:
            raise ValueError(f"nothing follows {row.key}")
        return pending

    def window(self, row: Row, n_step: int, gamma: float) -> tuple[list[Row], float, float]:
        """Return the steps of a step's window, its return and its discount."""
        rows, steps = self.streams[row.key.stream].rows, [row]
        while len(steps) < n_step and steps[-1].place + 1 < len(rows):
            after = rows[steps[-1].place + 1]
            if after.ended is not None:
                break
            steps.append(after)
        total = sum(gamma**i * reward_of(*step.key[:2]) for i, step in enumerate(steps))
        return steps, total, 0.0 if steps[-1].terminated else gamma ** len(steps)

    def before(self, row: Row) -> Row:
        """Return the row that stands before a step in a stack of frames."""
        rows = self.streams[row.key.stream].rows
        before = rows[row.place - 1] if row.place else row
        return before if before.key.episode == row.key.episode and before.segment in self.segments else row

    def _open(self, stream: Stream) -> Segment:
        # An unsealed segment is never evicted, so the latest one that is not full is live.
        if stream.latest is None or stream.latest.full:
            stream.latest = Segment(stream.number)
            self.segments.append(stream.latest)
        return stream.latest

    def _append(self, stream: Stream, key: Key) -> Row:
        segment = self._open(stream)
        row = Row(key, segment, len(segment.rows), len(stream.rows))
        segment.rows.append(row)
        stream.rows.append(row)
        return row

    def _interrupt(self, stream: Stream) -> None:
        """End a running episode; one without steps leaves nothing."""
        if stream.pending is not None and stream.episode is not None and stream.episode.length:
            self._append(stream, stream.pending).ended = stream.episode
        stream.pending = stream.episode = None

    def _reset(self, stream: Stream) -> None:
        self._interrupt(stream)
        self._open(stream)
        stream.episodes += 1
        stream.pending, stream.episode = Key(stream.number, stream.steps, stream.episodes), Episode()

    def _step(self, stream: Stream, op: Op) -> None:
        episode, key = stream.episode, stream.pending
        if episode is None or key is None:
            raise ValueError("a step outside an episode")
        row = self._append(stream, key)
        row.terminated = op.terminated
        episode.first = episode.first or row
        episode.length += 1
        episode.total += reward_of(*key[:2])
        episode.terminated = op.terminated
        stream.steps += 1
        stream.pending = Key(stream.number, stream.steps, stream.episodes)
        self.steps += 1
        self.fresh.append(row)
        self._open(stream)
        if op.kind == "step" and (op.terminated or op.truncated):
            self._interrupt(stream)

    def _close_segments(self) -> None:
        for stream in self.streams:
            mine = [s for s in self.segments if s.stream == stream.number and not s.sealed]
            if mine and mine[-1].rows and not mine[-1].full:
                mine[-1].closed = True
                if stream.pending is not None:
                    self._open(stream)

    def _sync(self) -> None:
        """Give new steps the largest priority seen; so does everything that looks at priorities."""
        for row in self.fresh:
            row.priority = self.largest
        self.fresh.clear()

    def _draw(self) -> None:
        """Draw a batch ahead and deliver the one before it."""
        self._sync()
        drawn, self.recalled = self.recalled, None
        if drawn is None:
            self.batches += 1
            self.random["prioritized"].random(BATCH)
            steps = self.live_steps()
            drawn = tuple(steps[rank] for rank in np.sort(self.random["uniform"].integers(len(steps), size=BATCH)))
        self.held = drawn

    def _commit(self) -> None:
        self.commits += 1
        self._settle()

    def _settle(self) -> None:
        self._sync()
        self.live_before = self.live_steps()
        for segment in self.segments:
            segment.sealed = segment.sealed or segment.full
        for segment in list(self.segments):
            if self.steps <= CAPACITY:
                break
            if segment.sealed and segment.stream != PINNED:
                self.segments.remove(segment)
                self.steps -= segment.steps
                self.steps_evicted += segment.steps


class Life:
    """A store that lives through the model's operations.

    Args:
        path: The store; made if there is none.
        seed: Of the life.
        ack: The file that commits are acknowledged in, if any.
    """

    def __init__(self, path: Path, seed: int, ack: Path | None = None) -> None:
        self.ack = None if ack is None else os.open(ack, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.undone: tuple[Op, bool] | None = None
        small_journal()
        if path.exists():
            self.store = ReplayStore.open(path, mode="a")
        else:
            self.store = ReplayStore.create(path, SPEC, capacity=CAPACITY, segment_steps=SEGMENT_STEPS)
        try:
            self._begin(seed)
        except BaseException:
            self.store.close()
            raise

    def _begin(self, seed: int) -> None:
        store = self.store
        done = progress(store)
        self.model = Model.at(seed, *done)
        if done.commits:
            self.model.restart()
        self.writers = [store.writer(name) for name in STREAMS]
        store.pin(STREAMS[PINNED])
        self.prioritized = PrioritizedSampler(store, seed=seed, eps=0.0, resume=True)
        self.uniform = UniformSampler(store, seed=seed, resume=True)
        self.samplers = self.prioritized, self.uniform
        self.ahead: list[Any] = []
        self.before: list[dict[str, Any]] = []

    def advance(self) -> None:
        """Do the next operation, or the one that failed again; where that commits, mostly more joins it."""
        again = self.undone is not None
        if self.undone is None:
            op = self.model.next()
            self.undone = op, self.model.apply(op)
        op, commits = self.undone
        if commits:
            self._number()
        if again and commits and self.model.commits % 4 and self._is_done(op):
            self._join()
        else:
            self._perform(op)
            if commits and again and op.kind != "seal":
                self.store.commit()
        if again:
            self.store.refresh()  # what failed may have counted: to this handle that is as if another had done it
        self.undone = None
        if commits and self.ack is not None:
            os.write(self.ack, b"%d\n" % self.model.commits)

    def _number(self) -> None:
        model = self.model
        self.store.update_metadata({"commit": model.commits, "restarts": model.restarts, "joined": model.joined})

    def _join(self) -> None:
        """Try a commit again that failed or seemed to, with more in it."""
        self.store.refresh()
        if self.model.commits not in self.model.joined:
            for op in self.model.more():
                self.model.apply(op)
                self._perform(op)
            self.model.join()
        self._number()
        self.store.commit()

    def run(self, commits: int) -> None:
        """Go on up to a commit."""
        while self.model.commits < commits or self.undone is not None:
            self.advance()

    def close(self) -> None:
        self.store.close()
        if self.ack is not None:
            os.close(self.ack)
            self.ack = None

    def _is_done(self, op: Op) -> bool:
        """Return whether a step or episode was kept although its commit failed: it must not be repeated."""
        return op.kind == "commit" or (
            op.kind in {"step", "episode"} and self.writers[op.stream].steps == self.model.streams[op.stream].steps
        )

    def _perform(self, op: Op) -> None:
        store, stream = self.store, self.model.streams[op.stream]
        writer, done = self.writers[op.stream], self._is_done(op)
        match op.kind:
            case "commit":
                store.commit()
            case "seal":
                store.seal()
            case "draw":
                self._draw()
            case "priorities":
                self._set_priorities(op)
            case "close":
                writer.close()
                self.writers[op.stream] = store.writer(STREAMS[op.stream])
            case "reset":
                writer.reset(observation(Key(op.stream, stream.steps, stream.episodes)))
            case "step" if not done:
                at = op.stream, stream.steps - 1
                follows = observation(Key(op.stream, stream.steps, stream.episodes))
                writer.step(action_of(*at), reward_of(*at), op.terminated, op.truncated, follows)
            case "episode" if not done:
                ordinals = np.arange(stream.steps - op.count, stream.steps + 1)
                keys = np.stack([np.full_like(ordinals, op.stream), ordinals, np.full_like(ordinals, stream.episodes)])
                last = ordinals[:-1] == ordinals[-2]
                writer.write_episode(
                    observations(keys.T),
                    action_of(op.stream, ordinals[:-1]),
                    reward_of(op.stream, ordinals[:-1]),
                    last & op.terminated,
                    last & op.truncated,
                )

    def _draw(self) -> None:
        self.before = []
        self.before = [sampler.state_dict() for sampler in self.samplers]
        drawn = [sampler.draw_ahead(BATCH) for sampler in self.samplers]
        for sampler, draw in zip(self.samplers, self.ahead, strict=False):  # there is none at first
            sampler.delivered(draw)
        self.ahead = drawn

    def after_interrupt(self) -> None:
        """Take back a draw that was interrupted: it may have been made, and nobody has it.

        Raises:
            WriterStateError: If a step was interrupted half-way: it is refused from now on, but not yet seen to be.
        """
        if self.undone is None:
            return
        op, _ = self.undone
        self.writers[op.stream]._stream.require_whole()
        if op.kind == "draw" and self.before:
            for sampler, state in zip(self.samplers, self.before, strict=True):
                sampler.load_state_dict(state)
            if self.ahead:
                self.ahead = [sampler.draw_ahead(BATCH) for sampler in self.samplers]

    def _set_priorities(self, op: Op) -> None:
        if any(row.step_id is None for row in op.rows):
            ids = self.store.step_ids_of(np.arange(len(self.store)))
            steps = self.model.live_steps()
            if len(ids) > len(steps):  # a commit that failed has not evicted
                steps = self.model.live_before
            for row, step_id in zip(steps, ids.tolist(), strict=True):
                row.step_id = step_id
        values = np.array(op.values) * (-1) ** np.arange(len(op.values))
        self.prioritized.update_priorities([row.step_id for row in op.rows], values)


def small_journal() -> None:
    """Have this process journal priorities as it would those of a large store."""
    for name, value in JOURNAL.items():
        setattr(changes, name, value)


class Progress(NamedTuple):
    """The last commit that counts, the commits that a life went on from, and those that more joined."""

    commits: int
    restarts: list[int]
    joined: list[int]


def progress(store: ReplayStore) -> Progress:
    """Return how far a store's life has come."""
    metadata = store.metadata
    return Progress(
        *(metadata.get(name, default) for name, default in (("commit", 0), ("restarts", []), ("joined", [])))
    )


def acknowledged(ack: Path) -> int:
    """Return the last commit acknowledged in a file, 0 if there is none."""
    lines = ack.read_bytes().split() if ack.exists() else []
    return int(lines[-1]) if lines else 0


def check(path: Path, seed: int, acked: int, go_on: int = 2) -> list[str]:
    """Return what is wrong with a store whose life was cut off, without helping it, and let it go on.

    Args:
        path: The store.
        seed: Of its life.
        acked: The last commit that was acknowledged.
        go_on: Commits to live on for, after which it is looked at again.
    """
    problems: list[str] = []
    commits = _look(Path(path), seed, range(acked, acked + 2), problems)
    if not problems and go_on:
        try:
            life = Life(Path(path), seed)
            life.run(commits + go_on)
            life.close()
        except Exception as err:  # noqa: BLE001  whatever it is, the store does not go on
            problems.append(describe("it does not go on", err))
        else:
            wanted = range(commits + go_on, commits + go_on + 1)
            _look(Path(path), seed, wanted, problems)
            problems[:] = [f"after going on: {line}" for line in problems]
    return problems[:MOST_LINES]


def _look(path: Path, seed: int, wanted: range, problems: list[str]) -> int:
    """Compare a store with the model; return its last commit."""
    commits = 0
    try:
        with ReplayStore.open(path) as store:
            done = progress(store)
            commits = done.commits
            if commits not in wanted:
                problems.append(f"the last commit is {commits}, {wanted.start} was acknowledged")
            problems += compare(store, Model.at(seed, *done))
    except StoreNotFoundError as err:
        if wanted.start or path.exists():
            problems.append(describe("the store is gone", err))
    except Exception as err:  # noqa: BLE001  whatever it is, the store cannot be read
        problems.append(describe("it cannot be read", err))
    return commits


def describe(what: str, err: BaseException) -> str:
    """Say which error it was, and where it came from, in one line."""
    frames = traceback.extract_tb(err.__traceback__)
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
    return f"{what}: {err!r} at {where}"


def compare(store: ReplayStore, model: Model) -> list[str]:
    """Return every difference between a store, as it was committed, and the model."""
    problems = [f"verify: {p.kind}: {p.where}: {p.what}" for p in store.verify() if p.kind != "orphan"]
    steps = model.live_steps()
    problems += _compare_counts(store, model)
    ids = store.step_ids_of(np.arange(len(store)))
    if len(ids) != len(steps):
        return problems
    segments: dict[Segment, int] = {}
    for row, step_id in zip(steps, ids.tolist(), strict=True):
        if (step_id % SEGMENT_STEPS, segments.setdefault(row.segment, step_id // SEGMENT_STEPS)) != (
            row.index,
            step_id // SEGMENT_STEPS,
        ):
            problems.append(f"{row.key} has the step id {step_id}, not row {row.index} of {segments[row.segment]}")
    if len(set(segments.values())) != len(segments):
        problems.append("segments of the model share a segment of the store")
    if steps:
        problems += _compare_batches(store, model, steps, ids)
    problems += _compare_episodes(store, model, segments)
    problems += _compare_samplers(store, model, steps, ids)
    return problems


def _compare_counts(store: ReplayStore, model: Model) -> Iterable[str]:
    stats = store.stats()
    rows = model.live_episodes()
    expected = {
        "steps": model.steps,
        "transitions": len(model.live_steps()),
        "episodes": len(rows),
        "steps_evicted": model.steps_evicted,
        "segments": sum(s.sealed for s in model.segments),
        "tail_steps": sum(s.steps for s in model.segments if not s.sealed),
    }
    for name, value in expected.items():
        if getattr(stats, name) != value:
            yield f"{name}: {getattr(stats, name)}, expected {value}"
    if model.commits and store.streams != STREAMS:
        yield f"streams: {store.streams}"


def _compare_batches(store: ReplayStore, model: Model, steps: list[Row], ids: NDArray[np.int64]) -> Iterable[str]:
    plain = store.read(ids, n_step=1, gamma=0.5)
    stacked = store.read(ids, n_step=3, gamma=0.5, frame_stack=2)
    keys = np.array([row.key for row in steps])
    windows = [model.window(row, 3, 0.5) for row in steps]
    befores = [(model.before(row).key, row.key) for row in steps]
    afters = [(window[-1].key, model.following(window[-1])) for window, _, _ in windows]
    expected = {
        "observation": (plain.observation, observations(keys)),
        "next_observation": (plain.next_observation, observations([model.following(row) for row in steps])),
        "action": (plain.action, action_of(keys[:, 0], keys[:, 1])),
        "reward": (plain.reward, reward_of(keys[:, 0], keys[:, 1])),
        "discount": (plain.discount, np.array([0.0 if row.terminated else 0.5 for row in steps])),
        "stacked observation": (stacked.observation, _stacks(befores)),
        "stacked next_observation": (stacked.next_observation, _stacks(afters)),
        "3-step return": (stacked.reward, np.array([total for _, total, _ in windows])),
        "3-step discount": (stacked.discount, np.array([discount for _, _, discount in windows])),
    }
    for name, (found, wanted) in expected.items():
        for leaf in found if isinstance(found, dict) else ("",):
            a, b = (found[leaf], wanted[leaf]) if leaf else (found, wanted)
            if not np.array_equal(a, b):
                bad = int(np.flatnonzero((a != b).reshape(len(ids), -1).any(axis=1))[0])
                is_not = f"is {a[bad].ravel()[:4]}, not {b[bad].ravel()[:4]}"
                yield f"{name} {leaf} of step {int(ids[bad])}, {steps[bad].key}, {is_not}"


def _stacks(pairs: list[tuple[Key, Key]]) -> dict[str, NDArray[Any]]:
    flat = observations([key for pair in pairs for key in pair])
    return {name: values.reshape(len(pairs), 2, *values.shape[1:]) for name, values in flat.items()}


def _compare_episodes(store: ReplayStore, model: Model, segments: dict[Segment, int]) -> Iterable[str]:
    table, rows = store.episodes(), model.live_episodes()
    if store.num_episodes != len(rows) or len(table.length) != len(rows):
        yield f"{store.num_episodes} episodes, {len(table.length)} in the table, expected {len(rows)}"
        return
    for number, row in enumerate(rows):
        episode = row.ended
        if episode is None or episode.first is None:
            continue
        found = (
            float(table.episode_return[number]),
            int(table.length[number]),
            bool(table.terminated[number]),
            int(table.stream[number]),
            int(table.first_step_id[number]),
        )
        first = found[-1]
        if episode.first.segment in segments:
            first = segments[episode.first.segment] * SEGMENT_STEPS + episode.first.index
        expected = (episode.total, episode.length, episode.terminated, row.key.stream, first)
        if found != expected:
            yield f"episode {number}, {row.key}: (return, length, terminated, stream, first) {found}, not {expected}"


def _compare_samplers(store: ReplayStore, model: Model, steps: list[Row], ids: NDArray[np.int64]) -> Iterable[str]:
    prioritized = PrioritizedSampler(store, eps=0.0, seed=model.seed, resume=True)
    uniform = UniformSampler(store, seed=model.seed, resume=True)
    expected = np.array([row.priority for row in steps], np.float32)
    committed = np.concatenate([np.zeros(0, np.float32), *store.priorities()])
    for name, found in (("priority", prioritized.priorities_of(ids)), ("committed priority", committed)):
        if found.shape != expected.shape:
            yield f"{name}: there are {len(found)}, expected {len(expected)}"
        elif not np.array_equal(found, expected):
            bad = int(np.flatnonzero(found != expected)[0])
            yield f"{name} of step {int(ids[bad])}, {steps[bad].key}, is {found[bad]}, not {expected[bad]}"
    sound, why = prioritized.check_valid()
    if not sound:
        yield f"the sum tree: {why}"
    if model.commits and prioritized.largest != float(model.largest):
        yield f"the largest priority is {prioritized.largest}, not {model.largest}"
    yield from _compare_states(model, prioritized, uniform, dict(zip(steps, ids.tolist(), strict=True)))


def _compare_states(
    model: Model, prioritized: PrioritizedSampler, uniform: UniformSampler, known: dict[Row, int]
) -> Iterable[str]:
    waiting = model.held or model.recalled
    for name, sampler in (("prioritized", prioritized), ("uniform", uniform)):
        state = sampler.state_dict()
        batches, ahead = state["batches"], len(state["in_flight"])
        if batches != model.batches or ahead != (waiting is not None):
            yield f"sampler {name}: {batches} batches, {ahead} in flight, not {model.batches}"
        if state["random"] != model.random[name].bit_generator.state:
            yield f"sampler {name}: another random state than that of {model.batches} batches"
    if waiting is not None and uniform._drawn_before:
        for row, step_id in zip(waiting, uniform._drawn_before[0].step_ids.tolist(), strict=True):
            if known.get(row, step_id) != step_id:
                yield f"sampler uniform: {row.key} in flight has the id {step_id}, not {known[row]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ack", type=Path)
    parser.add_argument("--commits", type=int, default=COMMITS)
    options = parser.parse_args(arguments)
    life = Life(options.store, options.seed, options.ack)
    life.run(options.commits)
    life.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
