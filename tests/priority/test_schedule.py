"""LinearSchedule against the line it stands for."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskreplay.priority import LinearSchedule

FINITE = st.floats(-1e6, 1e6)


@given(start=FINITE, end=FINITE, steps=st.integers(1, 10**9), t=st.floats(-10, 2e9))
def test_value_lies_on_the_line(start, end, steps, t):
    """The value is start + t / steps * (end - start), with t clamped to [0, steps]."""
    share = min(max(t / steps, 0.0), 1.0)
    value = LinearSchedule(start, end, steps=steps)(t)
    assert value == pytest.approx(start + share * (end - start), rel=1e-12, abs=1e-9)
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9


def test_both_ends_are_exact():
    """At 0 and from `steps` on the value is the very number given."""
    beta = LinearSchedule(0.1, 0.7, steps=3)
    assert (beta(0), beta(3), beta(10**12)) == (0.1, 0.7, 0.7)


@given(start=FINITE, end=FINITE, steps=st.integers(1, 10**9))
def test_round_trip_through_json(start, end, steps):
    """What to_json says is JSON, and makes an equal schedule."""
    schedule = LinearSchedule(start, end, steps=steps)
    assert LinearSchedule.from_json(json.loads(json.dumps(schedule.to_json()))) == schedule


def test_frozen():
    """A schedule cannot be changed under the sampler that holds it."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        LinearSchedule(0.0, 1.0, steps=1).steps = 2


@pytest.mark.parametrize(
    ("start", "end", "steps", "message"),
    [
        (0.4, 1.0, 0, "steps must be at least 1, not 0"),
        (0.4, float("nan"), 5, "start and end must be finite"),
        (float("inf"), 1.0, 5, "start and end must be finite"),
    ],
)
def test_wrong_arguments(start, end, steps, message):
    """A line without a length or an end is refused."""
    with pytest.raises(ValueError, match=message):
        LinearSchedule(start, end, steps=steps)
