"""Make Gymnasium environments the way they are recorded; Atari gets the standard preprocessing.

Single frames are recorded: frame stacks are chosen when transitions are read, never when they are
written.
"""

from __future__ import annotations

import importlib
import multiprocessing
import re
import signal
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import AtariPreprocessing

from diskreplay.errors import SourceError

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

ATARI_EXTRA = "pip install 'diskreplay[atari]'"
ATARI: dict[str, Any] = {
    "frame_skip": 4,
    "screen_size": 84,
    "noop_max": 30,
    "terminal_on_life_loss": False,
}


def make_env(env_id: str, *, seed: int | None = None) -> gymnasium.Env[Any, Any]:
    """Make one environment as it is recorded.

    Atari games (`ALE/...`) get frame skip 4, the maximum of the last two frames, 84x84 grey bytes,
    up to 30 no-ops at the start, episodes that go on after a lost life, and unscaled rewards
    (Machado et al. 2018, arXiv:1709.06009, as `gymnasium.wrappers.AtariPreprocessing` does it);
    sticky actions as the id has them. Everything else is left as it is.

    Args:
        env_id: A Gymnasium id, `module:id` for one that a module registers.
        seed: Seeds the environment and its action space, if given.

    Raises:
        SourceError: If there is no such environment, or a package it needs is missing.
    """
    spec = resolve(env_id)
    # The wrapper reads grey frames from the emulator; asking the game for grey ones too saves time.
    options = {"frameskip": 1, "obs_type": "grayscale"} if is_atari(spec) else {}
    env = _make(_full_id(env_id, spec), **options)
    if is_atari(spec):
        try:
            env = AtariPreprocessing(env, **ATARI)
        except gymnasium.error.DependencyNotInstalled as err:
            raise SourceError(f"{env_id} needs OpenCV, which is not installed", hint=f"Run: {ATARI_EXTRA}") from err
    if seed is not None:
        env.reset(seed=seed)
        env.action_space.seed(seed)
    return env


def make_vector_env(env_id: str, num_envs: int, *, parallel: bool = False) -> VectorEnv[Any, Any, Any]:
    """Make several environments that step together and never reset themselves.

    Args:
        env_id: As for `make_env`.
        num_envs: How many.
        parallel: Give each environment a process of its own; pays where a step is slow and cores
            are many.
    """
    factories = [partial(_make_in_worker, env_id)] * num_envs
    if parallel:
        # A forked child would inherit open handles, and whatever locks other threads hold.
        return AsyncVectorEnv(factories, context="forkserver", autoreset_mode=AutoresetMode.DISABLED)
    return SyncVectorEnv(factories, autoreset_mode=AutoresetMode.DISABLED)


def canonical_id(env_id: str) -> str:
    """Return the id with the version that is meant: `CartPole` is `CartPole-v1`."""
    return _full_id(env_id, resolve(env_id))


def preprocessing(env_id: str) -> dict[str, Any]:
    """Describe what `make_env` does to an environment, for the store's metadata."""
    spec = resolve(env_id)
    if not is_atari(spec):
        return {"kind": "none"}
    return {
        "kind": "atari",
        **ATARI,
        "max_of_frames": 2,
        "grayscale": True,
        "rewards": "unscaled",
        "repeat_action_probability": spec.kwargs.get("repeat_action_probability", 0.0),
    }


def is_atari(spec: EnvSpec) -> bool:
    """Tell whether an environment is an emulated Atari game."""
    return str(spec.entry_point).startswith("ale_py")


def resolve(env_id: str) -> EnvSpec:
    """Find an environment's registration.

    Raises:
        SourceError: If there is none; the hint lists ids that look like it.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as err:  # a module may fail in any way
            why = str(err) if isinstance(err, ImportError) else f"{type(err).__name__}: {err}"
            raise SourceError(
                f"{env_id}: the module {module!r} cannot be imported: {why}",
                hint="Write gym:ID, or gym:MODULE:ID if importing MODULE registers it.",
            ) from err
    if name not in gymnasium.registry:
        _register_atari()
    if name not in gymnasium.registry:
        env = _make(env_id)  # resolves an id without a version, or says why not
        name = env.spec.id if env.spec is not None else name
        env.close()
    return gymnasium.registry[name]


def _make(env_id: str, **options: Any) -> gymnasium.Env[Any, Any]:
    try:
        return gymnasium.make(env_id, **options)
    except gymnasium.error.DependencyNotInstalled as err:
        extra = re.search(r"gymnasium\[[\w-]+\]", str(err))
        hint = f"Run: pip install '{extra[0]}'" if extra else "Install the package it names."
        raise SourceError(f"{env_id} cannot be made: {err}", hint=hint) from err
    except gymnasium.error.Error as err:
        raise SourceError(f"unknown environment {env_id!r}", hint=_near(env_id)) from err
    except Exception as err:
        raise SourceError(
            f"{env_id} cannot be made: {type(err).__name__}: {err}",
            hint="Check that gymnasium.make(id) works without further arguments.",
        ) from err


def _make_in_worker(env_id: str) -> gymnasium.Env[Any, Any]:
    if multiprocessing.parent_process() is not None:
        # Ctrl-C reaches the whole process group; the parent alone decides when to stop.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return make_env(env_id)


def _register_atari() -> None:
    if find_spec("ale_py") is not None:
        ale_py = importlib.import_module("ale_py")  # registers its environments
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


def _full_id(env_id: str, spec: EnvSpec) -> str:
    module, colon, _ = env_id.rpartition(":")
    return f"{module}{colon}{spec.id}"


def _near(env_id: str) -> str:
    if find_spec("ale_py") is None and (env_id.startswith("ALE/") or "NoFrameskip" in env_id):
        return f"Atari games need an extra: {ATARI_EXTRA}"
    ids = {known.lower(): known for known in gymnasium.registry}
    near = [ids[match] for match in get_close_matches(env_id.lower(), ids, n=3, cutoff=0.6)]
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return "See gymnasium.pprint_registry() for the environments that are installed."
