"""`diskreplay ingest`: bring steps into a store."""

# ruff: noqa: D301, PLC0415 - click reads \b; a command imports what it needs when it runs

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diskreplay.commands.output import (
    EXIT_ERROR,
    emit_json,
    emit_text,
    json_option,
    note,
    quiet_option,
    stop_on_signals,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from diskreplay.ingest import IngestReport

GYM_STEPS = 10_000
RANDOM = "random"
POSITIVE = click.IntRange(min=1)
MOST_ENVS = 10_000
GYM_ONLY = ("policy", "epsilon", "num_envs", "parallel", "seed")
NPZ_ONLY = ("renamed", "env_id")


def _columns(ctx: click.Context, param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    """Parse NAME=COLUMN."""
    del ctx, param
    parsed = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not (name and equals and column):
            raise click.BadParameter(f"{pair!r} is not NAME=COLUMN")
        parsed[name] = column
    return parsed


def _probability(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """Refuse NaN, which is out of no range."""
    del ctx, param
    if math.isnan(value):
        raise click.BadParameter("nan is not in the range 0<=x<=1.")
    return value


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("source")
@click.option(
    "--steps",
    type=POSITIVE,
    metavar="N",
    help=f"Steps this call adds: {GYM_STEPS:,} for gym, all of the file for npz by default.",
)
@click.option(
    "--policy",
    default=RANDOM,
    show_default=True,
    metavar="random|PATH",
    help="Who acts: chance, or the checkpoint of a training run (a file or its folder).",
)
@click.option(
    "--epsilon",
    type=click.FloatRange(0, 1),
    callback=_probability,
    metavar="X",
    default=0.05,
    show_default=True,
    help="Probability of a random action, where a checkpoint acts.",
)
@click.option(
    "--num-envs",
    type=click.IntRange(1, MOST_ENVS),
    metavar="N",
    default=4,
    show_default=True,
    help="Environments, one stream each.",
)
@click.option("--async", "parallel", is_flag=True, help="Run each environment in a process of its own.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Repeat a recording; drawn by default.")
@click.option(
    "--map",
    "renamed",
    multiple=True,
    callback=_columns,
    metavar="NAME=COLUMN",
    help="npz: which array of the file is NAME, such as observations=obs.",
)
@click.option("--env-id", metavar="ID", help="npz: the Gymnasium environment the data come from.")
@click.option(
    "--capacity",
    metavar="N|SIZE",
    help="New store: most transitions it keeps, or most bytes, such as 200GB.",
)
@click.option(
    "--compression",
    "--codec",
    type=click.Choice(["auto", "zstd", "lz4", "lz4hc", "none"]),
    help="New store: how large fields are compressed.  [default: auto]",
)
@click.option(
    "--chunk-steps",
    type=POSITIVE,
    metavar="N",
    help="New store: steps a chunk of observations; a power of 2 by custom.  [default: measured]",
)
@click.option(
    "--durability",
    type=click.Choice(["power", "process"]),
    help="New store: what commits survive; 'process' is faster, but a power cut may lose them.  [default: power]",
)
@click.option("--segment-steps", type=POSITIVE, metavar="N", help="New store: steps per segment.")
@click.option(
    "--commit-every",
    type=POSITIVE,
    metavar="N",
    default=5_000,
    show_default=True,
    help="Commit after so many steps; also every few seconds.",
)
@click.option("--seal/--no-seal", default=True, help="Turn everything into segments at the end.")
@json_option
@quiet_option
@click.pass_context
def ingest(ctx: click.Context, /, store: Path, source: str, **options: Any) -> None:
    """Add steps of SOURCE to STORE, which is made if there is none.

    SOURCE is gym:ID, a Gymnasium environment to act in, or npz:FILE, a numpy archive of episodes.
    Atari games are recorded with frame skip 4 as single grey frames of 84x84. Calling it again
    adds --steps more of an environment; of a file, what it has beyond the last call's. Ctrl-C
    commits what is there.

    An npz file holds arrays of N steps, episode after episode: observations, actions, rewards,
    terminations (or terminals) and perhaps truncations (or timeouts). Observations have one more
    row an episode, its last one; or as many as steps, with next_observations if there are any.

    \b
    Example:
        diskreplay ingest cartpole.replay gym:CartPole-v1 --steps 50000 --seed 0
        diskreplay ingest breakout.replay gym:ALE/Breakout-v5 --policy runs/breakout --epsilon 0.1
        diskreplay ingest logs.replay npz:episodes.npz --map observations=obs
    """
    from diskreplay.ingest import parse_source

    parsed = parse_source(source)
    run = {"gym": _ingest_gym, "npz": _ingest_npz}[parsed.scheme]
    _refuse(ctx, parsed.scheme, NPZ_ONLY if parsed.scheme == "gym" else GYM_ONLY)
    as_json, quiet = options.pop("as_json"), options.pop("quiet")
    with stop_on_signals() as stop:
        report = run(store, parsed.target, options, progress=not quiet, stop=stop)
    for sentence in report.notes:
        note(f"Note: {sentence}.")
    if as_json:
        emit_json(report.to_json())
    elif not report.interrupted:
        emit_text(_summary(report))
    if report.interrupted:
        note(f"Interrupted: the {report.steps:,} new steps are kept in {report.path}.")
        sys.exit(EXIT_ERROR)


def _ingest_gym(
    store: Path,
    env_id: str,
    options: dict[str, Any],
    *,
    progress: bool,
    stop: Callable[[], bool],
) -> IngestReport:
    from diskreplay.ingest import ingest_gym

    chosen = options.pop("policy")
    policy = None
    if chosen != RANDOM:
        from diskreplay.learning import load_policy

        policy = load_policy(chosen)
    for name in NPZ_ONLY:
        options.pop(name)
    options["steps"] = options["steps"] or GYM_STEPS
    return ingest_gym(store, env_id, policy=policy, policy_name=chosen, progress=progress, stop=stop, **options)


def _ingest_npz(
    store: Path,
    file: str,
    options: dict[str, Any],
    *,
    progress: bool,
    stop: Callable[[], bool],
) -> IngestReport:
    from diskreplay.ingest import ingest_npz

    for name in GYM_ONLY:
        options.pop(name)
    columns = options.pop("renamed")
    return ingest_npz(store, file, columns=columns, progress=progress, stop=stop, **options)


def _refuse(ctx: click.Context, scheme: str, names: tuple[str, ...]) -> None:
    """Refuse options that mean nothing for a source, rather than overlook them."""
    for param in ctx.command.params:
        given = ctx.get_parameter_source(param.name or "")
        if param.name in names and given is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{param.opts[0]} has no meaning for {scheme}: sources.", ctx)


def _summary(report: IngestReport) -> str:
    mean = "" if report.mean_return is None else f", mean return {report.mean_return:.4g}"
    seed = "" if report.seed is None else f", seed {report.seed}"
    return (
        f"{report.steps:,} steps of {report.source} added to {report.path}: "
        f"{report.episodes:,} finished episode{'s' * (report.episodes != 1)}{mean}; "
        f"{report.seconds:.1f} s, {report.steps_per_second:,.0f} steps/s{seed}"
    )
