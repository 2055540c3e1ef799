"""`diskreplay train`: learn from a store."""

# ruff: noqa: D301, PLC0415 - click reads \b; a command imports what it needs when it runs

from __future__ import annotations

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
    require_outside,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from diskreplay.learning import TrainConfig, TrainReport
    from diskreplay.store import ReplayStore

NO_EVALUATION = "none"
SHARE = click.FloatRange(0, 1)
POSITIVE = click.IntRange(min=1)
COUNT = click.IntRange(min=0)
RATE = click.FloatRange(min=0, min_open=True)
WEIGHT = click.FloatRange(min=0)

# Option, TrainConfig's name for it, type, help. Defaults depend on the observations: None here.
OPTIONS: tuple[tuple[str, str, Any, str], ...] = (
    ("--updates", "updates", POSITIVE, "Gradient steps in total, over all resumed runs."),
    ("--seed", "seed", COUNT, "Decides the network's start, the batches and the evaluations."),
    ("--batch-size", "batch_size", POSITIVE, "Transitions in a batch."),
    ("--n-step", "n_step", POSITIVE, "Rewards summed before bootstrapping."),
    ("--gamma", "gamma", SHARE, "Discount per step."),
    ("--frame-stack", "frame_stack", POSITIVE, "Observations seen at once."),
    ("--lr", "learning_rate", RATE, "Learning rate at the first update."),
    ("--final-lr", "final_learning_rate", WEIGHT, "Learning rate at the last update."),
    ("--target-period", "target_every", POSITIVE, "Updates between copies to the target network."),
    ("--grad-clip", "grad_clip", RATE, "Largest norm of the gradient."),
    ("--loss", "huber", click.Choice(["huber", "mse"]), "Loss of the TD error."),
    ("--double/--no-double", "double", None, "Double DQN."),
    ("--dueling/--no-dueling", "dueling", None, "Separate value and advantages."),
    ("--rescale/--no-rescale", "rescale", None, "Learn rescaled values, for rewards of any size."),
    ("--cql", "cql_alpha", WEIGHT, "Weight of the conservative term; 0 leaves it out."),
    ("--sampler", "prioritized", click.Choice(["per", "uniform"]), "How batches are drawn."),
    ("--alpha", "alpha", SHARE, "Exponent of the priorities."),
    ("--beta", "beta", SHARE, "Importance exponent at the first update; rises to 1."),
    ("--eval-every", "eval_every", COUNT, "Updates between evaluations; 0: at the end alone."),
    ("--eval-episodes", "eval_episodes", COUNT, "Greedy episodes of an evaluation."),
    ("--eval-max-steps", "eval_max_steps", POSITIVE, "Steps after which it cuts an episode off."),
    ("--checkpoint-every", "checkpoint_every", POSITIVE, "Updates between checkpoints."),
    ("--log-every", "log_every", POSITIVE, "Updates between lines of metrics.jsonl."),
    ("--prefetch", "prefetch", POSITIVE, "Batches drawn and read ahead."),
    ("--on-corruption", "on_corruption", click.Choice(["raise", "skip"]), "Damage met: end, or leave the segment out."),
    ("--device", "device", str, "Where the network is: cpu or cuda."),
    ("--tensorboard/--no-tensorboard", "tensorboard", None, "Write TensorBoard events."),
)
METAVARS = {click.IntRange: "N", click.FloatRange: "X"}
MEANINGS = {"huber": True, "mse": False, "per": True, "uniform": False}


class _SaysDefaults(click.Command):
    """A command whose help says TrainConfig's defaults, which are not imported before."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options and their defaults."""
        from diskreplay.learning.config import IMAGE_DEFAULTS, TrainConfig

        plain = TrainConfig()
        names = {name for _, name, _, _ in OPTIONS}
        options = [param for param in self.params if isinstance(param, click.Option) and param.name in names]
        before = [option.help for option in options]
        for option in options:
            value = getattr(plain, str(option.name))
            shown, images = (_shown(option, v) for v in (value, IMAGE_DEFAULTS.get(str(option.name), value)))
            option.help = f"{option.help}  [default: {shown}{f'; images: {images}' if images != shown else ''}]"
        super().format_options(ctx, formatter)
        for option, text in zip(options, before, strict=True):
            option.help = text


