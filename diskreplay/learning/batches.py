"""Where a run's batches come from, and where their TD errors go: a sampler and a loader over the store."""

from __future__ import annotations

import contextlib
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from diskreplay.errors import CorruptStoreError, StepEvictedError
from diskreplay.experience.spec import flatten
from diskreplay.learning.network import normalised_leaves, set_normaliser
from diskreplay.learning.report import diverged
from diskreplay.loading import ReplayLoader
from diskreplay.priority import LinearSchedule
from diskreplay.sampling import PrioritizedSampler, UniformSampler

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor

    from diskreplay.experience import Batch
    from diskreplay.learning.config import TrainConfig
    from diskreplay.learning.network import QNetwork
    from diskreplay.store import ReplayStore

NORMALISER_BATCHES, NORMALISER_ROWS = 50, 1_000
"""Steps drawn to measure mean and deviation of vector observations; a tenth of it where images come along."""


class Batches:
    """Draw batches for a run, and give its TD errors back as priorities.

    The sampler's state, batches drawn ahead included, is part of every commit of the store: that is what
    makes a resumed run draw what the uninterrupted one would have drawn.

    Args:
        store: Store to draw from, opened with mode="a".
        config: Options of the run.
        resume: Go on from the state the store committed last; otherwise from `config.seed`, with all
            priorities equal.
        wait_seconds: Seconds the run has waited for data before.
    """

    def __init__(
        self,
        store: ReplayStore,
        config: TrainConfig,
        *,
        resume: bool = False,
        wait_seconds: float = 0.0,
    ) -> None:
        self._waited_before = wait_seconds
        self._store, self._config = store, config
        self._prioritized: PrioritizedSampler | None = None
        if config.prioritized:
            beta = LinearSchedule(config.beta, 1.0, steps=config.updates)
            self._prioritized = PrioritizedSampler(
                store, alpha=config.alpha, beta=beta, seed=config.seed, resume=resume
            )
            if not resume:
                self._prioritized.forget_priorities()  # those of an earlier run are no business of this
        self._loader = ReplayLoader(
            self._prioritized or UniformSampler(store, seed=config.seed, resume=resume),
            batch_size=config.batch_size,
            n_step=config.n_step,
            gamma=config.gamma,
            frame_stack=config.frame_stack,
            prefetch=config.prefetch,
            device=config.device,
            on_corruption=config.on_corruption,
        )
        self._iterator: Generator[Batch] | None = None

    @property
    def wait_seconds(self) -> float:
        """Return the seconds the run has waited for data: drawing in the learner's thread is waiting too."""
        return self._waited_before + self._loader.wait_seconds

    @property
    def delivered(self) -> int:
        """Return how many batches the sampler has delivered, in the runs before too."""
        return self._loader.replay_sampler.batches_delivered

    @property
    def skipped(self) -> dict[int, str]:
        """Return the damaged segments that were left out, and why."""
        return self._store.quarantined

    def warm_up(self) -> None:
        """Draw the first batch, read it and put it back: it comes first all the same.

        On a machine's first run its kernels are compiled meanwhile, for seconds that are no waiting for data.
        """
        sampler = self._loader.replay_sampler
        with contextlib.suppress(CorruptStoreError, StepEvictedError):  # met again, and dealt with, by the loader
            draw = sampler.draw_ahead(self._config.batch_size)
            sampler.recall([draw])
            self._store.read(draw.step_ids, **self._loader.window)

    def next(self) -> Batch:
        """Return the next batch."""
        if self._iterator is None:
            self._iterator = iter(self._loader)  # type: ignore[assignment]
        return next(self._iterator)  # type: ignore[arg-type]

    def set_priorities(self, batch: Batch, td_error: Tensor) -> None:
        """Make the TD errors the priorities of the batch's transitions, if sampling is prioritized.

        Raises:
            TrainingError: If one is not finite.
        """
        if self._prioritized is None:
            return
        errors = td_error.cpu().numpy()
        if not np.isfinite(errors).all():
            raise diverged("a TD error")
        self._prioritized.update_priorities(batch.step_ids, errors)

    def normalise(self, network: QNetwork) -> None:
        """Give the network the mean and deviation of the vector observations, measured on random steps."""
        leaves = normalised_leaves(self._store.spec)
        if not leaves:
            return
        images = len(leaves) < len(self._store.spec.observation_leaves)
        probe = UniformSampler(self._store, seed=self._config.seed, name="normaliser", resume=False)
        loader = ReplayLoader(
            probe, batch_size=NORMALISER_ROWS, prefetch=1, threads=1, on_corruption=self._config.on_corruption
        )
        pieces: list[list[Tensor]] = [[] for _ in leaves]
        for batch in islice(loader, NORMALISER_BATCHES // 10 if images else NORMALISER_BATCHES):
            parts = flatten(self._store.spec.observation, batch.observation, "observation")
            for piece, leaf in zip(pieces, leaves, strict=True):
                piece.append(parts[leaf].to(torch.float64).flatten(1))
        for piece, leaf in zip(pieces, leaves, strict=True):
            rows = torch.cat(piece)
            set_normaliser(network, leaf, rows.mean(dim=0), rows.std(dim=0, correction=0))

    def close(self) -> None:
        """Stop reading ahead."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
        self._loader.close()
