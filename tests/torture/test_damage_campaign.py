"""A short form of damage.py: some of every kind of file, nothing wrong served, nothing died, verify names it."""

from __future__ import annotations

from tests.torture import damage


def test_nothing_wrong_is_served_from_a_damaged_store():
    trials = damage.campaign(range(60), seed=1)
    assert {trial.file for trial in trials} >= {"shard", "array", "index"}
    assert [str(trial) for trial in trials if trial.bad] == []
    assert sum(trial.outcome == "refused" for trial in trials) > 10


def test_an_examination_sees_what_is_wrong(monkeypatch):
    """The truth changed instead of the store: the campaign must not call that right."""
    original = damage.build

    def build(folder, compression):
        base = original(folder, compression)
        for truth in base.truths.values():
            truth.columns["plain reward "][:] += 1
        return base

    monkeypatch.setattr(damage, "SEEDS", {"zstd": damage.SEEDS["zstd"]})
    monkeypatch.setattr(damage, "build", build)
    assert "wrong" in {trial.outcome for trial in damage.campaign(range(6), seed=2)}