def _shown(option: click.Option, value: Any) -> str:
    if isinstance(option.type, click.Choice) and isinstance(value, bool):
        return str(next(choice for choice in option.type.choices if MEANINGS[choice] is value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for flags, name, kind, text in reversed(OPTIONS):
        metavar = METAVARS.get(type(kind))
        option = click.option(flags, name, type=kind, default=None, metavar=metavar, help=text)
        function = option(function)
    return function


@click.command(cls=_SaysDefaults)
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Folder of the run: checkpoint, metrics.jsonl, curve.png, TensorBoard events.",
)
@click.option("--resume", is_flag=True, help="Go on from DIR's checkpoint; from the start if it has none.")
@click.option(
    "--eval-env",
    metavar="ID",
    help="Environment to evaluate in; 'none' for no evaluation.  [default: the store's]",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help='Most memory to keep rows in, such as "8GB".  [default: a 16th of the machine\'s]',
)
@_config_options
@json_option
@quiet_option
def train(
    store: Path,
    *,
    out: Path,
    resume: bool,
    eval_env: str | None,
    memory: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a deep Q-network offline, on STORE alone.

    Defaults depend on the observations: a small network for vectors, Rainbow's settings for images.
    Priorities are kept in STORE, in place of those that were there under the sampler's default name.
    Ctrl-C writes a checkpoint; the same command with --resume goes on from it.

    \b
    Example:
        diskreplay train cartpole.replay --out runs/cartpole --seed 0
        diskreplay train breakout.replay --out runs/breakout --updates 500000 --device cuda --resume
    """
    from diskreplay.ingest import make_env
    from diskreplay.learning import train as learn
    from diskreplay.storage.creation import parse_memory
    from diskreplay.store import ReplayStore

    given = {name: MEANINGS.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
    if eval_env == NO_EVALUATION:
        given["eval_episodes"] = 0
    elif eval_env is not None:
        make_env(eval_env).close()  # says what is wrong with it before the first update
        given["eval_env"] = eval_env
    require_outside(store, "--out", out, "folder")
    try:
        keep = parse_memory(memory)
    except ValueError as err:
        raise click.UsageError(str(err)) from err
    with ReplayStore.open(store, mode="a", memory=keep) as opened:
        report = learn(
            opened,
            out,
            _config(opened, given, out if resume else None),
            resume=resume,
            env_factory=lambda env_id, seed: make_env(env_id),  # noqa: ARG005 - reset() takes it
            progress=not quiet and sys.stderr.isatty(),
        )
    if as_json:
        emit_json(report.to_json())
    else:
        emit_text(_summary(report, out))
    if report.interrupted:
        note(f"Interrupted: {report.updates:,} updates are kept in {out}; go on with --resume.")
        sys.exit(EXIT_ERROR)


def _config(store: ReplayStore, given: dict[str, Any], resumed: Path | None) -> TrainConfig:
    """Build the run's options; those not given are the checkpoint's, or the defaults."""
    from diskreplay.learning import TrainConfig, read_checkpoint
    from diskreplay.learning.checkpoint import committed_run, standing

    try:
        config = TrainConfig.for_spec(store.spec, **given)
        path = None if resumed is None else standing(resumed, committed_run(store.metadata))
        if path is None:
            return config
        chosen = {name: value for name, value in given.items() if value is not None}
        found = read_checkpoint(path)
        if "eval_env" in chosen and not found.config.eval_episodes:
            chosen.setdefault("eval_episodes", config.eval_episodes)  # it was started with --eval-env none
        return found.config_with(chosen, path)
    except ValueError as err:
        raise click.UsageError(str(err)) from err


def _summary(report: TrainReport, out: Path) -> str:
    learned = "not evaluated"
    if report.eval_return_mean is not None:
        episodes = len(report.eval_returns)
        learned = f"mean greedy return {report.eval_return_mean:.4g} over {episodes} episodes"
    skipped = len(report.quarantined)
    left_out = f"; {skipped} damaged segment{'s' * (skipped != 1)} left out" if skipped else ""
    return (
        f"{report.updates:,} updates in {out}: {learned}; "
        f"{report.updates_per_second:,.0f} updates/s, "
        f"{report.data_wait_share:.1%} of the time waiting for data{left_out}"
    )
