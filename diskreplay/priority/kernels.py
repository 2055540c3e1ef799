"""Owns the sum tree's compiled loops; what is wrong they answer with a position. See node_kernels for the layout.

All targets or changed leaves pass one level before any goes to the next, and each asks early for
the cache lines it needs there, so the waits overlap: at 10^8 leaves `find` takes a third as long.
Kernels of a batch keep the GIL, for a thread that gives it up waits far longer than they take; the
others, and the twins for large batches (`*_freely`), release it. Keeping two threads from one tree
is their caller's business.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from diskreplay.addresses import ask_for_item
from diskreplay.priority.node_kernels import (
    F64,
    FAN,
    I64,
    MOST,
    SHIFT,
    Tree,
    ask_for_group,
    held_of,
    pick_child,
    power_of_two,
    put,
    sum_children,
    unpack,
)

OK, ANOTHER_SUM = -1, -2


@njit(cache=True)
def locate(tree: Tree, targets: F64, blocks: I64, rests: F64) -> int:
    """Fill blocks (n,) and rests (n,) for targets (n,); return the first bad position or OK."""
    _, _, _, tops, offsets, _, _, _ = unpack(tree)
    for i in range(targets.size):
        if not targets[i] >= 0.0:
            return i
        rests[i] = targets[i]
        blocks[i] = 0
    for level in range(offsets.size - 3, -1, -1):
        for i in range(targets.size):
            first = blocks[i] * FAN
            child, rests[i] = pick_child(tops, offsets[level] + first, rests[i])
            if child < 0:
                return i
            blocks[i] = first + child
            if level > 0:
                ask_for_group(tops, offsets[level - 1] + (first + child) * FAN)
    return OK


@njit(cache=True)
def descend(tree: Tree, blocks: I64, rests: F64, leaves: I64) -> int:
    """Fill leaves (n,) from blocks (n,), using rests (n,) up; first bad position or OK."""
    values, nodes, offsets, _, _, loaded, block_count, block_size = unpack(tree)
    across, stride = offsets[1], offsets[-1] - offsets[1]
    for i in range(blocks.size):
        block = blocks[i]
        if block < 0 or block >= block_count or not loaded[block] or not rests[i] >= 0.0:
            return i
        leaves[i] = 0
        if offsets.size > 2:
            ask_for_group(nodes, block * stride - across + offsets[offsets.size - 2])
        else:
            ask_for_item(values, block * across)
    for level in range(offsets.size - 2, 0, -1):
        for i in range(blocks.size):
            start = blocks[i] * stride - across
            first = leaves[i] * FAN
            child, rests[i] = pick_child(nodes, start + offsets[level] + first, rests[i])
            if child < 0:
                return i
            leaves[i] = first + child
            if level > 1:
                ask_for_group(nodes, start + offsets[level - 1] + (first + child) * FAN)
            else:
                ask_for_item(values, blocks[i] * across + (first + child) * FAN)
    for i in range(blocks.size):
        first = leaves[i] * FAN
        child, rests[i] = pick_child(values, blocks[i] * across + first, rests[i])
        if child < 0:
            return i
        leaves[i] = blocks[i] * block_size + first + child
    return OK


@njit(cache=True)
def find(tree: Tree, targets: F64, leaves: I64) -> int:
    """Fill leaves (n,) for targets (n,); return the first position that cannot be served or OK."""
    blocks = np.empty(targets.size, np.int64)
    rests = np.empty(targets.size, np.float64)
    bad = locate(tree, targets, blocks, rests)
    if bad == OK:
        bad = descend(tree, blocks, rests, leaves)
    return int(bad)


@njit(cache=True)
def stratify(tree: Tree, targets: F64) -> None:
    """Turn numbers (n,) in [0, 1) into targets: one in each of n equal shares of the total."""
    _, _, _, tops, offsets, _, _, _ = unpack(tree)
    total = tops[offsets[-2]]
    for i in range(targets.size):
        targets[i] = (targets[i] + i) / targets.size * total


@njit(cache=True)
def draw_stratified(tree: Tree, targets: F64, leaves: I64, values: F64) -> int:
    """Do as `stratify`; fill leaves (n,) and values (n,) for the targets.

    Returns the first position that cannot be served, such as one in a block that is not loaded, or OK.
    """
    stratify(tree, targets)
    bad = find(tree, targets, leaves)
    if bad == OK:
        bad = gather(tree, leaves, values)
    return int(bad)


@njit(cache=True)
def gather(tree: Tree, leaves: I64, values: F64) -> int:
    """Fill values (n,) with what leaves (n,) hold; first bad position or OK."""
    held, _, offsets, _, _, loaded, block_count, block_size = unpack(tree)
    across = offsets[1]
    shift = power_of_two(block_size)
    for i in range(leaves.size):
        leaf = leaves[i]
        if leaf < 0 or leaf >= block_count * block_size:
            return i
        block = leaf >> shift if shift >= 0 else leaf // block_size
        if not loaded[block]:
            return i
        values[i] = held[block * across + leaf - block * block_size]
    return OK


@njit(cache=True)
def climb(tree: Tree, changed: I64) -> None:
    """Recompute what lies above the changed roots (n,), which are used up.

    A level of at most n nodes is recomputed whole: cheaper than telling which of them changed.
    """
    _, _, _, tops, offsets, _, _, _ = unpack(tree)
    for level in range(1, offsets.size - 1):
        below = offsets[level - 1]
        here = offsets[level]
        width = (here - below) >> SHIFT
        if width <= changed.size:
            for parent in range(width):
                tops[here + parent] = sum_children(tops, below + parent * FAN)
            continue
        for i in range(changed.size):
            changed[i] >>= SHIFT
            tops[here + changed[i]] = sum_children(tops, below + changed[i] * FAN)


@njit(cache=True)
def update(tree: Tree, leaves: I64, values: F64) -> int:
    """Write values (n,) to leaves (n,), the last of equals winning, and recompute what lies above.

    Nothing is written unless all can be. A parent of two changed leaves is computed twice: at 4 ns
    that costs less than finding out. Returns the first bad position or OK.
    """
    held, nodes, offsets, tops, _, loaded, block_count, block_size = unpack(tree)
    across, stride = offsets[1], offsets[-1] - offsets[1]
    depth = offsets.size - 1
    shift = power_of_two(block_size)
    blocks = np.empty(leaves.size, np.int64)
    places = np.empty(leaves.size, np.int64)
    for i in range(leaves.size):
        leaf = leaves[i]
        known = 0 <= leaf < block_count * block_size
        if not (known and 0.0 <= values[i] <= MOST):
            return i
        block = leaf >> shift if shift >= 0 else leaf // block_size
        if not loaded[block]:
            return i
        place = leaf - block * block_size
        blocks[i] = block
        places[i] = place
        ask_for_item(held, block * across + (place >> SHIFT) * FAN)
        if depth > 1:
            ask_for_group(nodes, block * stride + (place >> SHIFT >> SHIFT) * FAN)
    for i in range(leaves.size):
        put(held, blocks[i] * across + places[i], held_of(values[i]))
    if depth == 1:
        for i in range(leaves.size):
            tops[blocks[i]] = sum_children(held, blocks[i] * across)
        climb(tree, blocks)
        return OK
    second = offsets[2] - across if depth > 2 else 0
    for i in range(leaves.size):
        parent = places[i] >> SHIFT
        put(nodes, blocks[i] * stride + parent, sum_children(held, blocks[i] * across + parent * FAN))
        places[i] = parent
        if depth > 2:
            ask_for_group(nodes, blocks[i] * stride + second + (parent >> SHIFT >> SHIFT) * FAN)
    for level in range(2, depth):
        below, here = offsets[level - 1], offsets[level]
        for i in range(leaves.size):
            start = blocks[i] * stride - across
            parent = places[i] >> SHIFT
            put(nodes, start + here + parent, sum_children(nodes, start + below + parent * FAN))
            places[i] = parent
            if level + 1 < depth:
                above = (parent >> SHIFT >> SHIFT) * FAN
                ask_for_group(nodes, start + offsets[level + 1] + above)
    top = offsets[depth - 1] - across
    for i in range(leaves.size):
        put(tops, blocks[i], sum_children(nodes, blocks[i] * stride + top))
    climb(tree, blocks)
    return OK


@njit(nogil=True, cache=True)
def write_rows(tree: Tree, block: int, first_row: int, values: F64) -> int:
    """Write values (n,), n > 0, to a block's rows in order; return the first bad position or OK."""
    held, nodes, offsets, _, _, _, _, _ = unpack(tree)
    for i in range(values.size):
        if not 0.0 <= values[i] <= MOST:
            return i
    first = block * offsets[1]
    start = block * (offsets[-1] - offsets[1]) - offsets[1]
    depth = offsets.size - 1
    for i in range(values.size):
        held[first + first_row + i] = held_of(values[i])
    if depth == 1:
        set_root(tree, block, sum_children(held, first))
        return OK
    lowest = first_row >> SHIFT
    highest = (first_row + values.size - 1) >> SHIFT
    for parent in range(lowest, highest + 1):
        nodes[start + offsets[1] + parent] = sum_children(held, first + parent * FAN)
    for level in range(2, depth):
        lowest >>= SHIFT
        highest >>= SHIFT
        for parent in range(lowest, highest + 1):
            total = sum_children(nodes, start + offsets[level - 1] + parent * FAN)
            nodes[start + offsets[level] + parent] = total
    set_root(tree, block, sum_children(nodes, start + offsets[depth - 1]))
    return OK


