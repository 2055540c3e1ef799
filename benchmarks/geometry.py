"""How good is the codec and the chunk length that a store chooses for itself?

Every codec with every chunk length, a store each of the same rows, beside "auto", which tries some of them on its
first segment while it is written. Warm, prioritized, batch 256. "auto" may choose among what takes at most twice the
room of the smallest or a fortieth of the raw rows' (coding.py); the fastest of the sweep is named twice, with that
bound and without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import data, goals
from benchmarks.harness import Case, Contestant, Settings
from benchmarks.ours import NAME, Loader
from diskreplay.storage.coding import MOST_BYTES, SMALL_ENOUGH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TITLE = "Geometry: the store's own choice beside a sweep"
MEASURE = "transitions_per_second"
MEASURES = ("transitions_per_second", "observation_bytes")
AXIS = "rows a chunk"
CODECS = ("zstd", "lz4", "lz4hc", "none")
IMAGES, VECTORS = (1, 2, 4, 8, 16, 32, 64, 128), (1, 16, 64, 256, 1024, 4096)
STACK = 4


class Sized(Loader):
    """The loader, and what its store's observations take."""

    def prepare(self) -> dict[str, Any]:
        """Open, and say what the store chose for its observations."""
        about = super().prepare()
        field = self.store.stats().to_json()["fields"]["observation"]
        self.size = field["bytes_on_disk"] / len(self.store)
        return {**about, "geometry": f"{field['codec']}, {field['chunk_steps']}"}

    def run(self) -> dict[str, float]:
        """Return transitions a second and the observations' bytes a step."""
        return {**super().run(), "observation_bytes": self.size}


def cases(settings: Settings) -> list[Case]:
    """Return one case a kind of data."""
    steps = settings.pick(100_000, 2_000)
    games = settings.pick(("Breakout", "Seaquest"), ("Breakout",))
    images = {game: data.atari(settings.data, game, steps) for game in games}
    found = [case_of(settings, game, folder, STACK, 84 * 84, IMAGES) for game, folder in images.items()]
    if not settings.quick:
        found.append(case_of(settings, "17 floats", data.vectors(settings.data, 1_000_000), 1, 17 * 4, VECTORS))
    return found


def case_of(settings: Settings, name: str, folder: Path, stack: int, row_bytes: int, lengths: tuple[int, ...]) -> Case:
    """Return "auto" and the sweep over these rows."""
    options = {"frame_stack": stack, "seconds": settings.pick(1.5, 0.1), "warm": True}
    auto = Contestant(NAME, "benchmarks.geometry:Sized", {"store": str(data.store_of(folder, "auto")), **options},
                      group="auto")  # fmt: skip
    sweep = [
        Contestant(
            f"{codec}, {length}", "benchmarks.geometry:Sized",
            {"store": str(data.store_of(folder, codec, chunk_steps=length)), **options}, group=codec, x=length,
        )
        for codec in CODECS
        for length in settings.pick(lengths, lengths[:2])
    ]  # fmt: skip
    return Case(name, (auto, *sweep), {"frame_stack": stack, "row_bytes": row_bytes})


def judge(found: Sequence[goals.Case]) -> list[goals.Verdict]:
    """Compare "auto" with the fastest."""
    verdicts = []
    for case in found:
        ran = {name: goals.median(case, name, MEASURE) for name in case["contestants"] if name != NAME}
        rates = {name: rate for name, rate in ran.items() if rate is not None}
        sizes = {name: goals.median(case, name, MEASURES[1]) or 0.0 for name in rates}
        if not rates:
            continue
        enough = max(MOST_BYTES * min(sizes.values()), SMALL_ENOUGH * case["about"]["row_bytes"])
        for which, bound in (("the fastest within the bound", enough), ("the fastest", float("inf"))):
            best = max((name for name in rates if sizes[name] <= bound), key=rates.__getitem__)
            verdict = goals.at_least(case, f"{case['name']}, {which}", NAME, best, MEASURE, 0.9)
            verdicts.append(verdict)
    return verdicts
