"""A measured figure against what it should be: ratios within rounds, or limits."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Case = dict[str, Any]
LESS_IS_BETTER = ("seconds", "bytes", "share")


@dataclass(frozen=True)
class Verdict:
    """One row of the table of goals. `met` is None where a contestant did not run."""

    work: str
    beside: str
    goal: str
    measured: str
    met: bool | None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


def samples(case: Case, contestant: str, measure: str) -> list[float]:
    """Return a contestant's samples of a measure, one a round; none if it did not run."""
    rounds = case["contestants"].get(contestant, {}).get("samples", [])
    return [float(sample[measure]) for sample in rounds if measure in sample]


def median(case: Case, contestant: str, measure: str) -> float | None:
    """Return the median over the rounds."""
    values = samples(case, contestant, measure)
    return statistics.median(values) if values else None


def ratios(case: Case, ours: str, beside: str, measure: str) -> list[float]:
    """Return how many times better ours is, round by round: what slows the machine then slows both."""
    less = measure.endswith(LESS_IS_BETTER)
    pairs = zip(samples(case, ours, measure), samples(case, beside, measure), strict=False)
    return [(theirs / mine if less else mine / theirs) for mine, theirs in pairs if mine > 0 and theirs > 0]


def at_least(case: Case, work: str, ours: str, beside: str, measure: str, least: float) -> Verdict:
    """Judge how many times better ours is than a rival."""
    return _by_ratio(
        case, (work, beside, f"at least {least:g}x"), (ours, beside, measure), lambda ratio: ratio >= least
    )


def slower_below(
    case: Case, work: str, small: str, large: str, measure: str, most: float, *, beside: str = "diskreplay itself"
) -> Verdict:
    """Judge how many times slower one of ours is than a smaller one."""
    what = work, beside, f"below {most:g}x"
    return _by_ratio(case, what, (small, large, measure), lambda ratio: ratio < most)


def _by_ratio(
    case: Case, what: tuple[str, str, str], compared: tuple[str, str, str], meets: Callable[[float], bool]
) -> Verdict:
    ours, beside, measure = compared
    found = ratios(case, ours, beside, measure)
    if not found:
        return Verdict(*what, why_not(case, ours, beside), None)
    middle = statistics.median(found)
    return Verdict(*what, f"{middle:.2f}x ({min(found):.2f} to {max(found):.2f})", meets(middle))


def below(work: str, beside: str, value: float | None, most: float, unit: str = "") -> Verdict:
    """Judge a figure that must stay below a limit."""
    goal = f"below {most:g}{unit}"
    if value is None:
        return Verdict(work, beside, goal, "did not run", None)
    return Verdict(work, beside, goal, f"{value:.3g}{unit}", value < most)


def size_ratio(case: Case, work: str, ours: str, beside: str, least: float) -> Verdict:
    """Judge how many times fewer bytes ours takes."""
    details = [case["contestants"].get(name, {}).get("details", {}).get("bytes") for name in (ours, beside)]
    goal = f"1/{least:g} of the bytes or less"
    if not all(details):
        return Verdict(work, beside, goal, why_not(case, ours, beside), None)
    found = details[1] / details[0]
    return Verdict(work, beside, goal, f"1/{found:.1f} ({details[0]:,} beside {details[1]:,})", found >= least)


def why_not(case: Case, *contestants: str) -> str:
    """Say why there is no figure."""
    for name in contestants:
        entry = case["contestants"].get(name, {})
        if not entry.get("samples"):
            return f"{name}: {entry.get('skipped') or entry.get('failed') or 'did not run'}"
    return "nothing to compare"


def find(cases: Sequence[Case], name: str) -> Case:
    """Return a case by its name; one without contestants if it did not run."""
    return next((case for case in cases if case["name"] == name), {"name": name, "contestants": {}})
