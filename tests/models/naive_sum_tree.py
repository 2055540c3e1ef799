"""A sum tree in plain lists: every sum and every search starts from the leaves, each time."""

from __future__ import annotations

import math

import numpy as np

LEAST = float(np.finfo(np.float32).tiny)


def held(value: float) -> float:
    """Round a leaf's value to a float32, but never to 0."""
    return float(np.float32(max(value, LEAST))) if value > 0.0 else 0.0


def add(values: list[float]) -> float:
    """Add from left to right; `sum` rounds differently from Python 3.12 on."""
    total = 0.0
    for value in values:
        total += value
    return total


def fold(values: list[float]) -> float:
    """Add sixteen numbers, missing ones 0: the second half to the first, until one is left."""
    values = values + [0.0] * (16 - len(values))
    while len(values) > 1:
        middle = len(values) // 2
        values = [a + b for a, b in zip(values[:middle], values[middle:], strict=True)]
    return values[0]


def levels(values: list[float]) -> list[list[float]]:
    """Return the values, the sums of each 16 neighbours, and so on up to a single number."""
    rows = [values]
    while len(rows) == 1 or len(rows[-1]) > 1:
        below = rows[-1]
        rows.append([fold(below[i : i + 16]) for i in range(0, len(below), 16)])
    return rows


def pick(values: list[float], target: float) -> tuple[int, float]:
    """Walk down from the top; at each node take the first child whose running sum passes target."""
    place = 0
    for row in reversed(levels(values)[:-1]):
        children = row[place * 16 : place * 16 + 16]
        passing = [i for i in range(len(children)) if add(children[: i + 1]) > target]
        if passing:
            child = passing[0]
            target -= add(children[:child])
        else:  # rounding: the last child above zero, and its last leaf above zero
            child = [i for i, value in enumerate(children) if value > 0][-1]
            target = math.inf
        place = place * 16 + child
    return place, target


class NaiveSumTree:
    def __init__(self, block_size: int, blocks: int) -> None:
        self.block_size = block_size
        self.leaves = [[0.0] * block_size for _ in range(blocks)]
        self.known: list[float | None] = [None] * blocks  # the total of a block that is not loaded

    def grow(self, blocks: int) -> None:
        while len(self.leaves) < blocks:
            self.leaves.append([0.0] * self.block_size)
            self.known.append(None)

    def update(self, leaves: list[int], values: list[float]) -> None:
        for leaf, value in zip(leaves, values, strict=True):
            self.leaves[leaf // self.block_size][leaf % self.block_size] = held(value)

    def set_block(self, block: int, values: list[float]) -> None:
        self.leaves[block] = [held(value) for value in values] + [0.0] * (self.block_size - len(values))
        self.known[block] = None

    def set_block_total(self, block: int, total: float) -> None:
        self.known[block] = total

    def block_totals(self) -> list[float]:
        pairs = zip(self.leaves, self.known, strict=True)
        return [levels(leaves)[-1][0] if known is None else known for leaves, known in pairs]

    def total(self) -> float:
        return levels(self.block_totals())[-1][0]

    def locate(self, target: float) -> tuple[int, float]:
        return pick(self.block_totals(), target)

    def find(self, target: float) -> int:
        block, residual = self.locate(target)
        return block * self.block_size + pick(self.leaves[block], residual)[0]
