"""`diskreplay verify`: say whether a store is sound."""

# ruff: noqa: D301, PLC0415 - click reads \b; a command imports what it needs when it runs

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diskreplay.commands.output import (
    EXIT_FINDINGS,
    ByteBar,
    emit_json,
    emit_text,
    json_option,
    quiet_option,
    text_table,
)

if TYPE_CHECKING:
    from diskreplay.storage.upkeep.verify import Verification


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Read no file's contents: the index, and which files there are.")
@json_option
@quiet_option
def verify(store: Path, *, quick: bool, as_json: bool, quiet: bool) -> None:
    """Compare every byte of STORE with what was committed.

    Changes nothing, and may run while others write. Exit status 3 if something is wrong or lost.
    Files that nothing names are listed too; by them alone nothing is lost, and the status is 0.

    \b
    Example:
        diskreplay verify cartpole.replay
        diskreplay verify cartpole.replay --quick --json
    """
    from diskreplay.storage.upkeep.verify import verify_path

    with ByteBar("verify", visible=not quiet) as bar:
        found = verify_path(store, quick=quick, progress=bar)
    if as_json:
        emit_json(found.to_json())
    else:
        emit_text(_report(found, quick=quick))
    if not found.sound:
        sys.exit(EXIT_FINDINGS)


def _report(found: Verification, *, quick: bool) -> str:
    from diskreplay.report.table import format_bytes

    problems = found.problems
    lines = []
    if problems:
        rows = [(problem.kind, problem.where, problem.what) for problem in problems]
        lines += [text_table(("kind", "where", "what"), rows), ""]
    wrong = sum(not problem.harmless for problem in problems)
    if wrong:
        lines.append(f"{found.path}: {wrong:,} problem{'s' * (wrong != 1)}; see `diskreplay repair`.")
    else:
        lines.append(f"{found.path}: nothing is wrong.")
    if len(problems) > wrong:
        count = len(problems) - wrong
        lines.append(f"{count:,} file{'s' * (count != 1)} that nothing names; nothing is lost by that.")
    if quick:
        lines.append(f"Looked at the index and the files' lengths in {found.seconds:.1f} s; read no file.")
    else:
        speed = found.bytes / max(found.seconds, 1e-9) / 1e9
        lines.append(f"Read {format_bytes(found.bytes)} in {found.seconds:.1f} s, {speed:.2f} GB/s.")
    return "\n".join(lines)
