"""Check what a window is asked to be, and nest what was fetched for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.experience import Batch, StepSpec
from diskreplay.experience.spec import build

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from diskreplay.storage.reading import Fetched, WindowPlan

MOST_STEPS = 1 << 16


def assemble(spec: StepSpec, plan: WindowPlan, fetched: Fetched, weight: Any) -> Batch:
    """Nest a plan's arrays as the spec is nested."""
    return Batch(
        observation=build(spec.observation, iter(fetched.observation)),
        action=build(spec.action, iter(fetched.action)),
        reward=fetched.reward,
        discount=fetched.discount,
        next_observation=build(spec.observation, iter(fetched.next_observation)),
        weight=weight,
        step_ids=plan.step_ids,
    )


def check_window(n_step: int, gamma: float, frame_stack: int, padding: str) -> None:
    """Check what a window is asked to be.

    Raises:
        ValueError: If an argument is out of range; names it.
    """
    for name, value in (("n_step", n_step), ("frame_stack", frame_stack)):
        if isinstance(value, bool) or int(value) != value or not 1 <= value <= MOST_STEPS:
            raise ValueError(f"{name} must be a whole number of 1 to {MOST_STEPS:,}, got {value!r}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be in [0, 1], got {gamma!r}")
    if padding not in ("first", "zeros"):
        raise ValueError(f"padding must be 'first' or 'zeros', got {padding!r}")


def as_step_ids(step_ids: ArrayLike, what: str = "step_ids") -> NDArray[np.int64]:
    """Return step ids as an array of their own, (B,).

    Raises:
        ValueError: If they are not integers in one row.
    """
    ids = np.asarray(step_ids)
    if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
        raise ValueError(f"{what} must be a 1-d array of integers, got {ids.dtype} {ids.shape}")
    return ids.astype(np.int64)
