"""Fetch sequences: consecutive steps of one episode, for recurrent and model-based learners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.storage import planning_kernels
from diskreplay.storage.fields import TERMINATED, TRUNCATED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from diskreplay.storage.reading import Reader


@dataclass
class Sequences:
    """B sequences' arrays, one a leaf; see `SequenceBatch`."""

    observation: list[NDArray[Any]]
    action: list[NDArray[Any]]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    mask: NDArray[np.bool_]


def fetch_sequences(reader: Reader, step_ids: NDArray[np.int64], length: int) -> Sequences:
    """Read `length` steps from each step id on; the caller holds the store's lock.

    Past an episode's end the last observation and the last action are repeated and rewards are 0.

    Raises:
        StepEvictedError: If a step id is not a step that can be sampled.
    """
    windows = reader.windows(step_ids, n_step=length, frame_stack=1, pad_zeros=False)
    size = len(step_ids)
    mask = np.arange(length) < windows.lengths[:, None]
    last = windows.lengths - 1
    each = np.arange(size)
    slots, rows = windows.reward_slot, windows.reward_row
    slots = np.where(mask, slots, slots[each, last][:, None])
    rows = np.where(mask, rows, rows[each, last][:, None])
    final_slot, final_row = windows.window_slot[:, 1:], windows.window_row[:, 1:]
    seen_slot = np.concatenate([np.where(mask, slots, final_slot), final_slot], axis=1)
    seen_row = np.concatenate([np.where(mask, rows, final_row), final_row], axis=1)
    outcome_slot = np.where(mask, slots, planning_kernels.ZERO).astype(np.int32)
    terminated, truncated = (reader.rows(n, outcome_slot, rows) for n in (TERMINATED, TRUNCATED))
    ended = (windows.outcome == planning_kernels.ENDED) & ~terminated[each, last]
    truncated[each[ended], last[ended]] = True
    return Sequences(
        observation=[reader.rows(n, seen_slot, seen_row) for n in reader.observation_names],
        action=[reader.rows(n, slots, rows) for n in reader.action_names],
        reward=reader.rows("reward", outcome_slot, rows),
        terminated=terminated,
        truncated=truncated,
        mask=mask,
    )
