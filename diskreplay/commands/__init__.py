"""The command line: parse options, call one function, print what it returns.

Importing this floor costs click and nothing else; each command imports what it needs when it runs.
"""

# ruff: noqa: D301 - click reads \b

from __future__ import annotations

import click

from diskreplay.commands.backup import backup
from diskreplay.commands.ingest import ingest
from diskreplay.commands.output import CommandGroup, print_version
from diskreplay.commands.repair import repair
from diskreplay.commands.stats import stats
from diskreplay.commands.train import train
from diskreplay.commands.verify import verify

__all__ = ["main"]


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Keep reinforcement-learning steps on disk, and learn from them by priority.

    \b
    Example:
        diskreplay ingest cartpole.replay gym:CartPole-v1 --steps 50000
        diskreplay train cartpole.replay --out runs/cartpole
        diskreplay stats cartpole.replay --plot cartpole.png
    """


for command in (ingest, train, stats, verify, repair, backup):
    main.add_command(command)
