"""What a segment's rows tell of its episodes, to compare with, or to make anew, what the index says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.storage import layout
from diskreplay.storage.fields import EPISODE, IS_LAST, REWARD, TERMINATED, TRUNCATED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from diskreplay.storage.tail import Tail

OUTCOMES = layout.TERMINATED | layout.TRUNCATED | layout.INTERRUPTED
RETURNS_AGREE = 1e-6


@dataclass(frozen=True)
class Run:
    """The episode that goes on after some rows.

    Attributes:
        first_step_id: Its first step's; -1: none goes on.
        steps, total, weight: Of its rows that are here: how many, the sum of rewards and of their sizes.
        whole: Whether all of its rows are here.
        terminated, truncated: Of its newest row.
    """

    first_step_id: int = -1
    steps: int = 0
    total: float = 0.0
    weight: float = 0.0
    whole: bool = True
    terminated: bool = False
    truncated: bool = False


@dataclass
class Told:
    """What rows tell.

    Attributes:
        episodes: (n,) EPISODE: those that end in the rows.
        whole: (n,) whether all rows of each are here, so that its length and return are known.
        known: (n,) whether the row before its last is here, so that it is known how it ended.
        weights: (n,) sum of its rewards' sizes.
        after: The episode that goes on behind them.
        wrong: Contradictions among the rows, in words.
    """

    episodes: NDArray[Any]
    whole: NDArray[np.bool_]
    known: NDArray[np.bool_]
    weights: NDArray[np.float64]
    after: Run
    wrong: list[str]


def tell(first_row_id: int, columns: Mapping[str, NDArray[Any]], before: Run | None, *, cut: bool) -> Told:
    """Find the episodes in rows.

    Args:
        first_row_id: Step id of the first row.
        columns: (R,) each: is_last, episode, reward, terminated, truncated.
        before: The episode that goes on where the rows begin; None: the rows before are gone.
        cut: Whether the last row ends its episode although it is not marked.
    """
    rows = len(columns[IS_LAST])
    ends = np.flatnonzero(columns[IS_LAST])
    if cut and (not len(ends) or ends[-1] != rows - 1):
        ends = np.append(ends, rows - 1)
    head = int(columns[EPISODE][0])
    run, wrong = _head(first_row_id, head, before)
    wrong += _contradictions(first_row_id, columns, ends, cut=cut)
    ended, stopped, reward = columns[TERMINATED], columns[TRUNCATED], columns[REWARD].astype(np.float64)
    starts, stops = np.concatenate([[0], ends + 1]), np.append(ends, rows)  # rows [start, stop) of a block are steps
    reward[ends] = 0.0  # of no step
    # Each episode by itself: differences of running sums would lose a small return behind a large one.
    totals, weights = (np.add.reduceat(np.append(values, 0.0), starts) for values in (reward, np.abs(reward)))
    steps = stops - starts
    steps[0] += run.steps
    totals[0] += run.total
    weights[0] += run.weight
    count = len(ends)
    episodes = np.zeros(count, layout.EPISODE)
    whole, known = np.ones(count, np.bool_), np.ones(count, np.bool_)
    if count:
        episodes["first_step_id"], episodes["end_row"] = first_row_id + starts[:-1], ends
        episodes["first_step_id"][0] = head
        episodes["length"], episodes["episode_return"] = steps[:-1], totals[:-1]
        whole[0] = run.whole
        before_end = np.maximum(ends - 1, 0)
        over, off = ended[before_end], stopped[before_end]
        if ends[0] == 0:
            over[0], off[0] = run.terminated, run.truncated
            known[0] = run.steps > 0
        episodes["flags"] = np.where(over, layout.TERMINATED, np.where(off, layout.TRUNCATED, layout.INTERRUPTED))
        if cut:
            episodes["flags"][-1] = layout.INTERRUPTED | layout.CUT
    after = Run()
    if not count or ends[-1] != rows - 1:
        after = Run(
            int(columns[EPISODE][-1]), int(steps[-1]), float(totals[-1]), float(weights[-1]),
            run.whole if not count else True, bool(ended[-1]), bool(stopped[-1]),
        )  # fmt: skip
    return Told(episodes, whole, known, weights[:count], after, wrong)


def _head(first_row_id: int, head: int, before: Run | None) -> tuple[Run, list[str]]:
    """Return the episode that row 0 belongs to, as far as it lies before, and what is wrong with that."""
    fresh = head == first_row_id
    if head < 0 or head > first_row_id:
        return Run(head, whole=False), [f"row 0 belongs to episode {head}"]
    if fresh or before is None:
        going_on = fresh and before is not None and before.first_step_id >= 0
        wrong = ["row 0 begins an episode, but another goes on before it"] if going_on else []
        return Run(head, whole=fresh), wrong
    if head != before.first_step_id:
        return before, [f"row 0 belongs to episode {head}, the rows before to {before.first_step_id}"]
    return before, []


def follows(first_row_id: int, head: int, before: Run) -> bool:
    """Return whether rows whose first is of episode `head` can come behind those before, all of which are here."""
    return not _head(first_row_id, head, before)[1]


def _contradictions(
    first_row_id: int, columns: Mapping[str, NDArray[Any]], ends: NDArray[np.int64], *, cut: bool
) -> list[str]:
    """Say in which way rows contradict each other, the last rows of episodes being `ends`."""
    owner, reward, rows, wrong = columns[EPISODE], columns[REWARD], len(columns[EPISODE]), []
    outcome = columns[TERMINATED] | columns[TRUNCATED]
    marked = ends[:-1] if cut else ends
    begins = np.concatenate([owner[:1], first_row_id + ends + 1])
    expected = np.repeat(begins, np.diff(np.concatenate([[0], ends + 1, [rows]])))
    if not np.array_equal(owner, expected):
        at = int(np.flatnonzero(owner != expected)[0])
        wrong.append(f"row {at} belongs to episode {int(owner[at])}, not {int(expected[at])}")
    if not np.isfinite(reward).all():
        wrong.append(f"the reward of row {int(np.flatnonzero(~np.isfinite(reward))[0])} is not finite")
    goes_on = np.ones(rows, np.bool_)
    goes_on[ends] = goes_on[rows - 1] = False
    goes_on[np.maximum(marked - 1, 0)] = False
    early = np.flatnonzero(goes_on & outcome)
    if len(early):
        wrong.append(f"row {int(early[0])} ends its episode, but steps follow")
    if outcome[marked].any() or reward[marked].any():
        wrong.append("an episode's last row has a reward or an outcome")
    return wrong


def differences(stored: NDArray[Any], told: Told) -> list[str]:
    """Say in which way the index's episodes are not those that the rows tell of."""
    found = told.episodes
    if not np.array_equal(stored["end_row"], found["end_row"]):
        return ["is_last and the episodes differ"]
    wrong = []
    if not np.array_equal(stored["first_step_id"], found["first_step_id"]):
        wrong.append("the episodes begin at other steps than the rows say")
    lengths, whole = stored["length"], told.whole
    if (lengths[whole] != found["length"][whole]).any() or (lengths < found["length"]).any():
        wrong.append("an episode has another length than its rows")
    off = np.abs(stored["episode_return"] - found["episode_return"]) > RETURNS_AGREE * (1.0 + told.weights)
    if (off & whole).any() or not np.isfinite(stored["episode_return"]).all():
        wrong.append("an episode's return is not the sum of its rewards")
    outcome = stored["flags"] & OUTCOMES
    if (outcome != found["flags"] & OUTCOMES)[told.known].any() or not np.isin(outcome, (1, 2, 4)).all():
        wrong.append("an episode ended in another way than its rows say")
    return wrong


