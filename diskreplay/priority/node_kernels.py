"""Lays a sum tree out in memory, and does what its loops do at one node.

A tree is passed as an array of i64, which the kernels turn into

    leaves  float32, block after block, o_1 for each of them; what a leaf holds is rounded once, on its way in.
    nodes   block after block; by node_offsets (0, o_1, .., o_k) the level above a block's leaves lies at
            [o_1, o_2), the one above it at [o_2, o_3), and so on; the block itself begins o_1 earlier, where its
            leaves would be. A block's root is not in here.
    tops    by top_offsets the block roots at [0, o_1), then the levels above them, up to the total.
    loaded  (blocks,): False where only the root of the block is known.

Every group of 16 siblings is stored side by side, on two cache lines, leaves on one, padded with zeros. So a
parent is the sum of exactly 16 numbers in one fixed order, halves first, which the processor adds
several at a time: the same bits, whatever call computed it, on whatever machine.

Numbers and not a tuple of arrays: to unpack six arrays takes a call half a microsecond, and loops that hand arrays
around count their references, two locked instructions each time, which was a third of a draw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from diskreplay.addresses import ask_for_item, pointer

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]
Tree = I64

FAN = 16
SHIFT = 4  # log2(FAN)
MOST, LEAST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)


def describe(
    leaves: F32, nodes: F64, node_offsets: I64, tops: F64, top_offsets: I64, loaded: Flags, blocks: int, block_size: int
) -> Tree:
    """Return the array that stands for a tree; it holds addresses, so the caller keeps what they belong to."""
    arrays = (leaves, nodes, node_offsets, tops, top_offsets)
    parts = [number for array in arrays for number in (array.ctypes.data, array.size)]
    return np.array([*parts, loaded.ctypes.data, blocks, block_size], np.int64)


@njit(nogil=True, inline="always")
def unpack(tree: Tree) -> tuple[F32, F64, I64, F64, I64, Flags, int, int]:
    """Return leaves, nodes, node_offsets, tops, top_offsets, loaded, the number of blocks and their size."""
    return (
        carray(pointer(tree[0]), (tree[1],), np.float32),
        carray(pointer(tree[2]), (tree[3],), np.float64),
        carray(pointer(tree[4]), (tree[5],), np.int64),
        carray(pointer(tree[6]), (tree[7],), np.float64),
        carray(pointer(tree[8]), (tree[9],), np.int64),
        carray(pointer(tree[10]), (tree[11],), np.bool_),
        tree[11],
        tree[12],
    )


@njit(nogil=True, inline="always")
def ask_for_group(nodes: F64, first: int) -> None:
    """Ask for the cache lines of a group of nodes."""
    ask_for_item(nodes, first)
    ask_for_item(nodes, first + FAN // 2)


@intrinsic
def sum_children(_context: Any, nodes: Any, first: Any) -> tuple[Any, Any]:
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


@intrinsic
def item(_context: Any, array: Any, index: Any) -> tuple[Any, Any]:
    """Return array[index] as a f64; an index below 0 does not count from the end, which takes a comparison each."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        value = builder.load(builder.gep(data, [arguments[1]]))
        return value if signature.args[0].dtype == types.float64 else builder.fpext(value, ir.DoubleType())

    return types.float64(array, index), generate


@intrinsic
def put(_context: Any, array: Any, index: Any, value: Any) -> tuple[Any, Any]:
    """Set array[index], which is of the value's type, to the value; see `item`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.store(arguments[2], builder.gep(data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(array, index, value), generate


@njit(nogil=True, inline="always")
def held_of(value: float) -> Any:
    """Return what a leaf holds of a value: above 0 it stays above 0, and 0 is never -0."""
    return np.float32(max(value, LEAST)) if value > 0.0 else np.float32(0.0)


@njit(nogil=True, inline="always")
def pick_child(nodes: F64, first: int, target: float) -> tuple[int, float]:
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
        running = running + item(nodes, start) + item(nodes, start + 1)
        running = running + item(nodes, start + 2) + item(nodes, start + 3)
        passed = running <= target
        chosen += 4 * passed
        before = running if passed else before
    running = before
    start = first + chosen
    for child in range(4):
        running += item(nodes, start + child)
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
def power_of_two(number: int) -> int:
    """Return log2 of the number, or -1; dividing by it with a shift is several times as fast."""
    shift = 0
    while (1 << shift) < number:
        shift += 1
    return shift if (1 << shift) == number else -1
