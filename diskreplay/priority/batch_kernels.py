"""Owns what is done to each number of a batch, in one compiled call where numpy takes ten.

Between two batches of frames the caches hold nothing of the interpreter's any more: what a call costs then is the
code it brings back, not its loop.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from diskreplay.addresses import ask_for_item
from diskreplay.priority.node_kernels import F32, F64, I64, LEAST

OK = -1
GROUP = 64  # stores that wait for their cache lines side by side


@njit(cache=True)
def from_errors(errors: F64, eps: float, priorities: F32) -> int:
    """Fill priorities (n,) with |errors| + eps; return the first position that is not finite, or OK."""
    for i in range(errors.size):
        priority = np.float32(abs(errors[i]) + eps)
        if not priority < np.inf:
            return i
        priorities[i] = priority
    return OK


@njit(cache=True)
def from_numbers(numbers: F64, priorities: F32) -> int:
    """Fill priorities (n,) with numbers (n,); return the first position that is not finite and >= 0, or OK."""
    for i in range(numbers.size):
        priority = np.float32(numbers[i])
        if not 0.0 <= priority < np.inf:
            return i
        priorities[i] = priority + np.float32(0.0)
    return OK


@njit(cache=True)
def first_unsound(numbers: F64) -> int:
    """Return the first position whose number is not finite and >= 0, or OK."""
    for i in range(numbers.size):
        if not 0.0 <= numbers[i] < np.inf:
            return i
    return OK


@njit(cache=True)
def settle(priorities: F64, powers: F64) -> None:
    """Make powers (n,) what leaves hold of them: 0 where the priority is 0, above 0 where it is not."""
    for i in range(powers.size):
        powers[i] = np.float32(max(powers[i], LEAST)) if priorities[i] > 0.0 else 0.0


@njit(cache=True)
def put_all(held: F32, places: I64, values: F32) -> float:
    """Set held[places] to values (n,), the last of equals winning; return the largest."""
    largest = np.float32(0.0)
    for start in range(0, places.size, GROUP):
        stop = min(places.size, start + GROUP)
        for i in range(start, stop):
            ask_for_item(held, places[i])
        for i in range(start, stop):
            held[places[i]] = values[i]
            largest = max(largest, values[i])
    return float(largest)


@njit(cache=True)
def rarity(numbers: F64, shares: F64) -> bool:
    """Fill shares (n,) with the least of numbers (n,) divided by each; return whether all are above 0 and finite."""
    least = np.inf
    for i in range(numbers.size):
        if not 0.0 < numbers[i] < np.inf:
            return False
        least = min(least, numbers[i])
    for i in range(numbers.size):
        shares[i] = least / numbers[i]
    return True
