"""The options of a training run, with defaults that were measured (vectors) or published (images)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

from diskreplay.learning.network import ACTIVATIONS, is_image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diskreplay.experience import StepSpec

FREE_TO_CHANGE = frozenset(
    {
        "updates",
        "log_every",
        "eval_env",
        "eval_every",
        "eval_episodes",
        "eval_envs",
        "eval_max_steps",
        "checkpoint_every",
        "tensorboard",
        "prefetch",
        "on_corruption",
        "device",
        "torch_threads",
    }
)
"""Options a resumed run may give anew; all others decide what is learned and must stay."""

IMAGE_DEFAULTS: dict[str, Any] = {
    "updates": 250_000,
    "batch_size": 32,
    "n_step": 3,
    "gamma": 0.99,
    "frame_stack": 4,
    "learning_rate": 6.25e-5,
    "final_learning_rate": 6.25e-5,
    "adam_eps": 1.5e-4,
    "target_every": 2_000,
    "huber": True,
    "alpha": 0.5,
    "hidden": (512,),
    "activation": "relu",
    "rescale": True,
    "eval_every": 25_000,
    "eval_episodes": 10,
    "eval_max_steps": 4_500,
    "checkpoint_every": 25_000,
    "log_every": 500,
    "torch_threads": None,
}
"""Rainbow's settings for Atari (Hessel et al. 2018, table 1): a target copied every 32,000 frames is one every
2,000 updates, since it updates once in four steps of four frames. But rewards are stored as the game gives
them, and a batch has their n-step sums, so values are rescaled where Rainbow clips each reward. An evaluation's
episodes end after 5 minutes of play (Machado et al. 2018, arXiv:1709.06009)."""


MOST_WHOLE = (1 << 63) - 1
MOST = {"n_step": 1 << 16, "frame_stack": 1 << 16, "batch_size": 1 << 24, "prefetch": 1 << 10, "seed": (1 << 64) - 1}
"""Largest whole numbers: what windows, samplers and torch's generator take; all batches drawn ahead are in memory."""
MOST_THREADS, MOST_LAYERS = 1 << 10, 100
OPTIONAL = {"eval_env": str, "torch_threads": int}
"""Options that may be None, and what they are otherwise."""


