"""How fast do Atari steps from memory get into the buffer, by one writer?

diskreplay commits every 1,000 steps, which then survive a power cut; it checks every step, compresses and seals while
it writes. TorchRL and cpprb promise nothing about what is on disk. All start empty in every run. Stacking the frames
for those that want them stacked is done before the clock starts. To try codings costs diskreplay a tenth of a second
of each run. Step by step the others write 4,000 steps.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import data, goals
from benchmarks.data import write_episode
from benchmarks.harness import Case, Contestant, Settings
from benchmarks.rows import Rows
from diskreplay import ArraySpec, ReplayStore, StepSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

TITLE = "Ingest: Atari steps from memory, one writer"
MEASURE = "steps_per_second"
GAMES = ("Breakout", "Seaquest")
STACK, COMMIT_EVERY = 4, 1_000
OURS, STEPS = "diskreplay, episodes", "diskreplay, step by step"
TORCHRL, CPPRB = "TorchRL, extend", "cpprb, add"


class Writing:
    """diskreplay: `write_episode` or `step`, and a commit every 1,000 steps."""

    def __init__(self, rows: str, *, scratch: str, steps: int, one_by_one: bool, durability: str = "power") -> None:
        self.folder, self.scratch, self.steps, self.one_by_one = Path(rows), Path(scratch), steps, one_by_one
        self.durability = durability

    def prepare(self) -> dict[str, Any]:
        """Read the frames; write them once."""
        rows = Rows.load(self.folder)
        self.rows, self.episodes, self.count = rows, [], 0
        for episode in rows.episodes():
            if self.count >= self.steps:
                break
            self.episodes.append(episode)
            self.count += episode.stop - episode.start - 1
        shape, dtype = rows.observation.shape[1:], rows.observation.dtype.name
        self.spec = StepSpec(
            ArraySpec("observation", shape, dtype), ArraySpec("action", (), rows.action.dtype.name, "discrete", n=18)
        )
        self.run()
        return {"steps": self.count}

    def run(self) -> dict[str, float]:
        """Return steps a second into an empty store, the last commit included."""
        with ReplayStore.create(self.scratch, self.spec, durability=self.durability) as store:  # type: ignore[arg-type]
            with store.writer() as writer:
                began = time.perf_counter()
                if self.one_by_one:
                    self._by_step(store, writer)
                else:
                    self._by_episode(store, writer)
                store.commit()
            took = time.perf_counter() - began
        shutil.rmtree(self.scratch)
        return {"steps_per_second": self.count / took}

    def _by_episode(self, store: ReplayStore, writer: Any) -> None:
        waiting = 0
        for episode in self.episodes:
            write_episode(writer, self.rows, episode)
            waiting += episode.stop - episode.start - 1
            if waiting >= COMMIT_EVERY:
                store.commit()
                waiting = 0

    def _by_step(self, store: ReplayStore, writer: Any) -> None:
        rows, waiting = self.rows, 0
        for episode in self.episodes:
            writer.reset(rows.observation[episode.start])
            for t in range(episode.start, episode.stop - 1):
                writer.step(
                    rows.action[t], rows.reward[t], rows.terminated[t], rows.truncated[t], rows.observation[t + 1]
                )
                waiting += 1
                if waiting == COMMIT_EVERY:
                    store.commit()
                    waiting = 0

    def close(self) -> None:
        """Remove what a failed run left."""
        shutil.rmtree(self.scratch, ignore_errors=True)


def cases(settings: Settings) -> list[Case]:
    """Return one case a game."""
    recorded, steps = settings.pick(100_000, 2_000), settings.pick(48_000, 1_000)
    found = []
    for game in settings.pick(GAMES, GAMES[:1]):
        rows = {"rows": str(data.atari(settings.data, game, recorded) / "rows"), "steps": steps}
        scratch, mine = settings.data / "scratch", "benchmarks.ingest_speed:Writing"
        torchrl = {"needs": "torchrl", "environment": "torchrl"}
        extend, add = "benchmarks.compare.torchrl_buffers:Extending", "benchmarks.compare.cpprb_buffers:Adding"
        single = {"one_by_one": True, "steps": min(steps, 4_000)}
        who = (
            Contestant(OURS, mine, {**rows, "scratch": f"{scratch}-a.replay", "one_by_one": False},
                       note="a commit at the first episode's end after 1,000 steps"),
            Contestant(STEPS, mine, {**rows, "scratch": f"{scratch}-b.replay", "one_by_one": True},
                       note="a commit every 1,000 steps"),
            Contestant('diskreplay, episodes, durability="process"', mine,
                       {**rows, "scratch": f"{scratch}-c.replay", "one_by_one": False, "durability": "process"},
                       note="survives kill -9, not a power cut"),
            Contestant(TORCHRL, extend, {**rows, "scratch": f"{scratch}-d", "stack": STACK, "one_by_one": False},
                       note="LazyMemmapStorage, 1,000 at a time", **torchrl),
            Contestant("TorchRL, add", extend, {**rows, "scratch": f"{scratch}-e", "stack": STACK, **single},
                       note="LazyMemmapStorage, step by step", **torchrl),
            Contestant(CPPRB, add, {**rows, "stack": STACK, "one_by_one": False}, needs="cpprb",
                       note="RAM, an episode at a time"),
            Contestant("cpprb, add, step by step", add, {**rows, "stack": STACK, **single}, needs="cpprb", note="RAM"),
        )  # fmt: skip
        found.append(Case(game, who, {"steps": steps, "commit_every": COMMIT_EVERY}))
    return found


def judge(found: Sequence[goals.Case]) -> list[goals.Verdict]:
    """Compare with the goals."""
    verdicts = []
    for case in found:
        pairs = (
            (OURS, "by episodes", TORCHRL),
            (OURS, "by episodes", CPPRB),
            (STEPS, "step by step", "TorchRL, add"),
            (STEPS, "step by step", "cpprb, add, step by step"),
        )
        for mine, how, rival in pairs:
            verdict = goals.at_least(case, f"{case['name']}, {how}", mine, rival, MEASURE, 2)
            verdicts.append(verdict)
    return verdicts
