"""Draw what a store holds: one PNG page of returns, lengths, rewards, actions and priorities."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from diskreplay.experience import ArraySpec
    from diskreplay.store import ReplayStore

    Blocks = Callable[[], Iterable[NDArray[Any]]]
    """Read a column block by block; called twice: for the range, then for the counts."""

INK = "#22577a"
ACCENT = "#c8553d"
GREY = "#6b7280"
LOG_RATIO = 50
"""Counts that differ more than this are drawn on a logarithmic axis."""
MIN_BINS, MAX_BINS = 12, 60
MAX_BARS = 200
"""Discrete actions that get a bar each; more share bins."""
WHOLE_LIMIT = 2**50
LARGEST = 1e300
"""Numbers beyond are drawn there: differences of larger ones overflow."""
FEW_BARS = 20
MAX_POINTS = 20_000
MAX_GROUPS = 50
GROUP_EPISODES = 10
MAX_LINES = 6


def plot_stats(store: ReplayStore, file: str | os.PathLike[str]) -> Path:
    """Draw a store's contents and write them as a PNG.

    Reads the small columns of the whole store, block by block; keeps histograms, not columns.

    Args:
        store: An open store.
        file: Where the picture goes; its folder is made if need be.

    Returns:
        The file's path.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second that only plots need

    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(13, 7.5), layout="constrained", dpi=110)
    draw_stats(store, figure)
    _save(figure, file)
    return file


def _save(figure: Figure, file: Path) -> None:
    """Write a picture beside what is there, and put it in its place: what is linked to that stays as it is."""
    if file.exists() and not file.is_file():
        figure.savefig(file, format="png")  # a pipe, say
        return
    partial_file = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        figure.savefig(partial_file, format="png")
        partial_file.replace(file)
    finally:
        partial_file.unlink(missing_ok=True)


def draw_stats(store: ReplayStore, figure: Figure) -> None:
    """Draw the six panels on a figure."""
    axes = figure.subplots(2, 3)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=GREY)
    env_id = store.metadata.get("env_id")
    title = f"{store.path.name}: {len(store):,} transitions, {store.num_episodes:,} episodes"
    figure.suptitle(f"{title}, {env_id}" if env_id else title, fontsize=12)
    episodes = store.episodes()
    returns, lengths = episodes.episode_return, episodes.length
    _returns_over_time(axes[0, 0], episodes)
    _histogram(axes[0, 1], lambda: [returns], "episode return", "episodes")
    _histogram(axes[0, 2], lambda: [lengths], "episode length (steps)", "episodes")
    _histogram(axes[1, 0], lambda: store.column("reward"), "reward", "steps")
    _actions(axes[1, 1], store)
    _histogram(axes[1, 2], lambda: _priorities(store), "priority", "transitions")