@dataclass(frozen=True)
class TrainConfig:
    """Hold the options of a run. The plain defaults suit vector observations; `for_spec` knows images too.

    The defaults for vectors are what learns CartPole-v1 from 50,000 steps of a random policy: a greedy return of
    490 to 500 of 500 for seeds 0, 1, 2. Random episodes last 22 steps, so the data say nothing of longer horizons:
    there Q becomes flat and too large, and the greedy policy falls (n_step=1,
    gamma=0.99: 209, the mean of 9 runs). Hence returns of 5 real steps and a horizon of 20; normalised inputs
    and tanh because the policy must extrapolate to positions no random episode reaches (without: 402, 471);
    a step size that falls to 0, so that the last network is a good one and none needs choosing. Data with longer
    episodes want a gamma nearer 1.

    Attributes:
        updates: Gradient steps in total, also over resumed runs.
        batch_size: Transitions B in a batch.
        n_step: Rewards summed before bootstrapping.
        gamma: Discount per environment step.
        frame_stack: Observations k a network sees at once.
        learning_rate: Adam's step size at the first update.
        final_learning_rate: Its step size at the last update; between them it falls in a straight line.
        adam_eps: Adam's epsilon.
        target_every: Updates between copies into the target network.
        double: Double DQN.
        huber: Huber loss; half the squared error otherwise.
        rescale: Learn rescaled values (see `dqn.rescaled`), where rewards differ much from game to game.
        grad_clip: Largest L2 norm of the gradient.
        cql_alpha: Weight of the conservative term CQL(H); 0 is plain DQN.
        hidden: Widths of the fully connected layers.
        dueling: Separate value and advantages.
        activation: After each fully connected layer, "tanh" or "relu".
        normalise: Shift and scale vector observations by the mean and deviation of the data.
        prioritized: Sample by priority; uniformly otherwise.
        alpha: Exponent of the priorities.
        beta: Importance exponent at the first update; it rises to 1 in a straight line.
        seed: Decides the network's start, the samples and the evaluation's episodes.
        device: Where the network and the batches are.
        prefetch: Batches drawn and read ahead.
        on_corruption: What a damaged segment does: "raise" ends the run, "skip" leaves the segment out.
        torch_threads: Threads of one torch operation during the run. Small networks are fastest with 1. None:
            all that torch would use but one, which is left to the loader; torch's threads wait for each other,
            so one that must share its core holds up all.
        log_every: Updates between lines of metrics.jsonl.
        eval_env: Gymnasium id to evaluate in; None takes the one the store's metadata name, if any.
        eval_every: Updates between evaluations; 0 evaluates at the end alone.
        eval_episodes: Episodes of an evaluation; 0 never evaluates.
        eval_envs: Environments side by side in an evaluation, at most.
        eval_max_steps: Steps after which an evaluation cuts an episode off.
        checkpoint_every: Updates between checkpoints; there is always one at the end.
        tensorboard: Write TensorBoard events too.
    """

    updates: int = 10_000
    batch_size: int = 256
    n_step: int = 5
    gamma: float = 0.95
    frame_stack: int = 1
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    adam_eps: float = 1e-8
    target_every: int = 1_000
    double: bool = True
    huber: bool = False
    rescale: bool = False
    grad_clip: float = 10.0
    cql_alpha: float = 0.0
    hidden: tuple[int, ...] = (64, 64)
    dueling: bool = False
    activation: str = "tanh"
    normalise: bool = True
    prioritized: bool = True
    alpha: float = 0.6
    beta: float = 0.4
    seed: int = 0
    device: str = "cpu"
    prefetch: int = 8
    on_corruption: Literal["raise", "skip"] = "raise"
    torch_threads: int | None = 1
    log_every: int = 200
    eval_env: str | None = None
    eval_every: int = 2_000
    eval_episodes: int = 20
    eval_envs: int = 20
    eval_max_steps: int = 27_000
    checkpoint_every: int = 5_000
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None or field.name not in OPTIONAL:
                kind = OPTIONAL.get(field.name, type(field.default))
                object.__setattr__(self, field.name, _as_kind(field.name, value, kind))
        at_least_one = (
            "updates batch_size n_step frame_stack target_every prefetch log_every eval_envs "
            "eval_max_steps checkpoint_every"
        )
        for name in at_least_one.split():
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("eval_every", "eval_episodes", "seed", "cql_alpha", "final_learning_rate"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("learning_rate", "adam_eps", "grad_clip"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("learning_rate", "final_learning_rate", "adam_eps", "cql_alpha"):  # grad_clip: inf clips nothing
            _require(math.isfinite(getattr(self, name)), name, getattr(self, name), "a finite number")
        for name in ("gamma", "alpha", "beta"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        _require(self.on_corruption in ("raise", "skip"), "on_corruption", self.on_corruption, "'raise' or 'skip'")
        _require(self.activation in ACTIVATIONS, "activation", self.activation, f"one of {list(ACTIVATIONS)}")
        widths = len(self.hidden) <= MOST_LAYERS and all(isinstance(size, int) and size >= 1 for size in self.hidden)
        _require(widths, "hidden", self.hidden, f"at most {MOST_LAYERS} positive widths")
        threads = self.torch_threads
        _require(threads is None or 1 <= threads <= MOST_THREADS, "torch_threads", threads, f"1 to {MOST_THREADS:,}")

    @classmethod
    def for_spec(cls, spec: StepSpec, **given: Any) -> TrainConfig:
        """Return the defaults that suit a spec, with the given options instead; None counts as not given.

        Raises:
            TypeError: If an option does not exist.
            ValueError: If a value is out of range.
        """
        images = any(is_image(leaf) for leaf in spec.observation_leaves)
        chosen = {name: value for name, value in given.items() if value is not None}
        if "learning_rate" in chosen and images:
            chosen.setdefault("final_learning_rate", chosen["learning_rate"])
        return cls(**({**IMAGE_DEFAULTS, **chosen} if images else chosen))

    def learning_rate_at(self, update: int) -> float:
        """Return the step size of an update, counted from 0."""
        done = min(update / self.updates, 1.0)
        return self.learning_rate + done * (self.final_learning_rate - self.learning_rate)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {**dataclasses.asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Build a config from `to_json`'s object."""
        return cls(**{**data, "hidden": tuple(data["hidden"])})

    def difference(self, other: TrainConfig) -> str:
        """Say in words which options that decide what is learned differ; empty if none does."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in self.to_json())
        return "; ".join(
            f"{name} {mine!r} against {theirs!r}"
            for name, mine, theirs in pairs
            if mine != theirs and name not in FREE_TO_CHANGE
        )


def _as_kind(name: str, value: Any, kind: type) -> Any:
    """Return a value as what its option is, whole numbers no larger than they may be."""
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        _require(number, name, value, "a whole number" if kind is int else "a number")
        if kind is int:
            most = MOST.get(name, MOST_WHOLE)
            _require(value <= most, name, value, f"at most {most:,}")
        return kind(value)
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    _require(isinstance(value, kind), name, value, f"a {kind.__name__}")
    return value


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
