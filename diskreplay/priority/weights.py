"""Owns the formulas: from an error to a priority, from that to its leaf value, from a probability to its weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.priority import batch_kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray


def to_priorities(numbers: NDArray[Any], eps: float | None = None) -> tuple[NDArray[np.float32], int]:
    """Return numbers (n,) as priorities, or |number| + eps; and the first position that gives none, or -1.

    A priority is finite and >= 0 as a float32.

    >>> to_priorities(np.array([-2.0, 0.5]), eps=0.5)[0].tolist(), to_priorities(np.array([0.0, -2.0]))[1]
    ([2.5, 1.0], 1)
    """
    given = _batch(numbers)
    priorities = np.empty(len(given), np.float32)
    if eps is None:
        return priorities, batch_kernels.from_numbers(given, priorities)
    return priorities, batch_kernels.from_errors(given, eps, priorities)


def leaf_value(priorities: NDArray[np.float32], alpha: float) -> NDArray[np.float64]:
    """Raise priorities to the exponent alpha: what a sum tree's leaf holds, a float32, above 0 if the priority is.

    Schaul et al. 2016 (arXiv:1511.05952), eq. 1: `P(i) = p_i^alpha / sum_k p_k^alpha`. Ours:
    0^0 is 0, so a priority of 0 is never drawn, whatever alpha is.

    Args:
        priorities: (n,), finite and >= 0.
        alpha: 0 draws uniformly among the priorities above 0, 1 in proportion to them.

    Raises:
        ValueError: If alpha is negative or not finite, or a priority is; it names the first one.

    >>> priorities = np.array([0, 1, 4], np.float32)
    >>> leaf_value(priorities, 0.5).tolist(), leaf_value(priorities, 0.0).tolist()
    ([0.0, 1.0, 2.0], [0.0, 1.0, 1.0])
    """
    if not 0.0 <= alpha < np.inf:
        raise ValueError(f"alpha must be finite and >= 0, not {alpha}.")
    values = _batch(priorities)
    bad = batch_kernels.first_unsound(values)
    if bad != batch_kernels.OK:
        raise ValueError(f"Priority {values[bad]} at position {bad} is not finite and >= 0.")
    if alpha <= 1.0:
        powers = np.power(values, alpha)
    else:
        with np.errstate(over="ignore"):
            powers = np.power(values, alpha)
    batch_kernels.settle(values, powers)
    return powers


def importance_weights(probabilities: NDArray[np.float64], *, size: int, beta: float) -> NDArray[np.float32]:
    """Weigh draws so that the unevenness of their probabilities is corrected by the share beta.

    Schaul et al. 2016 (arXiv:1511.05952), section 3.4: `w_i = (N P(i))^-beta / max_j w_j`, the
    maximum taken over the batch. N divides out again; it is asked for as it is in the formula.

    Args:
        probabilities: (B,), each drawn entry's probability, above 0; or what is in proportion to it, as N is divided
            out, and with it any other factor.
        size: N, the number of transitions that could have been drawn.
        beta: 0 corrects nothing, 1 corrects fully.

    Returns:
        (B,), in (0, 1]; the rarest entry of the batch has 1.

    Raises:
        ValueError: If a probability is not above 0 and finite, size is below 1, or beta is
            negative or not finite.

    >>> importance_weights(np.array([0.25, 0.5]), size=4, beta=1.0).tolist()
    [1.0, 0.5]
    """
    if size < 1 or not 0.0 <= beta < np.inf:
        raise ValueError(f"size must be at least 1 and beta finite and >= 0, not {size}, {beta}.")
    drawn = _batch(probabilities)
    # The largest weight is the rarest entry's; divided out before the power, nothing overflows.
    shares = np.empty(len(drawn))
    if not batch_kernels.rarity(drawn, shares):
        raise ValueError("Probabilities must be above 0 and finite; entries of 0 are never drawn.")
    return np.power(shares, beta, out=shares).astype(np.float32)


def _batch(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return an array as the kernels know it: another kind would be compiled for anew."""
    array = np.ascontiguousarray(values, np.float64)
    return array if array.flags.writeable else array.copy()
