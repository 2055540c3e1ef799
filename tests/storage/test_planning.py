"""Finding the episode that a row belongs to, beside numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diskreplay.storage.planning_kernels import first_end_from


@st.composite
def ends_and_rows(draw):
    """Return ascending ends, and how many rows there are; lengths differ as much as they can."""
    lengths = draw(st.lists(st.sampled_from([1, 2, 3, 50, 100_000]), max_size=60))
    ends = np.cumsum(lengths, dtype=np.int64).astype(np.int32) - 1
    return ends, int(ends[-1]) + 1 + draw(st.integers(0, 1_000)) if len(ends) else draw(st.integers(1, 1_000))


@pytest.mark.parametrize("ranked", [0, 1])
@settings(deadline=None)  # the first call compiles
@given(found=ends_and_rows(), place=st.floats(0, 1), nudge=st.integers(-2, 2))
def test_the_first_end_from_a_row_is_the_one_numpy_finds(ranked, found, place, nudge):
    """Also where rows are counted without the episodes' last ones, and however far off the guess is."""
    ends, rows = found
    targets = [int(place * rows) + nudge, *(int(end) + nudge for end in ends[:8])]
    for row in (min(max(0, target), rows) for target in targets):
        expected = int(np.searchsorted(ends - ranked * np.arange(len(ends)), row, side="left"))
        assert first_end_from(ends.ctypes.data, len(ends), row, rows, ranked) == expected
