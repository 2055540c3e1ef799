"""A short form of planted.py: each fault and the cheapest suite that ought to catch it, each suite once without."""

from __future__ import annotations

import pytest

from tests.torture import planted, shim

CHEAP = [name for name, fault in planted.FAULTS.items() if fault.suites[0] in {"life", "order"}]


@pytest.mark.skipif(shim.missing() is not None, reason=str(shim.missing()))
def test_planted_faults_are_caught_and_nothing_else():
    """The faults that the cheapest suites see; the others take longer and belong to `make torture`."""
    outcomes = planted.campaign(CHEAP)
    assert [str(outcome) for outcome in outcomes if outcome.bad] == []
    assert len({outcome.fault for outcome in outcomes} - {""}) == len(CHEAP)
