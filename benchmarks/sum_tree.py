"""What do drawing and updating 256 priorities cost, in trees of 1, 10 and 100 million leaves?

A draw finds 256 leaves and reads their values. diskreplay's sampler draws stratified, so neighbours share paths;
TorchRL's draws independently. Both ways are measured for both. TorchRL's tree is float32; diskreplay's has float32
leaves under float64 sums; cpprb's is not to be had alone: its draw computes weights and gathers a float, its update
keeps a second tree. Medians of single batches; "both" is a draw and the update of what it drew.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import goals
from benchmarks.harness import Case, Contestant, Settings
from diskreplay.priority import SumTree

if TYPE_CHECKING:
    from collections.abc import Sequence

TITLE = "Sum tree: draw and update 256 priorities"
AXIS = "leaves"
MEASURE = "sample_seconds"
MEASURES = ("sample_seconds", "update_seconds", "both_seconds")
SIZES = (1_000_000, 10_000_000, 100_000_000)
BLOCK = 4_096
OURS, INDEPENDENT = "diskreplay", "diskreplay, independent draws"
TORCHRL, SORTED, CPPRB = "TorchRL", "TorchRL, stratified draws", "cpprb, buffer"


class Tree:
    """diskreplay's sum tree."""

    def __init__(self, *, leaves: int, batches: int, stratified: bool, batch_size: int = 256) -> None:
        self.leaves, self.batches, self.stratified, self.batch_size = leaves, batches, stratified, batch_size

    def prepare(self) -> None:
        """Fill the tree."""
        self.rng = np.random.default_rng(0)
        blocks = -(-self.leaves // BLOCK)
        self.tree = SumTree(BLOCK, blocks)
        for block in range(blocks):
            count = min(BLOCK, self.leaves - block * BLOCK)
            self.tree.update_range(block, 0, self.rng.random(count) + 0.01)
        self.values = self.rng.random(self.batch_size) + 0.01
        self.run()

    def draw(self) -> Any:
        """Draw leaves and read their values, as the sampler does if stratified; return the leaves."""
        if self.stratified:
            _, found = self.tree.draw_loaded(self.batch_size, self.rng)
            assert found is not None
            return found[0]
        leaves = self.tree.sample(self.batch_size, self.rng)
        self.tree.get(leaves)
        return leaves

    def run(self) -> dict[str, float]:
        """Return the median seconds of a batch."""
        times = np.empty((self.batches, 2))
        for i in range(self.batches):
            began = time.perf_counter()
            leaves = self.draw()
            sampled = time.perf_counter()
            self.tree.update(leaves, self.values)
            times[i] = sampled - began, time.perf_counter() - sampled
        sample, update = np.median(times, axis=0)
        both = float(np.median(times.sum(axis=1)))
        return {"sample_seconds": float(sample), "update_seconds": float(update), "both_seconds": both}


def cases(settings: Settings) -> list[Case]:
    """Return one case a size."""
    found = []
    for leaves in settings.sizes or settings.pick(SIZES, (100_000,)):
        options = {"leaves": leaves, "batches": settings.pick(3_000, 50)}
        torchrl = {"needs": "torchrl", "environment": "torchrl", "x": leaves}
        mine, theirs = "benchmarks.sum_tree:Tree", "benchmarks.compare.torchrl_buffers:Tree"
        who = (
            Contestant(OURS, mine, {**options, "stratified": True}, x=leaves),
            Contestant(INDEPENDENT, mine, {**options, "stratified": False}, x=leaves),
            Contestant(TORCHRL, theirs, {**options, "stratified": False}, **torchrl),
            Contestant(SORTED, theirs, {**options, "stratified": True}, **torchrl),
            Contestant(CPPRB, "benchmarks.compare.cpprb_buffers:Tree", options, needs="cpprb", x=leaves,
                       note="with weights, gathering, and a tree of minima"),
        )  # fmt: skip
        found.append(Case(f"{leaves:,} leaves", who, {"leaves": leaves, "batch": 256}))
    return found


def judge(found: Sequence[goals.Case]) -> list[goals.Verdict]:
    """Compare with the goals: as each library draws, and both in TorchRL's way."""
    verdicts = []
    for case in found:
        least = 1.3 if case["about"]["leaves"] >= 100_000_000 else 1.0
        for measure in MEASURES:
            work = f"{case['name']}, {measure.partition('_')[0]}"
            verdicts.append(goals.at_least(case, work, OURS, TORCHRL, measure, least))
            verdicts.append(goals.at_least(case, f"{work}, independent draws", INDEPENDENT, TORCHRL, measure, least))
            verdicts.append(goals.at_least(case, work, OURS, CPPRB, measure, least))
    return verdicts
