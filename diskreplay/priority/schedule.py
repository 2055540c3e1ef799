"""Owns values that change with the number of updates, such as beta; not who uses them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LinearSchedule:
    """Go from `start` at 0 to `end` at `steps` in a straight line, then stay there.

    So beta is annealed to 1 in Schaul et al. 2016 (arXiv:1511.05952), section 3.4.

    Args:
        start: Value at 0 and before.
        end: Value at `steps` and after.
        steps: Length of the line, in the unit that it is called with; at least 1.

    >>> beta = LinearSchedule(0.4, 1.0, steps=100)
    >>> beta(0), beta(50), beta(1000)
    (0.4, 0.7, 1.0)
    """

    start: float
    end: float
    steps: int

    def __init__(self, start: float, end: float, *, steps: int) -> None:
        if not (math.isfinite(start) and math.isfinite(end)):
            raise ValueError(f"start and end must be finite, not {start}, {end}.")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}.")
        object.__setattr__(self, "start", float(start))
        object.__setattr__(self, "end", float(end))
        object.__setattr__(self, "steps", int(steps))

    def __call__(self, t: float) -> float:
        """Return the value at t: `start` up to 0, exactly `end` from `steps` on."""
        if t <= 0:
            return self.start
        if t >= self.steps:
            return self.end
        share = t / self.steps
        return (1.0 - share) * self.start + share * self.end

    def to_json(self) -> dict[str, Any]:
        """Return start, end and steps as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LinearSchedule:
        """Make the schedule that `to_json` described."""
        return cls(values["start"], values["end"], steps=values["steps"])
