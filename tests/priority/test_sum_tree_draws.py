"""Draws from a sum tree are distributed as its leaves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from diskreplay.priority import SumTree


def chi_square(leaves, weights):
    counts = np.bincount(leaves, minlength=weights.size)
    assert counts[weights == 0].sum() == 0
    above = weights > 0
    expected = weights[above] / weights.sum() * counts.sum()
    assert expected.min() >= 5
    return stats.chisquare(counts[above], expected).pvalue


@pytest.fixture(scope="module")
def skewed():
    """Returns a tree of 600 leaves in 10 blocks, a fifth of them 0, and their values."""
    rng = np.random.default_rng(2)
    values = rng.gamma(2.0, 1.0, 600) + 0.1
    values[rng.random(600) < 0.2] = 0.0
    tree = SumTree(60, 10)
    tree.update(rng.permutation(600), np.zeros(600))
    tree.update(np.arange(600), values)
    return tree, values


def test_independent_draws_follow_the_values(skewed):
    """100,000 independent draws are distributed as the leaves, by chi-square."""
    tree, values = skewed
    assert chi_square(tree.sample(100_000, np.random.default_rng(3)), values) > 0.01


def test_stratified_draws_follow_the_values(skewed):
    """One draw in each stratum is too even for chi-square as such; one of each batch is not."""
    tree, values = skewed
    rng = np.random.default_rng(4)
    single = [tree.sample_stratified(8, rng)[rng.integers(8)] for _ in range(100_000)]
    assert chi_square(np.array(single), values) > 0.01


def test_chi_square_can_fail(skewed):
    """Draws from leaves of which one in ten is 20% off are told from the true ones."""
    tree, values = skewed
    wrong = values.copy()
    wrong[::10] *= 1.2
    assert chi_square(tree.sample(100_000, np.random.default_rng(3)), wrong) < 1e-6


def test_strata_hold_one_target_each(skewed):
    """Target i lies in share i of the total, for every batch size."""
    tree, _ = skewed
    for n in (1, 7, 256):
        targets = tree.stratified_targets(n, np.random.default_rng(5))
        assert (targets // (tree.total / n)).tolist() == list(range(n))
        assert (np.diff(tree.sample_stratified(n, np.random.default_rng(5))) >= 0).all()


def test_draws_repeat_with_the_generator(skewed):
    """The generator handed in is the only source of chance."""
    tree, _ = skewed
    for draw in (tree.sample, tree.sample_stratified):
        once, again = draw(50, np.random.default_rng(6)), draw(50, np.random.default_rng(6))
        assert once.tolist() == again.tolist()
