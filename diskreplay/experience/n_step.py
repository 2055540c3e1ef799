"""n-step returns, as in Rainbow (Hessel et al. 2018, arXiv:1710.02298)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray


def n_step_return(
    rewards: NDArray[np.float32],
    lengths: NDArray[np.int64],
    terminated: NDArray[np.bool_],
    *,
    gamma: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fold the rewards of a window into a return and a bootstrap discount.

    `R = sum_{j<m} gamma^j r_{t+j}` with m = `lengths`, summed in float64 from j = 0 upwards.

    Args:
        rewards: (B, n); `rewards[b, j]` followed the action at t + j; ignored from `lengths[b]` on.
        lengths: (B,); steps before the window or the episode ends, in [1, n].
        terminated: (B,); True where the episode terminated at the window's last step.
        gamma: Discount a step, in [0, 1].

    Returns:
        returns: (B,) float32, and discounts: (B,) float32, gamma^m, 0 where terminated.

    >>> r, d = n_step_return(np.float32([[1, 1, 8]]), np.array([2]), np.array([False]), gamma=0.5)
    >>> r.tolist(), d.tolist()
    ([1.5], [0.25])
    """
    powers = _powers(float(gamma), rewards.shape[1])
    returns, discounts = np.empty(len(rewards), np.float32), np.empty(len(rewards), np.float32)
    _fold(rewards, lengths, terminated, powers, returns, discounts)
    return returns, discounts


@lru_cache(64)
def _powers(gamma: float, most: int) -> NDArray[np.float64]:
    """Return gamma^0 to gamma^most; not to be written to."""
    return np.asarray(np.power(np.float64(gamma), np.arange(most + 1)), np.float64)


@njit(cache=True)
def _fold(
    rewards: NDArray[np.float32],
    lengths: NDArray[np.int64],
    terminated: NDArray[np.bool_],
    powers: NDArray[np.float64],
    returns: NDArray[np.float32],
    discounts: NDArray[np.float32],
) -> None:
    for i in range(len(rewards)):
        total = 0.0
        for j in range(lengths[i]):
            total += np.float64(rewards[i, j]) * powers[j]
        returns[i] = total
        discounts[i] = 0.0 if terminated[i] else powers[lengths[i]]
