"""Owns the sum tree: leaf values in blocks, their exact sums, and the leaf that holds a target.

Refuses to know what a leaf stands for: steps, exponents and storage are its callers' business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.priority import kernels
from diskreplay.priority.node_kernels import FAN, MOST, describe
from diskreplay.priority.pages import allow_huge_pages, zeros

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

BATCH = 4096  # up to so many leaves at a time a kernel keeps the GIL
_F64, _I64 = np.dtype(np.float64), np.dtype(np.int64)


class SumTree:
    """Keep leaves >= 0, draw them in proportion to their values; 16 children to a node.

    Leaf `block * block_size + row` holds a float32 (Schaul et al. 2016, arXiv:1511.05952, appendix
    B.2.1): what is given is rounded, but never to 0, or to a number below the smallest normal one;
    sums are float64. Parents are recomputed, never incremented: no drift, and `check_valid` compares with
    `==`. A block may be *not loaded*: only its total is known (`set_block_total`). Targets can be
    located in it, and the caller loads it with `set_block` before it calls `find_in_blocks`.

    Memory is 4.6 bytes per leaf of the blocks written; blocks never written, or not loaded, cost
    address space. One tree is not for two threads at once, but its calls release the GIL.

    Args:
        block_size: Leaves per block; a power of two is fastest.
        blocks: Blocks at the start; all loaded, every leaf 0.

    >>> tree = SumTree(4, 2)
    >>> tree.update([1, 6], [1.0, 3.0])
    >>> tree.total, tree.find([0.5, 1.0, 3.9]).tolist()
    (4.0, [1, 6, 6])
    """

    def __init__(self, block_size: int, blocks: int = 1) -> None:
        if block_size < 1 or blocks < 1:
            raise ValueError(f"block_size and blocks must be positive, not {block_size}, {blocks}.")
        self._block_size = int(block_size)
        self._blocks = 0
        self._node_offsets = _offsets(self._block_size, until=FAN)
        self._leaves = np.zeros(0, np.float32)
        self._nodes = np.zeros(0)
        self._top_offsets = np.zeros(2, np.int64)
        self._tops = np.zeros(0)
        self._loaded = np.zeros(0, np.bool_)
        self._dense = True
        self.grow(blocks)

    @property
    def block_size(self) -> int:
        """Leaves per block."""
        return self._block_size

    @property
    def blocks(self) -> int:
        """Blocks in the tree, loaded or not."""
        return self._blocks

    @property
    def total(self) -> float:
        """Sum of all leaves."""
        return float(self._tops[self._top_offsets[-2]])

    def __len__(self) -> int:
        """Return the number of leaves."""
        return self._blocks * self._block_size

    def block_totals(self, blocks: ArrayLike | None = None) -> NDArray[np.float64]:
        """Return a copy of the block totals, (blocks,), or of some of them, in the shape of `blocks`."""
        totals = self._tops[: self._blocks]
        return totals.copy() if blocks is None else totals[np.asarray(blocks, np.int64)]

    def is_loaded(self, blocks: ArrayLike) -> NDArray[np.bool_]:
        """Return whether the leaves of each block are known, in the shape of `blocks`."""
        return self._loaded[: self._blocks][np.asarray(blocks, np.int64)]

    @property
    def loaded(self) -> NDArray[np.bool_]:
        """Flags of the blocks, (blocks,) or longer, True where their leaves are known; not to be written to."""
        return self._loaded

    @property
    def parts(self) -> tuple[tuple[NDArray[Any], int], ...]:
        """Return the arrays whose pages are touched where blocks are, as `HugePages.note` takes them."""
        across, stride = self._strides
        return (self._leaves, across), (self._nodes, stride)

    @property
    def dense(self) -> bool:
        """Whether most blocks are expected to be loaded: then huge pages are worth their memory."""
        return self._dense

    @dense.setter
    def dense(self, dense: bool) -> None:
        if dense != self._dense:
            self._dense = dense
            allow_huge_pages(self._leaves, allowed=dense)
            allow_huge_pages(self._nodes, allowed=dense)

    def grow(self, blocks: int) -> None:
        """Extend the tree to at least `blocks` blocks; new ones are loaded, every leaf 0.

        Room at least doubles, so growing block by block copies each leaf a few times at most.
        """
        moving = blocks > self._loaded.size
        if moving:
            self._reserve(max(int(blocks), 2 * self._loaded.size, 2))
        self._blocks = max(self._blocks, int(blocks))
        self._tree = describe(
            self._leaves,
            self._nodes,
            self._node_offsets,
            self._tops,
            self._top_offsets,
            self._loaded,
            self._blocks,
            self._block_size,
        )
        if moving:
            kernels.recompute_tops(self._tree)

    def update(self, leaves: ArrayLike, values: ArrayLike) -> None:
        """Set leaves (n,) to values (n,); of a leaf given twice the last value wins.

        Raises:
            ValueError: If a value is negative or no finite float32, or a leaf is out of range or in a
                block that is not loaded: names the first such position; nothing was written.
        """
        at, new = _integers(leaves), _floats(values)
        if at.shape != new.shape:
            raise ValueError(f"Expected leaves (n,) and values (n,), not {at.shape}, {new.shape}.")
        bad = (kernels.update if at.size <= BATCH else kernels.update_freely)(self._tree, at, new)
        if bad != kernels.OK:
            self._check_leaf(at, bad)
            raise _bad_value(new, bad)

    def update_range(self, block: int, first_row: int, values: ArrayLike) -> None:
        """Set consecutive rows of one block to values (n,): the fast way to enter new steps.

        Raises:
            ValueError: If the rows do not fit the block, it is not loaded, or a value is negative
                or not finite; nothing was written.
        """
        self._check_block(block)
        if not self._loaded[block]:
            raise ValueError(f"Block {block} is not loaded; call set_block first.")
        self._write(block, first_row, _floats(values))

    def set_block(self, block: int, values: ArrayLike, *, tolerance: float = np.inf) -> None:
        """Replace a block's leaves by values (n,), n <= block_size, then zeros, and call it loaded.

        Args:
            block: Which.
            values: Of its leaves.
            tolerance: By how much of the larger one the sum may differ from the block's total so far.

        Raises:
            ValueError: If the block is out of range, there are too many values, or one is negative
                or not finite; nothing was written.
            ArithmeticError: If the sum is another; the block keeps its total, and is not loaded.
        """
        self._check_block(block)
        new = _floats(values)
        if new.shape != (self._block_size,):
            self._check_rows(0, new)
            new = np.concatenate([new, np.zeros(self._block_size - new.size)])
        before = self._tops[block]
        after, bad = kernels.load_rows(self._tree, block, new, tolerance)
        if bad >= 0:
            raise _bad_value(new, bad)
        if bad != kernels.OK:
            raise ArithmeticError(f"The leaves of block {block} sum to {after}, not to {before}.")

    def clear_block(self, block: int) -> None:
        """Set every leaf of a block to 0, and call it loaded."""
        self._check_block(block)
        across, stride = self._strides
        self._leaves[block * across : (block + 1) * across] = 0.0
        self._nodes[block * stride : (block + 1) * stride] = 0.0
        kernels.set_root(self._tree, block, 0.0)
        self._loaded[block] = True

    def set_block_total(self, block: int, total: float) -> None:
        """Forget a block's leaves and keep their sum: the block is not loaded.

        Raises:
            ValueError: If the block is out of range, or the total is negative or not finite.
        """
        self._check_block(block)
        if not 0.0 <= total < np.inf:
            raise ValueError(f"The total of block {block} is {total}, not finite and >= 0.")
        kernels.set_root(self._tree, block, float(total) + 0.0)
        self._loaded[block] = False

    def set_block_totals(self, totals: ArrayLike, first: ArrayLike = (0,), counts: ArrayLike = ()) -> None:
        """Do as `set_block_total` for runs of blocks at once: how a tree is opened.

        Args:
            totals: (k,), run after run.
            first: (n,) first block of each run.
            counts: (n,) blocks of each; none: one run takes all.

        Raises:
            ValueError: If the runs do not have k blocks, one is out of range, or a total is negative or not finite;
                nothing was written.
        """
        new, start, length = _floats(totals), _integers(first), _integers(counts)
        if not length.size:
            length = np.array([new.size])
        if start.shape != length.shape or length.min() < 0 or length.sum() != new.size:
            raise ValueError(f"Runs of {int(length.sum())} blocks in all do not fit totals {new.shape}.")
        if start.min() < 0 or (start + length).max() > self._blocks:
            raise ValueError(f"A block is out of range: there are {self._blocks} blocks.")
        bad = kernels.put_totals(self._tree, new, start, length)
        if bad != kernels.OK:
            raise _bad_value(new, bad)

    def get(self, leaves: ArrayLike) -> NDArray[np.float64]:
        """Return the values (n,) of leaves (n,).

        Raises:
            ValueError: If a leaf is out of range or in a block that is not loaded.
        """
        at = _integers(leaves)
        values = np.empty(at.shape)
        bad = kernels.gather(self._tree, at, values)
        if bad != kernels.OK:
            self._check_leaf(at, bad)
        return values

    def find(self, targets: ArrayLike) -> NDArray[np.int64]:
        """Return the leaves (n,) that hold targets (n,), each in [0, total).

        A leaf holds the targets from the sum of all leaves before it up to that plus its value, so
        a leaf of 0 holds none. A target not below the total belongs to the last leaf above 0.

        Raises:
            ValueError: If a target is negative or NaN, no leaf is above 0, or a target lies in a
                block that is not loaded.
        """
        wanted = _floats(targets)
        leaves = np.empty(wanted.shape, np.int64)
        find = kernels.find if wanted.size <= BATCH else kernels.find_freely
        if find(self._tree, wanted, leaves) != kernels.OK:
            return self.find_in_blocks(*self.locate_blocks(wanted))  # it raises, and says why
        return leaves

    def locate_blocks(self, targets: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the blocks (n,) that hold targets (n,), and the rest of each target in its block.

        Raises:
            ValueError: If a target is negative or NaN, or no leaf is above 0.
        """
        wanted = _floats(targets)
        blocks = np.empty(wanted.shape, np.int64)
        residual = np.empty(wanted.shape)
        bad = kernels.locate(self._tree, wanted, blocks, residual)
        if bad != kernels.OK and not wanted[bad] >= 0.0:
            raise ValueError(f"Target {wanted[bad]} at position {bad} is not >= 0.")
        if bad != kernels.OK:
            raise ValueError("No leaf is above 0, so none can be found.")
        return blocks, residual

    def find_in_blocks(self, blocks: ArrayLike, residual: ArrayLike) -> NDArray[np.int64]:
        """Return the leaves (n,) for what `locate_blocks` returned, once its blocks are loaded.

        Raises:
            ValueError: If a block is out of range, is not loaded, or has no leaf above 0.
        """
        where = _integers(blocks)
        rests = _floats(residual).copy()
        if where.shape != rests.shape:
            raise ValueError(f"Expected blocks (n,) and residual (n,), not {where.shape}, {rests.shape}.")
        leaves = np.empty(where.shape, np.int64)
        bad = kernels.descend(self._tree, where, rests, leaves)
        if bad != kernels.OK:
            self._check_leaf(where * self._block_size, bad)
            raise ValueError(f"Block {where[bad]} at position {bad} has no leaf for its residual.")
        return leaves

    def stratified_targets(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return n ascending targets, one uniform in each [i * total / n, (i + 1) * total / n)."""
        targets = rng.random(n)
        self._total_above_zero()
        kernels.stratify(self._tree, targets)
        return targets

    def uniform_targets(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return n independent targets, uniform in [0, total)."""
        targets = rng.random(n)
        targets *= self._total_above_zero()
        return targets

    def draw_loaded(
        self, n: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], tuple[NDArray[np.int64], NDArray[np.float64]] | None]:
        """Do as `stratified_targets`, `find` and `get`, at once; without a result if a target's block is not loaded.

        Returns:
            The targets (n,), and leaves (n,) and their values (n,).
        """
        targets, leaves, values = rng.random(n), np.empty(n, np.int64), np.empty(n)
        found = kernels.draw_stratified(self._tree, targets, leaves, values) == kernels.OK
        return targets, (leaves, values) if found else None

    def sample_stratified(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw n leaves, one from each of n equal shares of the total; ascending."""
        return self.find(self.stratified_targets(n, rng))

    def sample(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw n leaves independently, with replacement."""
        return self.find(self.uniform_targets(n, rng))

    def check_valid(self) -> tuple[bool, str]:
        """Return (True, ""), or (False, which parent is not exactly the sum of its children)."""
        block, level, place = kernels.first_invalid(self._tree)
        if level < 0:
            return True, ""
        where = f"in block {block}" if block >= 0 else "above the blocks"
        return False, f"Node {place} of level {level} {where} is not the sum of its children."

    def _reserve(self, capacity: int) -> None:
        """Move to arrays with room for `capacity` blocks, copying only blocks that hold leaves."""
        totals, loaded = self.block_totals(), self._loaded[: self._blocks]
        holding = np.flatnonzero(loaded & (totals > 0.0)).tolist()
        across, stride = self._strides
        self._leaves = self._moved(self._leaves, across, capacity, holding)
        self._nodes = self._moved(self._nodes, stride, capacity, holding)
        self._loaded = np.ones(capacity, np.bool_)
        self._loaded[: self._blocks] = loaded
        self._top_offsets = _offsets(capacity, until=1)
        self._tops = zeros(int(self._top_offsets[-1]), np.dtype(np.float64), huge=True)
        self._tops[: self._blocks] = totals

    @property
    def _strides(self) -> tuple[int, int]:
        """Return how many leaves, and how many nodes above them, a block takes."""
        across = int(self._node_offsets[1])
        return across, int(self._node_offsets[-1]) - across

    def _moved(self, old: NDArray[Any], stride: int, capacity: int, blocks: list[int]) -> NDArray[Any]:
        room = zeros(capacity * stride, old.dtype, huge=self._dense)
        for block in blocks:
            part = slice(block * stride, (block + 1) * stride)
            room[part] = old[part]
        return room

    def _write(self, block: int, first_row: int, values: NDArray[np.float64]) -> None:
        self._check_rows(first_row, values)
        if values.size:
            bad = kernels.write_rows(self._tree, block, first_row, values)
            if bad != kernels.OK:
                raise _bad_value(values, bad)

    def _total_above_zero(self) -> float:
        total = self.total
        if not 0.0 < total < np.inf:
            raise ValueError(f"Nothing can be drawn: the leaves sum to {total}.")
        return total

    def _check_block(self, block: int) -> None:
        if not 0 <= block < self._blocks:
            raise ValueError(f"Block {block} is out of range: there are {self._blocks} blocks.")

    def _check_rows(self, first_row: int, values: NDArray[np.float64]) -> None:
        if not 0 <= first_row <= self._block_size - values.size:
            raise ValueError(
                f"Values {values.shape} from row {first_row} on do not fit a block of {self._block_size} leaves."
            )

    def _check_leaf(self, leaves: NDArray[np.int64], position: int) -> None:
        leaf = int(leaves[position])
        if not 0 <= leaf < len(self):
            raise ValueError(f"Leaf {leaf} at position {position} is out of range [0, {len(self)}).")
        block = leaf // self._block_size
        if not self._loaded[block]:
            raise ValueError(
                f"Leaf {leaf} at position {position} is in block {block}, which is not loaded; call set_block first."
            )


def _offsets(size: int, *, until: int) -> NDArray[np.int64]:
    """Lay levels of size, ceil(size / 16), .. `until` nodes side by side, each a multiple of 16."""
    offsets = [0, -(-size // FAN) * FAN]
    while size > until:
        size = -(-size // FAN)
        offsets.append(offsets[-1] + -(-size // FAN) * FAN)
    return np.array(offsets, np.int64)


def _floats(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values)
    return array if _is_plain(array, _F64) else _plain(np.ascontiguousarray(array, np.float64))


def _integers(values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if _is_plain(array, _I64):
        return array
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"Leaves and blocks are integers, not {array.dtype}.")
    return _plain(np.ascontiguousarray(array, np.int64))


def _is_plain(array: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Return whether the kernels know the array as it is; a dtype that is equal and another object is looked into."""
    return array.dtype is dtype and array.ndim == 1 and array.flags.carray


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array as the kernels know it: another kind would be compiled for anew."""
    if array.ndim != 1:
        raise ValueError(f"Expected an array of one axis, not of shape {array.shape}.")
    return array if array.flags.writeable else array.copy()


def _bad_value(values: NDArray[np.float64], position: int) -> ValueError:
    value = values[position]
    if MOST < value < np.inf:
        return ValueError(f"Value {value} at position {position} is more than a leaf can hold, {MOST}.")
    return ValueError(f"Value {value} at position {position} is not finite and >= 0.")
