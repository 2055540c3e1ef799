"""How many commits a second, by durability and by steps a commit, beside raw LMDB and an append with fsync?

Every way gets the same steps, CartPole's (4 float32, an action), made before the clock starts. LMDB and the append take
as many bytes as the steps have, raw, and do nothing else. diskreplay beside checks and buffers each step, makes it
readable at once, checksums it and seals full segments into compressed shards; sealing is part of the time in which it
falls.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np

from benchmarks.harness import Case, Contestant, Settings
from benchmarks.worker import repeat
from diskreplay import ArraySpec, ReplayStore, StepSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks import goals

TITLE = "Commits"
MEASURE = "commits_per_second"
SPEC = StepSpec(ArraySpec("observation", (4,), "float32"), ArraySpec("action", (), "int64", "discrete", n=2))
STEP_BYTES = 4 * 4 + 8 + 4 + 1 + 1
SIZES = (1, 100, 10_000)
STORE_WAYS = ("step, power", "step, process", "episode, power", "episode, process")
PLAIN_WAYS = ("LMDB, synced", "LMDB, not synced", "append, fsync", "append, no fsync")


class Commits:
    """One way to make steps durable, in a folder of its own for every run."""

    def __init__(self, way: str, *, folder: str, size: int, seconds: float) -> None:
        self.kind, self.how = way.split(", ")
        self.folder, self.size, self.seconds = Path(folder), size, seconds

    def prepare(self) -> None:
        """Whatever is slow the first time."""
        self.data = steps_of(self.size)
        self.run()

    def run(self) -> dict[str, float]:
        """Return commits a second."""
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="commits-", dir=self.folder))
        ways = {"step": self._store, "episode": self._store, "LMDB": self._lmdb, "append": self._append}
        try:
            calls, took = ways[self.kind](scratch)
        finally:
            shutil.rmtree(scratch)
        return {"commits_per_second": calls / took, "steps_per_second": calls * self.size / took}

    def _repeat(self, commit: Callable[[], None]) -> tuple[int, float]:
        for _ in range(2):
            commit()
        return repeat(commit, self.seconds)

    def _store(self, scratch: Path) -> tuple[int, float]:
        data, how = self.data, self.how
        with (
            ReplayStore.create(scratch / "a.replay", SPEC, durability=how) as store,  # type: ignore[arg-type]
            store.writer() as writer,
        ):
            writer.reset(data["observations"][0])

            def by_step() -> None:
                for t in range(self.size):
                    writer.step(data["actions"][t], 1.0, False, False, data["observations"][t + 1])  # noqa: FBT003
                store.commit()

            def by_episode() -> None:
                writer.write_episode(**data)
                store.commit()

            return self._repeat(by_step if self.kind == "step" else by_episode)

    def _lmdb(self, scratch: Path) -> tuple[int, float]:
        synced, value, number = self.how == "synced", os.urandom(STEP_BYTES * self.size), 0
        environment = lmdb.open(
            str(scratch / "a.lmdb"), map_size=1 << 36, sync=synced, metasync=synced, lib_version=0, readahead=False
        )

        def commit() -> None:
            nonlocal number
            with environment.begin(write=True) as txn:
                txn.put(number.to_bytes(8, "big"), value)
            number += 1

        with environment:
            return self._repeat(commit)

    def _append(self, scratch: Path) -> tuple[int, float]:
        value = os.urandom(STEP_BYTES * self.size)
        fd = os.open(scratch / "a.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

        def commit() -> None:
            os.write(fd, value)
            if self.how == "fsync":
                os.fsync(fd)

        try:
            return self._repeat(commit)
        finally:
            os.close(fd)


def steps_of(count: int) -> dict[str, Any]:
    """Return an episode of so many steps."""
    rng = np.random.default_rng(0)
    last = np.arange(count) == count - 1
    return {
        "observations": rng.normal(size=(count + 1, 4)).astype(np.float32),
        "actions": rng.integers(2, size=count),
        "rewards": np.ones(count, np.float32),
        "terminations": last,
        "truncations": np.zeros(count, bool),
    }


def cases(settings: Settings) -> list[Case]:
    """Return one case a number of steps."""
    found = []
    for size in settings.pick(SIZES, SIZES[:2]):
        options = {"folder": str(settings.data), "size": size, "seconds": settings.pick(1.0, 0.05)}
        ways = [f"diskreplay, {way}" for way in STORE_WAYS], list(PLAIN_WAYS)
        who = tuple(
            Contestant(name, "benchmarks.commits:Commits", {"way": name.removeprefix("diskreplay, "), **options})
            for name in (*ways[0], *ways[1])
        )
        found.append(Case(f"{size:,} {'step' if size == 1 else 'steps'} a commit", who, {"bytes": size * STEP_BYTES}))
    return found


def judge(found: Sequence[goals.Case]) -> list[goals.Verdict]:
    """Nothing was promised."""
    del found
    return []
