"""Transitions in proportion to a power of their priority (Schaul et al. 2016, arXiv:1511.05952)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import NotEnoughStepsError, StepEvictedError
from diskreplay.priority import LinearSchedule, importance_weights, to_priorities
from diskreplay.sampling.sampler import Draw, Sampler
from diskreplay.sampling.segment_priorities import SegmentPriorities

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from diskreplay.storage.commit import SamplerRecord
    from diskreplay.store import ReplayStore


class PrioritizedSampler(Sampler):
    """Draw transition i with probability p_i^alpha / sum_k p_k^alpha, stratified over the batch.

    A segment is a few blocks of the sum tree. Blocks whose priorities are in the index are loaded when a draw or an
    update first touches them, so making a sampler costs what the catalogue costs, not what the rows cost.
    New steps get the largest priority seen. A sampler over a store opened with mode="a" owns the priorities of
    its name: `store.commit()` writes what changed, together with the data. With mode="r" they live in memory only.

    Args:
        store: The store.
        alpha: 0 is uniform over priorities above 0, 1 proportional.
        beta: Exponent of the importance weights, or a schedule of it over the batches drawn.
        eps: Added to |td_error|, so that no transition is lost for ever.
        seed: Where the random numbers begin; None: go on from the committed state, or begin anywhere.
        name: Under which name priorities and state are kept.
        resume: Go on from the committed random state, if there is one. Default: if no seed is given.

    Attributes:
        stale: Updates dropped because their step had been evicted, or what followed it was found damaged.

    Raises:
        StoreLockedError: If another process owns the priorities of that name.
    """

    def __init__(
        self,
        store: ReplayStore,
        *,
        alpha: float = 0.6,
        beta: float | LinearSchedule = 0.4,
        eps: float = 1e-6,
        seed: int | None = None,
        name: str = "prioritized",
        resume: bool | None = None,
    ) -> None:
        if not 0 <= alpha < np.inf:
            raise ValueError(f"alpha must be at least 0 and finite, got {alpha!r}")
        if not isinstance(beta, LinearSchedule) and not 0 <= beta < np.inf:
            raise ValueError(f"beta must be at least 0 and finite, got {beta!r}")
        if not 0 <= eps < np.inf:
            raise ValueError(f"eps must be at least 0 and finite, got {eps!r}")
        self._alpha = float(alpha)
        self._beta = beta
        self.eps = float(eps)
        self.stale = 0
        with store.lock:
            store.access.claim(name)
            self._priorities = SegmentPriorities(store.access, name, self._alpha)
            super().__init__(store, seed=seed, name=name, resume=resume)

    @property
    def alpha(self) -> float:
        """Return the exponent of the priorities; the sum tree is made with it."""
        return self._alpha

    @property
    def beta(self) -> float | LinearSchedule:
        """Return the exponent of the importance weights, or its schedule; may be set between batches."""
        return self._beta

    @beta.setter
    def beta(self, beta: float | LinearSchedule) -> None:
        with self.store.lock:
            self.serve()
            self._beta = beta

    def update_priorities(self, step_ids: ArrayLike, td_errors: ArrayLike) -> None:
        """Set the priorities of these steps to |td_error| + eps; of a step given twice the last wins.

        Steps that cannot be sampled any more, evicted meanwhile, say, are dropped and counted in `stale`.

        Args:
            step_ids: (B,) integers; arrays or tensors.
            td_errors: (B,) finite numbers; arrays or tensors on any device.

        Raises:
            ValueError: If an error is NaN or infinite, or a step id was never that of a transition.
        """
        self._set(step_ids, td_errors, self.eps)

    def set_priorities(self, step_ids: ArrayLike, priorities: ArrayLike) -> None:
        """Set the priorities of these steps; 0 means never drawn again. Otherwise as `update_priorities`.

        Raises:
            ValueError: If a priority is negative, NaN or infinite as a float32, or a step id was never that of
                a transition; nothing was changed.
            StoreLockedError: If another sampler of that name was made from the same store since.
        """
        self._set(step_ids, priorities, None)

    def _set(self, step_ids: ArrayLike, numbers: ArrayLike, eps: float | None) -> None:
        """Set priorities to numbers, or to |number| + eps."""
        ids, given = _array(step_ids), _array(numbers)
        if ids.ndim != 1 or ids.shape != given.shape or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(
                f"expected step_ids (B,) of integers and as many numbers, got {ids.dtype} {ids.shape}, {given.shape}"
            )
        values, bad = to_priorities(given, eps)
        if bad >= 0:
            what = "priorities must be finite and not negative" if eps is None else "errors must be finite as a float32"
            raise ValueError(f"{what}: step id {int(ids[bad])} got {given[bad]}")
        self.store.check_open()
        with self.store.lock:
            self.store.access.require_joined(self.name, self)
            self.serve()
            leaves, live = self._current(lambda: self._leaves_of(ids.astype(np.int64, copy=False)))
            if live is not None:
                self.stale += int((~live).sum())
                leaves, values = leaves[live], values[live]
            if len(leaves):
                self._priorities.set(leaves, values)

    def forget_priorities(self) -> None:
        """Give every live transition the priority 1, as if none had ever been updated. Cost: O(rows)."""
        with self.store.lock:
            self.store.access.require_joined(self.name, self)
            self.serve()
            self._priorities.forget()

    def priorities_of(self, step_ids: ArrayLike) -> NDArray[np.float32]:
        """Return the priorities of live transitions, (B,).

        Raises:
            StepEvictedError: If a step was evicted.
            ValueError: If a step id was never that of a transition.
        """
        ids = _array(step_ids).astype(np.int64)
        with self.store.lock:
            leaves, live = self._current(lambda: self._leaves_of(ids))
            if live is not None:
                raise StepEvictedError(f"{self.store.path}: step id {int(ids[~live][0])} was evicted")
            return self._priorities.get(leaves)

    @property
    def total(self) -> float:
        """Return the sum of p^alpha over the live transitions."""
        with self.store.lock:
            self._priorities.sync()
            return self._priorities.tree.total

    @property
    def largest(self) -> float:
        """Return the largest priority seen, which new steps get."""
        return float(self._priorities.largest)

    def check_valid(self) -> tuple[bool, str]:
        """Return whether tree, priorities and store agree, and if not, how. Cost: O(rows loaded)."""
        with self.store.lock:
            self._priorities.sync()
            return self._priorities.check_valid()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as a JSON object; the priorities themselves are committed beside it."""
        return {**super().state_dict(), "alpha": self.alpha, "largest": self.largest, "stale": self.stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` returned; the priorities are as they are.

        Raises:
            SpecMismatchError: If it is another kind of sampler's, or damaged.
        """
        super().load_state_dict(state)
        stale = state.get("stale")
        self.stale = stale if isinstance(stale, int) else 0

    def collect(self) -> SamplerRecord:
        """Return the priorities that changed, the sums above them, and the state."""
        self.serve()
        return self._current(self._collect)

    def committed(self) -> None:
        """Hear that what was collected is durable."""
        self._priorities.committed()

    def _collect(self) -> SamplerRecord:
        self._priorities.sync()
        record = super().collect()
        self._priorities.collect(record)
        return record

    def _leaves_of(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
        self._priorities.sync()
        return self._priorities.leaves_of(ids)

    def _draw(self, batch_size: int) -> Draw:
        priorities = self._priorities
        priorities.sync()
        tree = priorities.tree
        while True:
            if not tree.total > 0:
                raise NotEnoughStepsError(
                    f"{self.store.path}: every priority is 0, so nothing can be drawn",
                    hint="Give some transition a priority with set_priorities.",
                )
            targets, found = tree.draw_loaded(batch_size, self._random)
            if found is not None:
                leaves, values = found
                break
            blocks, residual = tree.locate_blocks(targets)
            priorities.load(blocks)
            if (tree.block_totals(blocks) > 0).all():
                leaves = tree.find_in_blocks(blocks, residual)
                values = tree.get(leaves)
                break
            # What was loaded is newer than the sums it was chosen by, and is 0 by now; each turn loads more.
        beta = self.beta(self.batches) if isinstance(self.beta, LinearSchedule) else float(self.beta)
        weight = importance_weights(values, size=len(self.store), beta=beta)
        return Draw(priorities.step_ids(leaves), weight, -beta * math.log(float(values.min())))


def _array(values: Any) -> NDArray[Any]:
    """Return an array of what may be a tensor on some device."""
    if hasattr(values, "detach"):
        values = values.numpy(force=True)
    return np.asarray(values)