@njit(nogil=True, cache=True)
def load_rows(tree: Tree, block: int, values: F64, tolerance: float) -> tuple[float, int]:
    """Write values to all of a block's rows and call it loaded, in one call that no interrupt divides.

    Returns their sum, and the first bad position, OK, or ANOTHER_SUM: it differs from the block's root by more than so
    much of the larger one; then the root stays, and the block is not loaded.
    """
    _, _, _, tops, _, loaded, _, _ = unpack(tree)
    before = tops[block]
    bad = write_rows(tree, block, 0, values)
    if bad != OK:
        return before, bad
    after = tops[block]
    if abs(after - before) > tolerance * max(after, before):
        set_root(tree, block, before)
        loaded[block] = False
        return after, ANOTHER_SUM
    loaded[block] = True
    return after, OK


@njit(nogil=True, cache=True)
def set_root(tree: Tree, block: int, total: float) -> None:
    """Set one block's root and recompute the path above it."""
    _, _, _, tops, offsets, _, _, _ = unpack(tree)
    tops[block] = total
    for level in range(1, offsets.size - 1):
        block >>= SHIFT
        tops[offsets[level] + block] = sum_children(tops, offsets[level - 1] + block * FAN)


@njit(nogil=True, cache=True)
def recompute_tops(tree: Tree) -> None:
    """Recompute every level above the block roots."""
    _, _, _, tops, offsets, _, _, _ = unpack(tree)
    for level in range(1, offsets.size - 1):
        for parent in range((offsets[level] - offsets[level - 1]) >> SHIFT):
            total = sum_children(tops, offsets[level - 1] + parent * FAN)
            tops[offsets[level] + parent] = total


