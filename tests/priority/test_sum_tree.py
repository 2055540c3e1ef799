"""The sum tree against numpy, at its edges, and with wrong arguments."""

from __future__ import annotations

import re
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diskreplay.priority import SumTree


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(0, 5), min_size=1, max_size=400),
    block_size=st.integers(1, 70),
)
def test_find_is_searchsorted_where_sums_are_exact(values, block_size):
    """With integers nothing rounds, so the tree must agree with numpy's own cumulative sum."""
    tree = SumTree(block_size, -(-len(values) // block_size))
    tree.update(np.arange(len(values)), values)
    total = sum(values)
    targets = np.arange(0, total, 0.5)
    expected = np.searchsorted(np.cumsum(values), targets, side="right")
    assert tree.total == total
    assert tree.find(targets).tolist() == expected.tolist()


def test_large_tree_keeps_every_leaf_in_reach():
    """Six levels of nodes: the targets at a leaf's two ends find that leaf."""
    rng = np.random.default_rng(1)
    tree = SumTree(4096, 70)
    for block in range(tree.blocks):
        tree.set_block(block, rng.integers(0, 9, 4096))
    values = tree.get(np.arange(len(tree)))
    ends = np.cumsum(values)
    drawn = np.flatnonzero(values)
    assert (tree.find((ends - values)[drawn]) == drawn).all()
    assert (tree.find(ends[drawn] - 0.5) == drawn).all()
    assert tree.check_valid() == (True, "")


def test_few_changes_climb_through_many_blocks():
    """Above the blocks, a short update takes its own path, node by node, to the same sums."""
    rng = np.random.default_rng(10)
    tree = SumTree(3, 5000)
    values = np.zeros(15000)
    for count in (1, 2, 20, 1, 400, 1, 15000, 3):
        leaves = rng.choice(15000, count, replace=False)
        values[leaves] = rng.integers(0, 9, count)
        tree.update(leaves, values[leaves])
        assert tree.check_valid() == (True, "")
        assert tree.total == values.sum()
        assert tree.block_totals().tolist() == values.reshape(5000, 3).sum(1).tolist()


def test_empty_tree_has_nothing_to_draw():
    """A total of 0 is an error for draws, not a leaf; no targets are no error."""
    tree = SumTree(20, 3)
    rng = np.random.default_rng(0)
    for draw in (tree.sample, tree.sample_stratified):
        with pytest.raises(ValueError, match=re.escape("the leaves sum to 0.0")):
            draw(4, rng)
    with pytest.raises(ValueError, match="No leaf is above 0"):
        tree.find([0.0])
    assert tree.find([]).tolist() == []
    assert tree.get([]).tolist() == []
    tree.update([], [])
    assert tree.total == 0.0


@pytest.mark.parametrize("leaf", [0, 15, 16, 255, 256, 511])
def test_single_leaf_takes_every_target(leaf):
    """Of one leaf above 0, targets at 0, at the total and beyond all find it."""
    tree = SumTree(256, 2)
    tree.update([leaf], [0.1])
    beyond = [0.0, np.nextafter(0.1, 0), 0.1, 1.0, np.inf]
    assert tree.find(beyond).tolist() == [leaf] * 5


def test_single_leaf_tree():
    """A block of one leaf is its own root."""
    tree = SumTree(1)
    tree.update([0], [3.5])
    assert (tree.total, tree.find([0.0, 3.4]).tolist()) == (3.5, [0, 0])


def test_denormal_leaves_are_drawn():
    """The smallest numbers above 0 count as above 0: as the smallest that a leaf holds."""
    tree, least = SumTree(40, 2), 2.0**-126
    tree.update([3, 45], [5e-324, 1e-40])
    assert tree.total == 2 * least
    assert tree.find([0.0, least]).tolist() == [3, 45]


def test_huge_range_never_finds_zero():
    """Beside 1e38 a leaf of 1e-38 vanishes, and no leaf of 0 takes its place."""
    rng = np.random.default_rng(7)
    values = (10.0 ** rng.uniform(-37, 38, 1000)).astype(np.float32).astype(np.float64)
    values[rng.random(1000) < 0.5] = 0.0
    tree = SumTree(100, 10)
    tree.update(np.arange(1000), values)
    edges = np.cumsum(values)
    targets = np.concatenate([edges, np.nextafter(edges, 0), rng.random(1000) * tree.total])
    assert (values[tree.find(targets)] > 0.0).all()
    tree.update([int(values.argmax())], [0.0])
    assert tree.check_valid() == (True, "")


def test_zeroing_leaves_no_residue():
    """After any history of values, all leaves at 0 sum to 0, exactly."""
    rng = np.random.default_rng(8)
    tree = SumTree(64, 4)
    for _ in range(300):
        tree.update(rng.integers(0, 256, 40), rng.pareto(0.5, 40))
    tree.update(np.arange(256), np.zeros(256))
    assert tree.total == 0.0


def test_a_value_that_no_leaf_can_hold_is_refused():
    """Leaves may be as large as float32 are."""
    tree = SumTree(4)
    tree.update([0, 1], [float(np.finfo(np.float32).max)] * 2)
    assert (tree.sample(2, np.random.default_rng(0)) < 2).all()
    with pytest.raises(ValueError, match="position 1 is more than a leaf can hold"):
        tree.update([2, 3], [1.0, 3.5e38])


def test_an_overflowing_total_is_not_drawn_from():
    """Totals of blocks that are not loaded may be as large as floats are, their sum may not."""
    tree = SumTree(4, 2)
    tree.set_block_totals([1.7e308, 1.7e308])
    with pytest.raises(ValueError, match="sum to inf"):
        tree.sample(1, np.random.default_rng(0))


def test_a_leaf_holds_a_float32():
    tree = SumTree(16)
    tree.update([3], [0.1])
    assert tree.get([3]).tolist() == [float(np.float32(0.1))]


def test_last_of_repeated_leaves_wins():
    """In one call the later value stays, and the sums know only it."""
    tree = SumTree(64, 2)
    tree.update([5, 70, 5, 70, 5], [1.0, 2.0, 3.0, 4.0, 8.0])
    assert tree.get([5, 70]).tolist() == [8.0, 4.0]
    assert tree.total == 12.0


def test_negative_zero_becomes_zero():
    """-0.0 is stored as 0.0, by each way in."""
    tree = SumTree(16, 3)
    tree.update([0], [-0.0])
    tree.update_range(1, 0, [-0.0])
    tree.set_block_total(2, -0.0)
    assert not np.signbit(tree.get([0, 16])).any()
    assert not np.signbit(tree.block_totals()).any()


@pytest.mark.parametrize("bad", [-1.0, -5e-324, np.nan, np.inf])
def test_bad_values_change_nothing(bad):
    """A value that is no weight is named with its position, and the call writes nothing."""
    tree = SumTree(16, 2)
    tree.update(np.arange(32), np.ones(32))
    named = re.escape(f"Value {bad} at position 2 is not finite and >= 0.")
    for write in (
        lambda: tree.update([1, 2, 3, 4], [9.0, 9.0, bad, bad]),
        lambda: tree.update_range(1, 3, [9.0, 9.0, bad]),
        lambda: tree.set_block(0, [9.0, 9.0, bad]),
        lambda: SumTree(2, 3).set_block_totals([9.0, 9.0, bad]),
    ):
        with pytest.raises(ValueError, match=named):
            write()
    with pytest.raises(ValueError, match="total of block 1"):
        tree.set_block_total(1, bad)
    assert (tree.total, tree.check_valid()) == (32.0, (True, ""))


@pytest.mark.parametrize("leaf", [-1, 32, 2**40])
def test_leaves_out_of_range(leaf):
    """A leaf outside the tree is named with its position, also inside the room kept for growth."""
    tree = SumTree(16)
    tree.grow(2)
    tree.update([0], [1.0])
    named = re.escape(f"Leaf {leaf} at position 1 is out of range [0, 32).")
    for call in (lambda: tree.update([0, leaf], [5.0, 5.0]), lambda: tree.get([0, leaf])):
        with pytest.raises(ValueError, match=named):
            call()
    assert tree.total == 1.0


def test_wrong_arguments():
    """Each wrong shape, type, block, row or target is refused with what was expected."""
    tree = SumTree(16, 2)
    tree.update([0], [1.0])
    cases = [
        (lambda: SumTree(0), ValueError, "must be positive"),
        (lambda: SumTree(4, 0), ValueError, "must be positive"),
        (lambda: tree.update([0, 1], [1.0]), ValueError, "leaves (n,) and values (n,)"),
        (lambda: tree.update([[0]], [[1.0]]), ValueError, "one axis"),
        (lambda: tree.update([0.5], [1.0]), TypeError, "integers, not float64"),
        (lambda: tree.update_range(2, 0, [1.0]), ValueError, "Block 2 is out of range"),
        (lambda: tree.update_range(0, 15, [1.0, 1.0]), ValueError, "do not fit a block"),
        (lambda: tree.update_range(0, -1, [1.0]), ValueError, "do not fit a block"),
        (lambda: tree.set_block(0, np.ones(17)), ValueError, "do not fit a block"),
        (lambda: tree.set_block(-1, []), ValueError, "Block -1 is out of range"),
        (lambda: tree.clear_block(2), ValueError, "Block 2 is out of range"),
        (lambda: tree.set_block_total(2, 1.0), ValueError, "Block 2 is out of range"),
        (lambda: tree.set_block_totals(np.ones(3)), ValueError, "there are 2 blocks"),
        (lambda: tree.set_block_totals(np.ones(1), [2], [1]), ValueError, "block is out of range"),
        (lambda: tree.set_block_totals(np.ones(1), [-1], [1]), ValueError, "block is out of range"),
        (lambda: tree.set_block_totals(np.ones(2), [0, 1], [3, -1]), ValueError, "Runs of 2 blocks in all do not fit"),
        (lambda: tree.set_block_totals(np.ones(1), [0, 1], [1]), ValueError, "Runs of 1 blocks in all do not fit"),
        (lambda: tree.set_block_totals(np.ones(3), [0], [2]), ValueError, "do not fit totals (3,)"),
        (lambda: tree.set_block_totals(np.ones((1, 1))), ValueError, "one axis"),
        (lambda: tree.find([0.5, -0.1]), ValueError, "Target -0.1 at position 1"),
        (lambda: tree.find([np.nan]), ValueError, "Target nan at position 0"),
        (lambda: tree.find_in_blocks([0], [0.1, 0.2]), ValueError, "blocks (n,) and residual"),
        (lambda: tree.find_in_blocks([2], [0.1]), ValueError, "out of range"),
        (lambda: tree.find_in_blocks([1], [0.1]), ValueError, "has no leaf for its residual"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=re.escape(message)):
            call()
    assert (tree.total, tree.check_valid()) == (1.0, (True, ""))


def test_blocks_load_between_locate_and_find():
    """A tree opened from block totals alone draws what the whole tree draws, loading on demand."""
    rng = np.random.default_rng(9)
    values = rng.random((50, 32))
    whole, lazy = SumTree(32, 50), SumTree(32, 50)
    for block in range(50):
        whole.set_block(block, values[block])
    lazy.set_block_totals(whole.block_totals())
    assert lazy.total == whole.total
    targets = whole.stratified_targets(20, rng)
    blocks, residual = lazy.locate_blocks(targets)
    needed = np.unique(blocks)
    assert not lazy.is_loaded(needed).any()
    with pytest.raises(ValueError, match="not loaded"):
        lazy.update([int(needed[0]) * 32], [1.0])
    for block in needed:
        lazy.set_block(int(block), values[block])
    assert lazy.find_in_blocks(blocks, residual).tolist() == whole.find(targets).tolist()
    assert lazy.total == whole.total
    assert not lazy.is_loaded(range(50)).all()


def test_inputs_of_any_layout_stay_untouched():
    """Read-only, strided, int32 and big-endian inputs work, and none is written to."""
    tree = SumTree(16, 4)
    leaves = np.arange(0, 64, 2, dtype=np.int32)[::-1]
    values = np.arange(64, dtype=">f8")[::2]
    values.flags.writeable = False
    tree.update(leaves, values)
    assert tree.get(leaves).tolist() == values.tolist()
    targets = np.linspace(0, tree.total - 1, 9)
    targets.flags.writeable = False
    blocks, residual = tree.locate_blocks(targets)
    kept = residual.copy()
    assert tree.find_in_blocks(blocks, residual).tolist() == tree.find(targets).tolist()
    assert residual.tolist() == kept.tolist()
    totals = tree.block_totals()
    totals[:] = 0.0
    assert tree.total == values.sum()


@pytest.mark.parametrize(("place", "named"), [("_nodes", "in block 1"), ("_tops", "above the blocks")])
def test_check_valid_names_a_wrong_parent(place, named):
    """One bit wrong in a parent is found, wherever it is."""
    tree = SumTree(300, 20)
    tree.update(np.arange(6000), np.ones(6000))
    offsets = tree._node_offsets if place == "_nodes" else tree._top_offsets
    node = int(offsets[-1] - offsets[1]) if place == "_nodes" else int(offsets[1])
    held = getattr(tree, place)
    held[node] = np.nextafter(held[node], 0)
    valid, why = tree.check_valid()
    assert not valid
    assert named in why


def test_siblings_share_two_cache_lines():
    """Each group of 16 children starts on a multiple of 128 bytes, also after growth."""
    tree = SumTree(100, 3)
    for blocks in (3, 4, 50):
        tree.grow(blocks)
        assert tree._nodes.ctypes.data % 128 == tree._tops.ctypes.data % 128 == tree._leaves.ctypes.data % 128 == 0
        assert not (tree._node_offsets % 16).any()


def test_kernels_release_the_gil():
    """While one thread walks a large tree for many targets, another runs Python."""
    tree = SumTree(4096, 256)
    tree.set_block(7, np.ones(4096))
    targets = np.random.default_rng(0).random(2_000_000) * tree.total
    tree.find(targets[:5000])
    done = threading.Event()
    started = threading.Event()

    def walk():
        started.set()
        tree.find(targets)
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        thread = threading.Thread(target=walk)
        thread.start()
        started.wait()
        turns = 0
        while not done.is_set():
            turns += 1
            time.sleep(1e-3)
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert turns > 5


@pytest.mark.parametrize("dense", [True, False])
def test_totals_of_some_blocks(dense):
    """The others stay loaded; growing and asking for small pages changes nothing."""
    tree = SumTree(16, 40)
    tree.update([5 * 16], [2.0])
    tree.dense = dense
    tree.set_block_totals([3.0, 7.0, 1.5, -0.0], [30, 2, 31], [1, 2, 1])
    tree.grow(500)
    assert tree.block_totals([2, 3, 5, 30, 31, 32]).tolist() == [7.0, 1.5, 2.0, 3.0, 0.0, 0.0]
    assert tree.is_loaded([2, 3, 5, 30, 31, 32]).tolist() == [False, False, True, False, False, True]
    assert not np.signbit(tree.block_totals()).any()
    assert (tree.total, tree.check_valid()) == (13.5, (True, ""))
    assert tree.locate_blocks([6.9, 7.0, 8.5, 11.0])[0].tolist() == [2, 3, 5, 30]
