"""What do real Atari steps take on disk, and does every zarr reader see the bytes the emulator gave?

Every observation that leaves the environment is hashed, episode by episode, on its way to the store. Afterwards
zarr-python and tensorstore hash the finished episodes they find in `steps/`, without diskreplay. One round: nothing
varies.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from benchmarks import goals
from benchmarks.harness import Case, Contestant, Settings
from diskreplay import ReplayStore
from diskreplay.ingest import environments, ingest_gym

if TYPE_CHECKING:
    from collections.abc import Sequence

TITLE = "Bytes on disk"
MEASURE = "bytes_per_step_bytes"
MEASURES = ("bytes_per_step_bytes", "times_smaller_than_84x84", "episodes_equal", "episodes_not_equal")
FRAME_BYTES = 84 * 84
REFERENCE = (FRAME_BYTES, f"a frame as it is: {FRAME_BYTES:,}")
GAMES = ("Breakout", "Seaquest")
READERS = ("zarr", "tensorstore")


class Hashing(gymnasium.Wrapper):  # type: ignore[misc]
    """Hash the observations of every episode as they leave the environment."""

    finished: list[str]

    def reset(self, **options: Any) -> Any:
        """Begin a hash."""
        observation, info = self.env.reset(**options)
        self.hash = hashlib.sha256(np.ascontiguousarray(observation).tobytes())
        return observation, info

    def step(self, action: Any) -> Any:
        """Go on with it."""
        result = self.env.step(action)
        self.hash.update(np.ascontiguousarray(result[0]).tobytes())
        if result[2] or result[3]:
            self.finished.append(self.hash.hexdigest())
        return result


class Recording:
    """Record with `diskreplay ingest`'s own code, hashing."""

    def __init__(self, game: str, *, steps: int, store: str) -> None:
        self.game, self.steps, self.store = game, steps, Path(store)

    def prepare(self) -> dict[str, Any]:
        """Record; the readers look at it afterwards."""
        shutil.rmtree(self.store, ignore_errors=True)
        make = environments._make_in_worker  # noqa: SLF001  where every environment is made
        Hashing.finished = []
        environments._make_in_worker = lambda env_id: Hashing(make(env_id))  # noqa: SLF001
        report = ingest_gym(self.store, f"ALE/{self.game}-v5", steps=self.steps, num_envs=4, seed=0)
        expected_of(self.store).write_text("\n".join(Hashing.finished), encoding="ascii")
        return {"steps": self.steps, "ingested_per_second": round(report.steps_per_second)}

    def run(self) -> dict[str, float]:
        """Return sizes; the index is part of them."""
        with ReplayStore.open(self.store) as store:
            stats = store.stats()
        size = stats.bytes_on_disk / stats.steps
        return {"bytes_per_step_bytes": size, "times_smaller_than_84x84": FRAME_BYTES / size}


def expected_of(store: Path) -> Path:
    """Return the file with the hashes of what the emulator gave."""
    return store.with_suffix(".hashes")


def cases(settings: Settings) -> list[Case]:
    """Return one case a game."""
    found = []
    for game in settings.pick(GAMES, GAMES[:1]):
        store = settings.data / f"hashed-{game.lower()}.replay"
        settings.data.mkdir(parents=True, exist_ok=True)
        steps = settings.pick(100_000, 2_000)
        who = [Contestant("diskreplay", "benchmarks.disk_bytes:Recording",
                          {"game": game, "steps": steps, "store": str(store)})]  # fmt: skip
        who += [
            Contestant(f"read by {reader}", "benchmarks.compare.zarr_readers:Hashes", needs=reader,
                       options={"store": str(store), "reader": reader, "expected": str(expected_of(store))})
            for reader in READERS
        ]  # fmt: skip
        found.append(Case(game, tuple(who), {"steps": steps}, rounds=1))
    return found


def judge(found: Sequence[goals.Case]) -> list[goals.Verdict]:
    """Every finished episode must read back."""
    verdicts = []
    for case in found:
        for reader in READERS:
            name = f"read by {reader}"
            wrong = goals.median(case, name, "episodes_not_equal")
            right = goals.median(case, name, "episodes_equal")
            verdicts.append(
                goals.Verdict(
                    case["name"], f"the emulator, {name}", "every episode equal",
                    goals.why_not(case, name) if wrong is None else f"{right:,.0f} equal, {wrong:,.0f} not",
                    None if wrong is None else bool(wrong == 0 and right),
                )
            )  # fmt: skip
    return verdicts
