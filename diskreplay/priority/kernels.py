"""Owns the sum tree's compiled loops over its arrays; what is wrong they answer with a position.

A tree is passed as the tuple (leaves, nodes, node_offsets, tops, top_offsets, loaded, blocks, block_size):

    leaves  float32, block after block, o_1 for each of them; what a leaf holds is rounded once, on its way in.
    nodes   block after block; by node_offsets (0, o_1, .., o_k) the level above a block's leaves lies at
            [o_1, o_2), the one above it at [o_2, o_3), and so on; the block itself begins o_1 earlier, where its
            leaves would be. A block's root is not in here.
    tops    by top_offsets the block roots at [0, o_1), then the levels above them, up to the total.
    loaded  (blocks,) or longer: False where only the root of the block is known.

Every group of 16 siblings is stored side by side, on two cache lines, leaves on one, padded with zeros. So a
parent is the sum of exactly 16 numbers in one fixed order, halves first, which the processor adds
several at a time: the same bits, whatever call computed it, on whatever machine.

All targets or changed leaves pass one level before any goes to the next, and each asks early for
the cache lines it needs there, so the waits overlap: at 10^8 leaves `find` takes a third as long.
Kernels of a batch keep the GIL, for a thread that gives it up waits far longer than they take; the
others, and the twins for large batches (`*_freely`), release it. Keeping two threads from one tree
is their caller's business.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]
Tree = tuple[F32, F64, I64, F64, I64, Flags, int, int]

FAN = 16
SHIFT = 4  # log2(FAN)
OK = -1
MOST, LEAST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)


@intrinsic
def _prefetch(_context: Any, array: Any, index: Any) -> tuple[Any, Any]:
    """Ask for the cache line of array[index] without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        shape = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [address.type], shape)
        builder.call(prefetch, [address, number(0), number(3), number(1)])  # read, keep, data
        return context.get_dummy_value()

    return types.void(array, index), generate


