"""`diskreplay backup`: copy a store that is in use."""

# ruff: noqa: D301, PLC0415 - click reads \b; a command imports what it needs when it runs

from __future__ import annotations

from pathlib import Path

import click

from diskreplay.commands.output import ByteBar, emit_json, emit_text, json_option, quiet_option


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@json_option
@quiet_option
def backup(store: Path, dest: Path, *, as_json: bool, quiet: bool) -> None:
    """Copy what is committed in STORE to DEST, a store of its own.

    STORE may be written meanwhile: the copy is of one moment. On the same file system shards are
    linked, so it takes next to no room; keep backups elsewhere too. Nothing may be at DEST yet.

    \b
    Example:
        diskreplay backup cartpole.replay /mnt/backup/cartpole-monday.replay
    """
    from diskreplay.report.table import format_bytes
    from diskreplay.store import ReplayStore

    with ReplayStore.open(store) as opened, ByteBar("backup", visible=not quiet) as bar:
        done = opened.backup(dest, progress=bar)
    if as_json:
        emit_json({"store": str(store), **done.to_json()})
    else:
        emit_text(
            f"{done.path}: {done.transitions:,} transitions in {done.segments:,} segments, {format_bytes(done.bytes)}; "
            f"{done.linked:,} files linked, {done.copied:,} copied; {done.seconds:.1f} s"
        )
