"""The sum tree and its naive twin, through any history, equal to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from diskreplay.priority import SumTree
from tests.models.naive_sum_tree import NaiveSumTree

VALUES = st.one_of(
    st.just(0.0),
    st.floats(0.0, 1e3),
    st.floats(0.0, 3.4e38),
    st.sampled_from([5e-324, 1e-310, 1e-45, 1.1754943508222875e-38, 1.0, 16777217.0, 1e16, 3.4028234663852886e38]),
)
UNIT = st.floats(0.0, 1.0)


class Lockstep(RuleBasedStateMachine):
    """Runs the tree and its twin side by side; every number must be equal, to the last bit."""

    @initialize(block_size=st.sampled_from([1, 2, 15, 16, 17, 32, 100, 300]), blocks=st.integers(1, 3))
    def start(self, block_size, blocks):
        self.tree = SumTree(block_size, blocks)
        self.twin = NaiveSumTree(block_size, blocks)

    def block(self, data):
        return data.draw(st.integers(0, len(self.twin.leaves) - 1))

    def loaded_leaves(self):
        size = self.twin.block_size
        loaded = [b for b, total in enumerate(self.twin.known) if total is None]
        return st.sampled_from(loaded).flatmap(lambda b: st.integers(b * size, (b + 1) * size - 1))

    @precondition(lambda self: None in self.twin.known)
    @rule(data=st.data())
    def update(self, data):
        pairs = data.draw(st.lists(st.tuples(self.loaded_leaves(), VALUES), max_size=40))
        pairs += data.draw(st.lists(st.sampled_from(pairs), max_size=3)) if pairs else []
        leaves, values = [leaf for leaf, _ in pairs], [value for _, value in pairs]
        self.tree.update(leaves, values)
        self.twin.update(leaves, values)

    @rule(data=st.data())
    def update_range(self, data):
        block, size = self.block(data), self.twin.block_size
        first = data.draw(st.integers(0, size))
        values = data.draw(st.lists(VALUES, max_size=min(size - first, 40)))
        if self.twin.known[block] is not None:
            with pytest.raises(ValueError, match="not loaded"):
                self.tree.update_range(block, first, values)
            return
        self.tree.update_range(block, first, values)
        first += block * size
        self.twin.update(list(range(first, first + len(values))), values)

    @rule(data=st.data())
    def set_block(self, data):
        block = self.block(data)
        values = data.draw(st.lists(VALUES, max_size=self.twin.block_size))
        self.tree.set_block(block, values)
        self.twin.set_block(block, values)

    @rule(data=st.data())
    def clear_block(self, data):
        block = self.block(data)
        self.tree.clear_block(block)
        self.twin.set_block(block, [])

    @rule(data=st.data(), total=VALUES)
    def set_block_total(self, data, total):
        block = self.block(data)
        self.tree.set_block_total(block, total)
        self.twin.set_block_total(block, total)

    @rule(totals=st.lists(VALUES, max_size=3))
    def set_block_totals(self, totals):
        totals = totals[: len(self.twin.leaves)]
        self.tree.set_block_totals(totals)
        for block, total in enumerate(totals):
            self.twin.set_block_total(block, total)

    @rule(extra=st.sampled_from([0, 1, 2, 5, 20]))
    def grow(self, extra):
        blocks = min(len(self.twin.leaves) + extra, 40)
        self.tree.grow(blocks)
        self.twin.grow(blocks)

    @rule(units=st.lists(UNIT, min_size=1, max_size=20))
    def find(self, units):
        total = self.twin.total()
        targets = [unit * total for unit in units]
        if total == 0.0:
            with pytest.raises(ValueError, match="No leaf is above 0"):
                self.tree.find(targets)
            return
        located = [self.twin.locate(target) for target in targets]
        blocks, residual = self.tree.locate_blocks(targets)
        assert list(zip(blocks.tolist(), residual.tolist(), strict=True)) == located
        if any(self.twin.known[block] is not None for block, _ in located):
            for find in (
                lambda: self.tree.find(targets),
                lambda: self.tree.find_in_blocks(blocks, residual),
            ):
                with pytest.raises(ValueError, match="not loaded"):
                    find()
            return
        expected = [self.twin.find(target) for target in targets]
        assert self.tree.find(targets).tolist() == expected
        assert self.tree.find_in_blocks(blocks, residual).tolist() == expected
        assert (self.tree.get(expected) > 0.0).all()

    @invariant()
    def equal(self):
        if not hasattr(self, "tree"):
            return
        size = self.twin.block_size
        assert self.tree.check_valid() == (True, "")
        assert self.tree.total == self.twin.total()
        assert self.tree.blocks == len(self.twin.leaves)
        assert len(self.tree) == size * len(self.twin.leaves)
        assert self.tree.block_totals().tolist() == self.twin.block_totals()
        loaded = [total is None for total in self.twin.known]
        assert self.tree.is_loaded(range(self.tree.blocks)).tolist() == loaded
        for block, leaves in enumerate(self.twin.leaves):
            if loaded[block]:
                rows = np.arange(block * size, (block + 1) * size)
                assert self.tree.get(rows).tolist() == leaves


Lockstep.TestCase.settings = settings(max_examples=120, stateful_step_count=20, deadline=None)
TestLockstep = Lockstep.TestCase
