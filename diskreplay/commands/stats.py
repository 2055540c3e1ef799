"""`diskreplay stats`: say what a store holds."""

# ruff: noqa: D301, PLC0415 - click reads \b; a command imports what it needs when it runs

from __future__ import annotations

from pathlib import Path

import click

from diskreplay.commands.output import emit_json, emit_text, json_option, note, require_outside


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@json_option
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also draw returns, lengths, rewards, actions and priorities into a PNG.",
)
def stats(store: Path, as_json: bool, plot: Path | None) -> None:
    """Say what STORE holds.

    Counts of steps and episodes, sizes on disk, rewards, returns, lengths and priorities.

    \b
    Example:
        diskreplay stats cartpole.replay
        diskreplay stats cartpole.replay --json --plot cartpole.png
    """
    from diskreplay.report import plot_stats, stats_table
    from diskreplay.store import ReplayStore

    if plot is not None:
        require_outside(store, "--plot", plot, "file")
    with ReplayStore.open(store) as opened:
        summary = opened.stats().to_json()
        if as_json:
            emit_json(summary)
        else:
            emit_text(stats_table(summary))
        if plot is not None:
            note(f"plot: {plot_stats(opened, plot)}")