@njit(nogil=True, cache=True)
def put_totals(tree: Tree, totals: F64, first: I64, counts: I64) -> int:
    """Set the roots of runs of blocks, first (n,) and counts (n,), to totals (k,).

    Those blocks are not loaded from now on. Returns the first bad position or OK.
    """
    for i in range(totals.size):
        if not 0.0 <= totals[i] < np.inf:
            return i
    _, _, _, tops, _, loaded, _, _ = unpack(tree)
    at = 0
    for run in range(first.size):
        for block in range(first[run], first[run] + counts[run]):
            tops[block] = totals[at] + 0.0
            loaded[block] = False
            at += 1
    recompute_tops(tree)
    return OK


@njit(nogil=True, cache=True)
def first_invalid(tree: Tree) -> tuple[int, int, int]:
    """Return (block, level, place) of the first parent that is not its children's sum.

    Block -1 stands for the levels above the block roots; level -1 says that every parent is right.
    """
    leaves, nodes, offsets, tops, top_offsets, loaded, block_count, _ = unpack(tree)
    depth = offsets.size - 1
    for block in range(block_count):
        if not loaded[block]:
            continue
        start = block * (offsets[depth] - offsets[1]) - offsets[1]
        for level in range(1, depth + 1):
            for parent in range((offsets[level] - offsets[level - 1]) >> SHIFT):
                if level == 1:
                    total = sum_children(leaves, block * offsets[1] + parent * FAN)
                else:
                    total = sum_children(nodes, start + offsets[level - 1] + parent * FAN)
                held = tops[block]
                if level < depth:
                    held = nodes[start + offsets[level] + parent]
                if held != total:
                    return block, level, parent
    for level in range(1, top_offsets.size - 1):
        for parent in range((top_offsets[level] - top_offsets[level - 1]) >> SHIFT):
            total = sum_children(tops, top_offsets[level - 1] + parent * FAN)
            if tops[top_offsets[level] + parent] != total:
                return -1, level, parent
    return 0, -1, 0


@njit(nogil=True, cache=True)
def find_freely(tree: Tree, targets: F64, leaves: I64) -> int:
    """Do as `find`, without the GIL."""
    return int(find(tree, targets, leaves))


@njit(nogil=True, cache=True)
def update_freely(tree: Tree, leaves: I64, values: F64) -> int:
    """Do as `update`, without the GIL."""
    return int(update(tree, leaves, values))
