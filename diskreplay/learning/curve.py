"""The learning curve of a run as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes

NAME = "curve.png"
COLOURS = ("#1f5fa8", "#b5472f", "#5b7f3a")


def plot_curve(records: Sequence[dict[str, Any]], path: str | PathLike[str], *, title: str = "") -> Path:
    """Draw evaluation return, loss and data-wait share against updates, and write a PNG.

    Returns are drawn as their mean, with the middle half of the episodes dark and their range light.

    Args:
        records: Lines of metrics.jsonl, as `read_metrics` gives them.
        path: File to write.
        title: Heading.

    Returns:
        The path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    train = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    figure = Figure(figsize=(8, 8), layout="constrained")
    FigureCanvasAgg(figure)
    returns, loss, wait = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    _draw_returns(returns, evaluations)
    updates = [record["update"] for record in train]
    loss.plot(updates, [record["loss"] for record in train], color=COLOURS[1], linewidth=1)
    loss.set_ylabel("loss")
    if train and min(record["loss"] for record in train) > 0:
        loss.set_yscale("log")
    share = [100 * record["data_wait_share"] for record in train]
    wait.plot(updates, share, color=COLOURS[2], linewidth=1)
    wait.set_ylabel("waiting for data, %")
    wait.set_ylim(0, max([5.0, *share]) * 1.05)
    wait.set_xlabel("updates")
    for axes in (returns, loss, wait):
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    path = Path(path)
    figure.savefig(path, dpi=110)
    return path


def _draw_returns(axes: Axes, evaluations: Sequence[dict[str, Any]]) -> None:
    axes.set_ylabel("evaluation return")
    if not evaluations:
        axes.text(0.5, 0.5, "no evaluations", ha="center", transform=axes.transAxes)
        return
    updates = [record["update"] for record in evaluations]
    low, first, third, high = np.array(
        [np.percentile(record["eval_returns"], (0, 25, 75, 100)) for record in evaluations]
    ).T
    mean = [record["eval_return_mean"] for record in evaluations]
    axes.fill_between(updates, low, high, color=COLOURS[0], alpha=0.12, linewidth=0, label="range")
    axes.fill_between(updates, first, third, color=COLOURS[0], alpha=0.28, linewidth=0, label="middle half")
    axes.plot(updates, mean, color=COLOURS[0], marker="o", markersize=3, label="mean")
    axes.legend(frameon=False)