def _returns_over_time(axis: Axes, episodes: Any) -> None:
    _label(axis, "episode return over step ids", "step id", "return")
    returns, starts = episodes.episode_return, episodes.first_step_id
    if not len(returns):
        _say(axis, "no finished episodes yet")
        return
    order = np.argsort(starts, kind="stable")
    starts, returns = starts[order], returns[order]
    thin = max(1, -(-len(returns) // MAX_POINTS))
    axis.plot(starts[::thin], returns[::thin], ".", color=INK, markersize=3, alpha=0.35)
    groups = min(MAX_GROUPS, len(returns) // GROUP_EPISODES)
    if groups > 1:
        parts = np.array_split(np.arange(len(returns)), groups)
        middles = [starts[part].mean() for part in parts]
        means = [returns[part].mean() for part in parts]
        axis.plot(middles, means, color=ACCENT, lw=1.5, label="mean")
        axis.legend(fontsize=7, frameon=False)


def _histogram(axis: Axes, read: Blocks, name: str, what: str) -> None:
    _label(axis, name, name, what)
    edges = _edges(read)
    if edges is None:
        _say(axis, "no priorities yet" if name == "priority" else f"no {what} yet")
        return
    counts = _count(read, edges)
    axis.stairs(counts, edges, fill=True, color=INK)
    if len(counts) <= FEW_BARS and _unit_bins(edges):
        axis.set_xticks(edges[:-1] + 0.5)
    _scale_counts(axis, counts)


def _actions(axis: Axes, store: ReplayStore) -> None:
    """Draw how often each action was taken; one line per entry where actions are vectors."""
    _label(axis, "actions", "action", "steps")
    lines = 0
    for leaf in store.spec.action_leaves:
        size = int(np.prod(leaf.shape, dtype=np.int64))
        for entry in range(min(size, MAX_LINES - lines)):
            read = partial(_entry_blocks, store, leaf.name, entry)
            bars = leaf.kind == "discrete" and (leaf.n or 1) <= MAX_BARS
            edges = _discrete_edges(leaf) if bars else _edges(read)
            if edges is None or len(store) == 0:
                _say(axis, "no steps yet")
                return
            counts = _count(read, edges)
            lines += 1
            if bars and len(store.spec.action_leaves) == 1:
                axis.bar(edges[:-1] + 0.5, counts, color=INK, width=0.8)
                if len(counts) <= FEW_BARS:
                    axis.set_xticks(edges[:-1] + 0.5)
                _scale_counts(axis, counts)
                return
            axis.stairs(counts, edges, label=f"{leaf.name}[{entry}]" if size > 1 else leaf.name)
    axis.legend(fontsize=7, frameon=False)


def _priorities(store: ReplayStore) -> Iterator[NDArray[Any]]:
    for block in store.priorities():
        yield block[block >= 0]  # rows that cannot be sampled have none


def _entry_blocks(store: ReplayStore, field: str, entry: int) -> Iterator[NDArray[Any]]:
    for block in store.column(field):
        yield block.reshape(len(block), math.prod(block.shape[1:]))[:, entry]


def _discrete_edges(leaf: ArraySpec) -> NDArray[np.float64]:
    return np.arange(int(leaf.n or 1) + 1, dtype=np.float64) + (leaf.start - 0.5)


def _unit_bins(edges: NDArray[np.float64]) -> bool:
    """Tell whether every bin is one whole number."""
    return bool(edges[1] - edges[0] == 1 and edges[0] % 1 == 0.5)


def _edges(read: Blocks) -> NDArray[np.float64] | None:
    """Return bin edges that suit the values: whole numbers share a bin with their equals."""
    low, high, count, whole = np.inf, -np.inf, 0, True
    for block in map(_numbers, read()):
        if len(block):
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            count += len(block)
            whole = whole and bool((block == np.round(block)).all())
    if not count:
        return None
    bins = int(np.clip(np.sqrt(count), MIN_BINS, MAX_BINS))
    if whole and abs(low) < WHOLE_LIMIT and abs(high) < WHOLE_LIMIT:
        width = int(np.ceil((high - low + 1) / bins))
        return np.arange(low, high + width + 1, width, dtype=np.float64) - 0.5
    if low == high:
        spread = max(abs(low), 1.0) * 0.5
        return np.linspace(low - spread, high + spread, 4)
    return np.linspace(low, high, bins + 1)


def _count(read: Blocks, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    for block in map(_numbers, read()):
        counts += np.histogram(block, edges)[0]
    return counts


def _numbers(block: NDArray[Any]) -> NDArray[np.float64]:
    return np.clip(block.astype(np.float64), -LARGEST, LARGEST)


def _scale_counts(axis: Axes, counts: NDArray[np.int64]) -> None:
    present = counts[counts > 0]
    if len(present) and present.max() > LOG_RATIO * present.min():
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.5)


def _label(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x, fontsize=8, color=GREY)
    axis.set_ylabel(y, fontsize=8, color=GREY)


def _say(axis: Axes, words: str) -> None:
    axis.text(0.5, 0.5, words, ha="center", va="center", color=GREY, transform=axis.transAxes)
    axis.set_xticks([])
    axis.set_yticks([])
