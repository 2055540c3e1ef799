"""Every live transition with the same probability."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diskreplay.sampling.sampler import Draw, Sampler

if TYPE_CHECKING:
    from diskreplay.store import ReplayStore


class UniformSampler(Sampler):
    """Draw every live transition with the same probability, with replacement; weights are 1.

    Cost: O(B log segments), and after steps came or went O(segments that follow the oldest that changed).

    Args:
        store: The store.
        seed: Where the random numbers begin; None: go on from the committed state, or begin anywhere.
        name: Under which name the state is kept.
        resume: Go on from the committed state, if there is one. Default: if no seed is given.
    """

    def __init__(
        self,
        store: ReplayStore,
        *,
        seed: int | None = None,
        name: str = "uniform",
        resume: bool | None = None,
    ) -> None:
        super().__init__(store, seed=seed, name=name, resume=resume)

    def _draw(self, batch_size: int) -> Draw:
        # In order, so that neighbours in the batch are neighbours on disk.
        ranks = np.sort(self._random.integers(len(self.store), size=batch_size))
        return Draw(self.store.step_ids_of(ranks), np.ones(batch_size, np.float32))