@njit(nogil=True, inline="always")
def _prefetch_group(nodes: F64, first: int) -> None:
    _prefetch(nodes, first)
    _prefetch(nodes, first + FAN // 2)


@intrinsic
def _sum_children(_context: Any, nodes: Any, first: Any) -> tuple[Any, Any]:
    """Return the sum of nodes, or leaves, [first : first + FAN]: halves are added until one number is left."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        single = signature.args[0].dtype == types.float32
        vector = ir.VectorType(ir.FloatType() if single else ir.DoubleType(), FAN)
        values = builder.load(builder.bitcast(builder.gep(data, [arguments[1]]), vector.as_pointer()))
        values.align = 4 if single else 8
        if single:
            values = builder.fpext(values, ir.VectorType(ir.DoubleType(), FAN))
        width = FAN
        while width > 1:
            width //= 2
            numbers = ir.VectorType(ir.IntType(32), width)
            low, high = (
                builder.shuffle_vector(values, values, ir.Constant(numbers, list(range(start, start + width))))
                for start in (0, width)
            )
            values = builder.fadd(low, high)
        return builder.extract_element(values, ir.Constant(ir.IntType(32), 0))

    return types.float64(nodes, first), generate


@njit(nogil=True, inline="always")
def _held(value: float) -> Any:
    """Return what a leaf holds of a value: above 0 it stays above 0, and 0 is never -0."""
    return np.float32(max(value, LEAST)) if value > 0.0 else np.float32(0.0)


@njit(nogil=True, inline="always")
def _pick_child(nodes: F64, first: int, target: float) -> tuple[int, float]:
    """Return the child whose share holds the target, and the target's rest in it; child -1 if none.

    The running sum is in index order, so the child that lifts it above the target made it grow: never
    a zero. A rest that passes all 16, since rounding lifted it or the parent, which was summed in
    another order, belongs to the last child above zero. There is no branch to mispredict: first whole
    fours are skipped, then single children.
    """
    running = 0.0
    before = 0.0
    chosen = 0
    for four in range(3):
        start = first + 4 * four
        running = running + nodes[start] + nodes[start + 1] + nodes[start + 2] + nodes[start + 3]
        passed = running <= target
        chosen += 4 * passed
        before = running if passed else before
    running = before
    start = first + chosen
    for child in range(4):
        running += nodes[start + child]
        passed = running <= target
        chosen += passed
        before = running if passed else before
    if chosen < FAN:
        return chosen, target - before
    for child in range(FAN - 1, -1, -1):
        if nodes[first + child] > 0.0:
            return child, np.inf
    return -1, target


@njit(nogil=True, inline="always")
def _power_of_two(number: int) -> int:
    """Return log2 of the number, or -1; dividing by it with a shift is several times as fast."""
    shift = 0
    while (1 << shift) < number:
        shift += 1
    return shift if (1 << shift) == number else -1


@njit(cache=True)
def locate(tree: Tree, targets: F64, blocks: I64, rests: F64) -> int:
    """Fill blocks (n,) and rests (n,) for targets (n,); return the first bad position or OK."""
    _, _, _, tops, offsets, _, _, _ = tree
    for i in range(targets.size):
        if not targets[i] >= 0.0:
            return i
        rests[i] = targets[i]
        blocks[i] = 0
    for level in range(offsets.size - 3, -1, -1):
        for i in range(targets.size):
            first = blocks[i] * FAN
            child, rests[i] = _pick_child(tops, offsets[level] + first, rests[i])
            if child < 0:
                return i
            blocks[i] = first + child
            if level > 0:
                _prefetch_group(tops, offsets[level - 1] + (first + child) * FAN)
    return OK


@njit(cache=True)
def descend(tree: Tree, blocks: I64, rests: F64, leaves: I64) -> int:
    """Fill leaves (n,) from blocks (n,), using rests (n,) up; first bad position or OK."""
    values, nodes, offsets, _, _, loaded, block_count, block_size = tree
    across, stride = offsets[1], offsets[-1] - offsets[1]
    for i in range(blocks.size):
        block = blocks[i]
        if block < 0 or block >= block_count or not loaded[block] or not rests[i] >= 0.0:
            return i
        leaves[i] = 0
        if offsets.size > 2:
            _prefetch_group(nodes, block * stride - across + offsets[offsets.size - 2])
        else:
            _prefetch(values, block * across)
    for level in range(offsets.size - 2, 0, -1):
        for i in range(blocks.size):
            start = blocks[i] * stride - across
            first = leaves[i] * FAN
            child, rests[i] = _pick_child(nodes, start + offsets[level] + first, rests[i])
            if child < 0:
                return i
            leaves[i] = first + child
            if level > 1:
                _prefetch_group(nodes, start + offsets[level - 1] + (first + child) * FAN)
            else:
                _prefetch(values, blocks[i] * across + (first + child) * FAN)
    for i in range(blocks.size):
        first = leaves[i] * FAN
        child, rests[i] = _pick_child(values, blocks[i] * across + first, rests[i])
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
    tops = tree[3]
    total = tops[tree[4][-2]]
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
    held, _, offsets, _, _, loaded, block_count, block_size = tree
    across = offsets[1]
    shift = _power_of_two(block_size)
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
    _, _, _, tops, offsets, _, _, _ = tree
    for level in range(1, offsets.size - 1):
        below = offsets[level - 1]
        here = offsets[level]
        width = (here - below) >> SHIFT
        if width <= changed.size:
            for parent in range(width):
                tops[here + parent] = _sum_children(tops, below + parent * FAN)
            continue
        for i in range(changed.size):
            changed[i] >>= SHIFT
            tops[here + changed[i]] = _sum_children(tops, below + changed[i] * FAN)


@njit(cache=True)
def update(tree: Tree, leaves: I64, values: F64) -> int:
    """Write values (n,) to leaves (n,), the last of equals winning, and recompute what lies above.

    Nothing is written unless all can be. A parent of two changed leaves is computed twice: at 4 ns
    that costs less than finding out. Returns the first bad position or OK.
    """
    held, nodes, offsets, tops, _, loaded, block_count, block_size = tree
    across, stride = offsets[1], offsets[-1] - offsets[1]
    depth = offsets.size - 1
    shift = _power_of_two(block_size)
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
        _prefetch(held, block * across + (place >> SHIFT) * FAN)
        if depth > 1:
            _prefetch_group(nodes, block * stride + (place >> SHIFT >> SHIFT) * FAN)
    for i in range(leaves.size):
        held[blocks[i] * across + places[i]] = _held(values[i])
    if depth == 1:
        for i in range(leaves.size):
            tops[blocks[i]] = _sum_children(held, blocks[i] * across)
        climb(tree, blocks)
        return OK
    for i in range(leaves.size):
        parent = places[i] >> SHIFT
        nodes[blocks[i] * stride + parent] = _sum_children(held, blocks[i] * across + parent * FAN)
        places[i] = parent
        if depth > 2:
            _prefetch_group(nodes, blocks[i] * stride - across + offsets[2] + (parent >> SHIFT >> SHIFT) * FAN)
    for level in range(2, depth):
        for i in range(leaves.size):
            start = blocks[i] * stride - across
            parent = places[i] >> SHIFT
            total = _sum_children(nodes, start + offsets[level - 1] + parent * FAN)
            nodes[start + offsets[level] + parent] = total
            places[i] = parent
            if level + 1 < depth:
                above = (parent >> SHIFT >> SHIFT) * FAN
                _prefetch_group(nodes, start + offsets[level + 1] + above)
    for i in range(leaves.size):
        tops[blocks[i]] = _sum_children(nodes, blocks[i] * stride - across + offsets[depth - 1])
    climb(tree, blocks)
    return OK


@njit(nogil=True, cache=True)
def write_rows(tree: Tree, block: int, first_row: int, values: F64) -> int:
    """Write values (n,), n > 0, to a block's rows in order; return the first bad position or OK."""
    held, nodes, offsets, _, _, _, _, _ = tree
    for i in range(values.size):
        if not 0.0 <= values[i] <= MOST:
            return i
    first = block * offsets[1]
    start = block * (offsets[-1] - offsets[1]) - offsets[1]
    depth = offsets.size - 1
    for i in range(values.size):
        held[first + first_row + i] = _held(values[i])
    if depth == 1:
        set_root(tree, block, _sum_children(held, first))
        return OK
    lowest = first_row >> SHIFT
    highest = (first_row + values.size - 1) >> SHIFT
    for parent in range(lowest, highest + 1):
        nodes[start + offsets[1] + parent] = _sum_children(held, first + parent * FAN)
    for level in range(2, depth):
        lowest >>= SHIFT
        highest >>= SHIFT
        for parent in range(lowest, highest + 1):
            total = _sum_children(nodes, start + offsets[level - 1] + parent * FAN)
            nodes[start + offsets[level] + parent] = total
    set_root(tree, block, _sum_children(nodes, start + offsets[depth - 1]))
    return OK


@njit(nogil=True, cache=True)
def set_root(tree: Tree, block: int, total: float) -> None:
    """Set one block's root and recompute the path above it."""
    _, _, _, tops, offsets, _, _, _ = tree
    tops[block] = total
    for level in range(1, offsets.size - 1):
        block >>= SHIFT
        tops[offsets[level] + block] = _sum_children(tops, offsets[level - 1] + block * FAN)


@njit(nogil=True, cache=True)
def recompute_tops(tree: Tree) -> None:
    """Recompute every level above the block roots."""
    _, _, _, tops, offsets, _, _, _ = tree
    for level in range(1, offsets.size - 1):
        for parent in range((offsets[level] - offsets[level - 1]) >> SHIFT):
            total = _sum_children(tops, offsets[level - 1] + parent * FAN)
            tops[offsets[level] + parent] = total


@njit(nogil=True, cache=True)
def first_invalid(tree: Tree) -> tuple[int, int, int]:
    """Return (block, level, place) of the first parent that is not its children's sum.

    Block -1 stands for the levels above the block roots; level -1 says that every parent is right.
    """
    leaves, nodes, offsets, tops, top_offsets, loaded, block_count, _ = tree
    depth = offsets.size - 1
    for block in range(block_count):
        if not loaded[block]:
            continue
        start = block * (offsets[depth] - offsets[1]) - offsets[1]
        for level in range(1, depth + 1):
            for parent in range((offsets[level] - offsets[level - 1]) >> SHIFT):
                if level == 1:
                    total = _sum_children(leaves, block * offsets[1] + parent * FAN)
                else:
                    total = _sum_children(nodes, start + offsets[level - 1] + parent * FAN)
                held = tops[block]
                if level < depth:
                    held = nodes[start + offsets[level] + parent]
                if held != total:
                    return block, level, parent
    for level in range(1, top_offsets.size - 1):
        for parent in range((top_offsets[level] - top_offsets[level - 1]) >> SHIFT):
            total = _sum_children(tops, top_offsets[level - 1] + parent * FAN)
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
