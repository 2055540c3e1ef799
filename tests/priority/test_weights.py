"""Leaf values and importance weights against the formulas of Schaul et al. 2016."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diskreplay.priority import SumTree, batch_kernels, importance_weights, leaf_value, to_priorities

PROBABILITIES = arrays(np.float64, st.integers(1, 50), elements=st.floats(1e-9, 1.0))
PRIORITIES = arrays(np.float32, st.integers(0, 50), elements=st.floats(0, 2.0**100, width=32, allow_subnormal=False))


@settings(deadline=None)  # the first example may have a kernel compiled
@given(probabilities=PROBABILITIES, size=st.integers(1, 10**9), beta=st.floats(0, 1))
def test_weights_follow_the_formula(probabilities, size, beta):
    """w_i = (N P(i))^-beta / max_j w_j, in float32."""
    raw = [(size * p) ** -beta for p in probabilities.tolist()]
    weights = importance_weights(probabilities, size=size, beta=beta)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, np.array(raw) / max(raw), rtol=1e-6)
    assert weights.max() == 1.0


def test_weights_of_tiny_probabilities_stay_finite():
    """N P(i) may be too small to be inverted; the weights are still in (0, 1]."""
    weights = importance_weights(np.array([1e-310, 1e-300, 0.5]), size=10**9, beta=1.0)
    assert weights[0] == 1.0
    assert weights[1] == pytest.approx(1e-10)
    assert np.isfinite(weights).all()


def test_weights_without_draws_or_correction():
    """No draws have no weights; beta 0 corrects nothing."""
    assert importance_weights(np.zeros(0), size=3, beta=0.5).shape == (0,)
    assert importance_weights(np.array([0.1, 0.9]), size=2, beta=0.0).tolist() == [1.0, 1.0]


def test_full_correction_undoes_the_priorities():
    """With beta 1 the weighted mean over what is drawn is the mean over all entries."""
    values = np.array([1.0, 2.0, 5.0])
    probabilities = leaf_value(np.array([1, 4, 9], np.float32), 0.5) / 6.0
    weights = importance_weights(probabilities, size=3, beta=1.0)
    weighted = (probabilities * weights * values).sum() / (probabilities * weights).sum()
    assert weighted == pytest.approx(values.mean(), rel=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "size", "beta", "message"),
    [
        ([0.5, 0.0], 2, 0.5, "above 0 and finite"),
        ([0.5, np.nan], 2, 0.5, "above 0 and finite"),
        ([0.5, np.inf], 2, 0.5, "above 0 and finite"),
        ([0.5], 0, 0.5, "size must be at least 1"),
        ([0.5], 2, -0.1, "beta finite and >= 0"),
        ([0.5], 2, np.nan, "beta finite and >= 0"),
    ],
)
def test_weights_refuse(probabilities, size, beta, message):
    """What cannot have been drawn has no weight."""
    with pytest.raises(ValueError, match=message):
        importance_weights(np.array(probabilities), size=size, beta=beta)


@settings(deadline=None)  # the first example may have a kernel compiled
@given(priorities=PRIORITIES, alpha=st.floats(0, 1))
def test_leaf_value_is_the_power(priorities, alpha):
    """p^alpha as a float32, above 0 for p > 0, and 0 for p = 0, also when alpha is 0; any tree takes it."""
    values = leaf_value(priorities, alpha)
    expected = [p**alpha if p > 0 else 0.0 for p in priorities.astype(float).tolist()]
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, np.array(expected, np.float32), rtol=1.2e-7, atol=1.2e-38)
    assert (values.astype(np.float32) == values).all()
    assert ((values > 0) == (priorities > 0)).all()
    assert ((values > 0) == (priorities > 0)).all()
    SumTree(64).set_block(0, values)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_leaf_value_names_a_bad_priority(bad):
    """The first priority that is no weight is named, whatever alpha is."""
    for alpha in (0.0, 0.6):
        with pytest.raises(ValueError, match=f"Priority {bad} at position 1"):
            leaf_value(np.array([1.0, bad, bad], np.float32), alpha)


@pytest.mark.parametrize("alpha", [-0.1, np.nan, np.inf])
def test_leaf_value_refuses_alpha(alpha):
    """A negative exponent would draw the least surprising most often."""
    with pytest.raises(ValueError, match="alpha must be finite and >= 0"):
        leaf_value(np.ones(2, np.float32), alpha)


NUMBERS = arrays(np.float64, st.integers(0, 40), elements=st.floats(-(2.0**140), 2.0**140) | st.just(np.nan))


@settings(deadline=None)
@given(numbers=NUMBERS, eps=st.none() | st.floats(0, 1))
def test_priorities_are_what_numpy_makes_of_the_numbers(numbers, eps):
    """Rounded to float32 once, -0 never; the first that is negative, NaN or too large for float32 is named."""
    with np.errstate(over="ignore"):
        expected = (numbers if eps is None else np.abs(numbers) + eps).astype(np.float32)
    bad = np.flatnonzero(~((expected >= 0) & (expected < np.inf)))
    priorities, at = to_priorities(numbers, eps)
    assert at == (bad[0] if len(bad) else -1)
    if at < 0:
        assert priorities.tobytes() == (expected + np.float32(0)).tobytes()


@settings(deadline=None)
@given(places=arrays(np.int64, st.integers(1, 200), elements=st.integers(0, 63)), data=st.data())
def test_of_a_place_given_twice_the_last_value_stays(places, data):
    values = data.draw(arrays(np.float32, len(places), elements=st.floats(0, 8, width=32)))
    held, expected = np.full(64, 9, np.float32), dict.fromkeys(range(64), np.float32(9))
    assert batch_kernels.put_all(held, places, values) == values.max()
    expected |= dict(zip(places.tolist(), values, strict=True))
    assert held.tolist() == [expected[place] for place in range(64)]


def test_arrays_that_may_not_be_written_to_are_taken_as_others():
    probabilities = np.array([0.25, 0.5])
    probabilities.flags.writeable = False
    assert importance_weights(probabilities, size=4, beta=1.0).tolist() == [1.0, 0.5]
    assert importance_weights(np.array([0.25, 0.5, 0.75])[::2], size=4, beta=1.0).tolist() == pytest.approx([1, 1 / 3])
