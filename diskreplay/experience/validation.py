"""Check values against their spec before anything is stored; zarr would take almost all of it in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diskreplay.errors import SpecMismatchError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from diskreplay.experience.spec import ArraySpec

LARGEST_REWARD = float(np.finfo(np.float32).max)
INTEGERS = frozenset({int, *(np.dtype(code).type for code in "bBhHiIlLqQ")})


def check_array(
    spec: ArraySpec,
    value: Any,
    *,
    count: int | None = None,
    in_space: bool = False,
) -> NDArray[Any]:
    """Return the value as an array of the spec's dtype and shape.

    Python numbers and lists are converted. Arrays must have the spec's dtype already, or one of the same kind
    that converts without loss; integers for a discrete space may have any integer dtype.

    Args:
        spec: What is expected.
        value: One step's value, or `count` of them along a leading axis.
        count: Number of steps; None for a single one.
        in_space: Also require the value to be inside its space (actions).

    Raises:
        SpecMismatchError: If shape, dtype or value do not fit; names the field, the expected and the given.
    """
    if count is None and type(value) in INTEGERS and spec.choices[0] <= value <= spec.choices[1]:
        return np.array(value, spec.numpy_dtype)  # the usual action, without the general way's ten numpy calls
    dtype = spec.numpy_dtype
    shape = spec.shape if count is None else (count, *spec.shape)
    given = as_array(spec.name, value)
    if given.shape != shape:
        raise SpecMismatchError(f"{spec.name}: expected shape {shape}, got {given.shape}")
    if given.dtype != dtype:
        given = _convert(spec, given, plain=not hasattr(value, "dtype"))
    if dtype.kind == "f" and np.count_nonzero(np.isfinite(given)) != given.size:  # of few numbers, half of all()'s time
        bad = given[~np.isfinite(given)].flat[0]
        raise SpecMismatchError(f"{spec.name}: expected finite numbers, got {bad}{_row(given, count)}")
    if in_space or spec.kind != "box":
        _check_in_space(spec, given, count)
    return given


def check_flags(name: str, value: Any, *, count: int) -> NDArray[np.bool_]:
    """Return `count` flags as booleans; 0 and 1 are taken as such.

    Raises:
        SpecMismatchError: If there are not `count` of them, or one is neither true nor false.
    """
    flags = as_array(name, value)
    if flags.shape != (count,):
        raise SpecMismatchError(f"{name}: expected shape {(count,)}, got {flags.shape}")
    if flags.dtype.kind not in "biu" or (flags.dtype.kind != "b" and ((flags < 0) | (flags > 1)).any()):
        raise SpecMismatchError(f"{name}: expected booleans, got {flags.dtype} {flags[:5].tolist()}")
    return flags.astype(np.bool_)


def check_rewards(value: Any, *, count: int) -> NDArray[np.float32]:
    """Return `count` finite rewards as float32.

    Raises:
        SpecMismatchError: If there are not `count` of them, or one is NaN, infinite or not a number.
    """
    given = as_array("reward", value)
    if given.shape != (count,):
        raise SpecMismatchError(f"reward: expected shape {(count,)}, got {given.shape}")
    if given.dtype.kind not in "fiub":
        raise SpecMismatchError(f"reward: expected numbers, got {given.dtype}")
    with np.errstate(over="ignore"):
        rewards = given.astype(np.float32)
    if not np.isfinite(rewards).all():
        row = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise SpecMismatchError(
            f"reward: expected a finite float32, got {given[row]}" + (f" at row {row}" if count > 1 else ""),
        )
    return rewards


def check_reward(value: Any) -> float:
    """Return one finite reward, rounded to float32.

    Raises:
        SpecMismatchError: If it is NaN, infinite or not a number.
    """
    if isinstance(value, (float, np.floating)) and -LARGEST_REWARD <= float(value) <= LARGEST_REWARD:
        return float(np.float32(value))
    return float(check_rewards(as_array("reward", value).reshape(-1), count=1)[0])


def check_flag(name: str, value: Any) -> bool:
    """Return one flag as a boolean.

    Raises:
        SpecMismatchError: If it is neither true nor false.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return bool(check_flags(name, as_array(name, value).reshape(-1), count=1)[0])


def as_array(name: str, value: Any) -> NDArray[Any]:
    """Return a plain array; what lies under a mask, or has no shape, is nothing that could be stored."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        masked = int(np.ma.getmaskarray(value).sum())
        raise SpecMismatchError(f"{name}: {masked} of its values are masked", hint="Fill them first.")
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as err:  # ragged lists; tensors that want to be detached first
        raise SpecMismatchError(f"{name}: no array of numbers: {err}") from err


def _convert(spec: ArraySpec, given: NDArray[Any], *, plain: bool) -> NDArray[Any]:
    dtype = spec.numpy_dtype
    kinds = {"b": "b", "i": "iu", "u": "iu", "f": "f"}[dtype.kind]
    if plain:
        fits = given.dtype.kind in kinds + ("iu" if dtype.kind == "f" else "")
    elif spec.kind in ("discrete", "multidiscrete", "multibinary"):
        fits = given.dtype.kind in kinds + ("b" if spec.kind == "multibinary" else "")
    else:
        fits = given.dtype.kind in kinds and np.can_cast(given.dtype, dtype, "safe")
    if fits and dtype.kind in "iu" and given.dtype.kind in "iu" and given.size:
        limits = np.iinfo(dtype)
        fits = int(given.min()) >= limits.min and int(given.max()) <= limits.max
    if not fits:
        raise SpecMismatchError(
            f"{spec.name}: expected dtype {spec.dtype}, got {given.dtype}",
            hint=f"Convert it first, for example with .astype('{spec.dtype}').",
        )
    return given.astype(dtype)


def _check_in_space(spec: ArraySpec, given: NDArray[Any], count: int | None) -> None:
    if spec.kind == "discrete":
        assert spec.n is not None  # noqa: S101  a discrete spec has n
        low: Any = spec.start
        high: Any = spec.start + spec.n - 1
    elif spec.kind == "multidiscrete":
        low = np.asarray(0 if spec.low is None else spec.low, dtype=np.int64)
        high = low + np.asarray(spec.nvec, dtype=np.int64) - 1
    elif spec.kind == "multibinary":
        low, high = 0, 1
    else:
        low = -np.inf if spec.low is None else np.asarray(spec.low)
        high = np.inf if spec.high is None else np.asarray(spec.high)
    outside = (given < low) | (given > high)
    if outside.any():
        bad = given[outside].flat[0]
        raise SpecMismatchError(
            f"{spec.name}: expected a value in [{_short(low)}, {_short(high)}], got {bad}"
            + _row(outside, count, mask=True),
        )


def _row(array: NDArray[Any], count: int | None, *, mask: bool = False) -> str:
    if count is None:
        return ""
    bad = array if mask else ~np.isfinite(array)
    return f" at row {int(np.argwhere(bad)[0][0])}"


def _short(bound: Any) -> str:
    array = np.asarray(bound)
    return str(array.item()) if array.ndim == 0 else str(array.tolist())[:60]
