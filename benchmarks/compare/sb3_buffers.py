"""Stable-Baselines3 as a rival: its ReplayBuffer in RAM, stacked frames as they come, drawn uniformly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.buffers import ReplayBuffer

from benchmarks.rows import Rows
from benchmarks.worker import memory, repeat


class Uniform:
    """Uniform batches from RAM; with `optimize_memory_usage` next observations are not stored twice."""

    def __init__(self, rows: str, *, stack: int, seconds: float, batch_size: int = 256) -> None:
        self.folder, self.stack, self.seconds, self.batch_size = Path(rows), stack, seconds, batch_size

    def prepare(self) -> dict[str, Any]:
        """Fill step by step, which is the only way in; sample some batches."""
        rows = Rows.load(self.folder, mapped=True)
        steps, shape = rows.transitions, rows.observation.shape[1:]
        shape = (self.stack, *shape) if self.stack > 1 else shape
        low, high = (0, 255) if rows.observation.dtype == np.uint8 else (-np.inf, np.inf)
        seen = Box(low, high, shape, rows.observation.dtype)  # type: ignore[arg-type]
        acted = Box(-np.inf, np.inf, rows.action.shape[1:]) if rows.action.ndim > 1 else Discrete(18)
        before = memory()["anonymous"]
        self.buffer = ReplayBuffer(
            len(steps), seen, acted, device="cpu", optimize_memory_usage=True, handle_timeout_termination=False
        )
        for step in steps.tolist():
            window = rows.observation[rows.windows(np.array([step]), self.stack)][0]
            now, following = (window[:-1], window[1:]) if self.stack > 1 else (window[0], window[1])
            self.buffer.add(
                now[None], following[None], rows.action[step][None], rows.reward[step : step + 1],
                rows.terminated[step : step + 1], [{}],
            )  # fmt: skip
        size = memory()["anonymous"] - before
        for _ in range(20):
            self.buffer.sample(self.batch_size)
        return {"steps": len(steps), "bytes": size, "bytes_per_step": round(size / len(steps), 1)}

    def run(self) -> dict[str, float]:
        """Return transitions a second."""
        calls, took = repeat(lambda: self.buffer.sample(self.batch_size), self.seconds)
        return {"transitions_per_second": calls * self.batch_size / took}