def is_cut(episodes: NDArray[Any], rows: int) -> bool:
    """Return whether the last row ends its episode only because what followed is gone."""
    return bool(len(episodes) and episodes[-1]["flags"] & layout.CUT and episodes[-1]["end_row"] == rows - 1)


def of_tail(tail: Tail, before: Run | None) -> Told:
    """Find the episodes in the rows of a tail that has any."""
    columns = {name: tail.arrays[name][: tail.rows] for name in (IS_LAST, EPISODE, REWARD, TERMINATED, TRUNCATED)}
    return tell(tail.first_step_id, columns, before, cut=is_cut(tail.episodes[: tail.n_ends], tail.rows))


def tail_differences(tail: Tail, told: Told, *, newest: bool) -> list[str]:
    """Say in which way a tail's episodes are not those that its rows tell of.

    Args:
        tail: The tail.
        told: From `of_tail`.
        newest: Whether it is its stream's newest: then so is the running episode's state. That of an older tail may
            count the steps behind it.
    """
    wrong = [*told.wrong, *differences(tail.episodes[: tail.n_ends], told)]
    if not newest:
        return wrong
    run, after = tail.running, told.after
    first = after.first_step_id
    if first < 0 and tail.pending:
        first = tail.first_step_id + tail.rows
    off = abs(run.episode_return - after.total) > RETURNS_AGREE * (1.0 + after.weight)
    length = run.length != after.steps if after.whole else run.length < after.steps
    if run.first_step_id != first or length or (off and after.whole):
        wrong.append("its running episode is another one than its rows say")
    return wrong
