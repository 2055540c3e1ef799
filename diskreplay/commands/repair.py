"""`diskreplay repair`: cut a damaged store back to what is sound."""

# ruff: noqa: D301, PLC0415 - click reads \b; a command imports what it needs when it runs

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diskreplay.commands.output import (
    EXIT_ERROR,
    ByteBar,
    emit_json,
    emit_text,
    json_option,
    note,
    quiet_option,
    text_table,
)

if TYPE_CHECKING:
    from diskreplay.storage.upkeep.repair import RepairPlan


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="Do it; without, the plan is shown and a terminal is asked.")
@click.option(
    "--rebuild-index",
    is_flag=True,
    help="Make the index anew from the shards alone, where it cannot be read at all.",
)
@json_option
@quiet_option
def repair(store: Path, *, yes: bool, rebuild_index: bool, as_json: bool, quiet: bool) -> None:
    """Cut STORE back to the largest part of it that is sound.

    Says first what would leave the store. Nothing is deleted: it moves to lost+found/ in the store.
    Nobody else may have the store open. A backup that is sound is better than any repair.

    \b
    Example:
        diskreplay repair cartpole.replay
        diskreplay repair cartpole.replay --yes --json
    """
    from diskreplay.storage.upkeep.repair import Repaired, apply, plan_repair

    before: list[str] = []
    while True:
        with ByteBar("examine", visible=not quiet) as bar:
            plan = plan_repair(store, rebuild_index=rebuild_index, progress=bar)
        plan.notes[:0] = before
        _ask(plan, yes=yes, as_json=as_json)
        done = Repaired(plan) if plan.empty else apply(plan)
        if plan.meta_page is None:
            break
        before = list(plan.notes)
    if as_json:
        emit_json({**done.to_json(), "done": True})
    elif plan.empty and not before:
        emit_text(f"{plan.path}: nothing to repair.")
    else:
        if yes:
            emit_text(_plan(plan))
        emit_text(f"{plan.path}: repaired; what left the store is in {done.aside or plan.path / 'lost+found'}.")


def _ask(plan: RepairPlan, *, yes: bool, as_json: bool) -> None:
    """Show a plan that is to be confirmed, and end the program if it is not."""
    if not plan.empty and not yes:
        emit_text(_plan(plan)) if not as_json else emit_json({**plan.to_json(), "done": False})
        if as_json or not sys.stdin.isatty():
            note(f"Error: {plan.path}: nothing was changed")
            note("Hint: Pass --yes to do it.")
            sys.exit(EXIT_ERROR)
        click.confirm("Do it?", abort=True, err=True)


def _plan(plan: RepairPlan) -> str:
    lines = []
    if plan.losses:
        rows = [(loss.what, loss.stream, f"{loss.steps:,}" if loss.steps else "", loss.why) for loss in plan.losses]
        lines += [text_table(("leaves the store", "stream", "steps", "because"), rows), ""]
    lines += [f"- {text}" for text in plan.notes]
    if plan.moves:
        lines.append(f"- {len(plan.moves):,} file{'s' * (len(plan.moves) != 1)} set aside")
    lost = plan.mended.steps_lost
    lines.append(f"{plan.path}: {lost:,} step{'s' * (lost != 1)} lost.")
    return "\n".join(lines)
