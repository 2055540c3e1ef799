"""Batches that a sampler has drawn ahead, as its state in the index holds them."""

from __future__ import annotations

import base64
import math

import numpy as np
from numpy.typing import NDArray

Drawn = tuple[NDArray[np.int64], NDArray[np.float32], float]


def pack_drawn(step_ids: NDArray[np.int64], weight: NDArray[np.float32], log_scale: float) -> list[str]:
    """Return a batch as texts: the arrays' bytes in base 85, and the scale in hexadecimal."""
    return [*(base64.b85encode(a.tobytes()).decode() for a in (step_ids, weight)), log_scale.hex()]


def unpack_drawn(data: list[str]) -> Drawn:
    """Return the step ids, the weights, each (B,), and their log scale; 0 in older stores, which have none.

    Raises:
        ValueError: If it is not what `pack_drawn` returns.
    """
    ids, weights = (base64.b85decode(text) for text in data[:2])
    if len(ids) % 8 or len(ids) != 2 * len(weights):
        raise ValueError("a batch drawn ahead is damaged: it has not as many step ids as weights")
    weight, log_scale = np.frombuffer(weights, np.float32).copy(), float.fromhex(data[2]) if len(data) > 2 else 0.0
    if not (np.isfinite(weight).all() and (weight >= 0).all() and math.isfinite(log_scale)):
        raise ValueError("a batch drawn ahead is damaged: a weight is no weight")
    return np.frombuffer(ids, np.int64).copy(), weight, log_scale
