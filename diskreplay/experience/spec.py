"""The shape of a step: one ArraySpec per stored array, nested as the environment's spaces were.

Owns the mapping between Gymnasium spaces, field names and JSON. Knows nothing of files. Spaces are recognised
by the name of their class, so that neither importing nor opening a store needs gymnasium.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np

from diskreplay.errors import SpecMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DTYPES = frozenset(np.dtype(letter).name for letter in "?bhilBHILefd")
KINDS = frozenset({"box", "discrete", "multidiscrete", "multibinary"})
MAX_ROW_BYTES = 1 << 30

Bound = float | tuple[Any, ...] | None
Tree = Any
"""An ArraySpec, a dict of trees or a tuple of trees; or the same nesting of arrays."""


@dataclass(frozen=True)
class ArraySpec:
    """Describe one stored array: a leaf of the observation or action space.

    Attributes:
        name: The field's name on disk: "observation", "observation.camera", "action.0".
        shape: Shape of one step's value.
        dtype: numpy's name of the dtype, such as "uint8".
        kind: "box", "discrete", "multidiscrete" or "multibinary".
        low: Lowest value of a box: a number, a nested tuple of them, or None if not known.
        high: Highest value of a box, likewise.
        n: Number of values of a discrete space.
        start: First value of a discrete space.
        nvec: Number of values per entry of a multidiscrete space.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str = "box"
    low: Bound = None
    high: Bound = None
    n: int | None = None
    start: int = 0
    nvec: Bound = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise SpecMismatchError(
                f"{self.name}: dtype {self.dtype!r} cannot be stored; use one of {sorted(DTYPES)}",
            )
        if any(side < 1 for side in self.shape) or self.row_bytes > MAX_ROW_BYTES:
            raise SpecMismatchError(
                f"{self.name}: shape {self.shape} is not one of at most {MAX_ROW_BYTES} bytes a step",
            )

        if self.kind not in KINDS:
            raise SpecMismatchError(f"{self.name}: kind {self.kind!r} is none of {sorted(KINDS)}")
        if self.n is not None and self.n < 1:
            raise SpecMismatchError(f"{self.name}: n must be at least 1, got {self.n}")

    @cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Return the dtype itself: numpy takes longer to find it by name than to copy a small value."""
        return np.dtype(self.dtype)

    @cached_property
    def row_bytes(self) -> int:
        """Return the bytes of one step's value."""
        size = 1
        for side in self.shape:
            size *= int(side)
        return size * self.numpy_dtype.itemsize

    @cached_property
    def choices(self) -> tuple[int, int]:
        """Return the first and the last value of a discrete space that its dtype can hold; of others (0, -1)."""
        if self.kind != "discrete" or self.shape or self.n is None or self.numpy_dtype.kind not in "iu":
            return 0, -1
        limits = np.iinfo(self.dtype)
        return max(self.start, int(limits.min)), min(self.start + self.n - 1, int(limits.max))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; infinities as strings, which every JSON reader takes."""
        out: dict[str, Any] = {"shape": list(self.shape), "dtype": self.dtype, "kind": self.kind}
        for key in ("low", "high", "nvec"):
            value = getattr(self, key)
            if value is not None:
                out[key] = _bound_to_json(value)
        if self.n is not None:
            out["n"], out["start"] = self.n, self.start
        return out

    @classmethod
    def from_json(cls, name: str, data: Mapping[str, Any]) -> ArraySpec:
        """Build a leaf from `to_json`'s object.

        Raises:
            SpecMismatchError: If the object is not one of `to_json`'s.
        """
        try:
            return cls(
                name=name,
                shape=tuple(int(side) for side in data["shape"]),
                dtype=str(data["dtype"]),
                kind=str(data["kind"]),
                low=_bound_from_json(data.get("low")),
                high=_bound_from_json(data.get("high")),
                n=None if data.get("n") is None else int(data["n"]),
                start=int(data.get("start", 0)),
                nvec=_bound_from_json(data.get("nvec")),
            )
        except SpecMismatchError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as err:
            raise SpecMismatchError(f"{name}: not an array spec: {data!r}") from err


@dataclass(frozen=True)
class StepSpec:
    """Describe a step: the observation's and the action's arrays, nested as they are given and returned.

    Attributes:
        observation: An ArraySpec, or a dict or tuple of such trees.
        action: Likewise.

    >>> spec = StepSpec(ArraySpec("observation", (4,), "float32"),
    ...                 ArraySpec("action", (), "int64", "discrete", n=2))
    >>> StepSpec.from_json(spec.to_json()) == spec
    True
    """

    observation: Tree
    action: Tree

    @classmethod
    def from_spaces(cls, observation_space: Any, action_space: Any) -> StepSpec:
        """Describe the steps of an environment with these Gymnasium spaces.

        Box, Discrete, MultiDiscrete and MultiBinary become one array each; Dict and Tuple nest.

        Raises:
            SpecMismatchError: If a space of another kind is met; the message names the field.
        """
        return cls(_from_space("observation", observation_space), _from_space("action", action_space))

    @cached_property
    def observation_leaves(self) -> tuple[ArraySpec, ...]:
        """Return the observation's arrays in the order they are stored."""
        return tuple(leaves(self.observation))

    @cached_property
    def action_leaves(self) -> tuple[ArraySpec, ...]:
        """Return the action's arrays in the order they are stored."""
        return tuple(leaves(self.action))

    @cached_property
    def row_bytes(self) -> int:
        """Return the bytes of one step's observation and action."""
        return sum(leaf.row_bytes for leaf in (*self.observation_leaves, *self.action_leaves))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` builds an equal spec."""
        return {
            "observation": _tree_to_json(self.observation),
            "action": _tree_to_json(self.action),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepSpec:
        """Build a spec from `to_json`'s object.

        Raises:
            SpecMismatchError: If the object is not one of `to_json`'s.
        """
        try:
            return cls(
                _tree_from_json("observation", data["observation"]),
                _tree_from_json("action", data["action"]),
            )
        except (KeyError, TypeError) as err:
            raise SpecMismatchError(f"not a step spec: {data!r}") from err

    def difference(self, other: StepSpec) -> str:
        """Say in words where two specs differ; empty if they are equal."""
        mine = {leaf.name: leaf for leaf in (*self.observation_leaves, *self.action_leaves)}
        theirs = {leaf.name: leaf for leaf in (*other.observation_leaves, *other.action_leaves)}
        lines = [f"{name}: only in the first" for name in mine if name not in theirs]
        lines += [f"{name}: only in the second" for name in theirs if name not in mine]
        for name, leaf in mine.items():
            if name in theirs and leaf != theirs[name]:
                ours, others = leaf.to_json(), theirs[name].to_json()
                keys = [key for key in {**ours, **others} if ours.get(key) != others.get(key)]
                lines += [f"{name}: {k} {ours.get(k)!r} against {others.get(k)!r}" for k in keys]
        return "; ".join(lines) or ("" if self == other else "the nesting differs")


def leaves(tree: Tree) -> Iterator[Any]:
    """Yield the leaves of a nesting of dicts and tuples, in order."""
    if isinstance(tree, dict):
        for branch in tree.values():
            yield from leaves(branch)
    elif isinstance(tree, tuple):
        for branch in tree:
            yield from leaves(branch)
    else:
        yield tree


def build(tree: Tree, values: Iterator[Any]) -> Any:
    """Nest values, taken in order, as the tree is nested."""
    if isinstance(tree, dict):
        return {key: build(branch, values) for key, branch in tree.items()}
    if isinstance(tree, tuple):
        return tuple(build(branch, values) for branch in tree)
    return next(values)


def flatten(tree: Tree, value: Any, name: str) -> list[Any]:
    """List a nested value's leaves in the order of the tree's.

    Raises:
        SpecMismatchError: If the value is not nested as the tree; the message names the field.
    """
    if isinstance(tree, ArraySpec):
        return [value]
    if isinstance(tree, dict):
        if not hasattr(value, "keys") or set(value.keys()) != set(tree):
            given = sorted(map(str, value.keys())) if hasattr(value, "keys") else type(value).__name__
            raise SpecMismatchError(f"{name}: expected a dict with keys {sorted(tree)}, got {given}")
        return [x for key in tree for x in flatten(tree[key], value[key], f"{name}.{key}")]
    if not isinstance(value, (tuple, list)) or len(value) != len(tree):
        raise SpecMismatchError(
            f"{name}: expected a tuple of {len(tree)} parts, got {type(value).__name__}"
            + (f" of {len(value)}" if isinstance(value, (tuple, list)) else ""),
        )
    return [
        x
        for i, (branch, part) in enumerate(zip(tree, value, strict=True))
        for x in flatten(branch, part, f"{name}.{i}")
    ]


def _from_space(name: str, space: Any) -> Tree:
    kinds = {cls.__name__ for cls in type(space).__mro__}
    if "Dict" in kinds:
        return {str(key): _from_space(f"{name}.{_safe(str(key))}", sub) for key, sub in space.spaces.items()}
    if "Tuple" in kinds:
        return tuple(_from_space(f"{name}.{i}", sub) for i, sub in enumerate(space.spaces))
    if not kinds & {"Box", "Discrete", "MultiDiscrete", "MultiBinary"}:
        raise SpecMismatchError(
            f"{name}: {type(space).__name__} spaces cannot be stored",
            hint="Use Box, Discrete, MultiDiscrete, MultiBinary, or Dict and Tuple of them.",
        )
    shape, dtype = tuple(int(side) for side in space.shape), np.dtype(space.dtype).name
    if "Discrete" in kinds:
        return ArraySpec(name, (), dtype, "discrete", n=int(space.n), start=int(space.start))
    if "MultiDiscrete" in kinds:
        start = _bound(getattr(space, "start", 0))
        return ArraySpec(name, shape, dtype, "multidiscrete", nvec=_bound(space.nvec), low=start or None)
    if "MultiBinary" in kinds:
        return ArraySpec(name, shape, dtype, "multibinary")
    return ArraySpec(name, shape, dtype, "box", low=_bound(space.low), high=_bound(space.high))


def _safe(key: str) -> str:
    """Escape a key so that it is one harmless path component; '.' separates levels."""
    return quote(key, safe="").replace(".", "%2E")


def _bound(values: Any) -> Bound:
    array = np.asarray(values)
    if array.size and (array == array.flat[0]).all():
        return float(array.flat[0])
    nested: Bound = _tuples(array.tolist())
    return nested


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, (list, tuple)) else float(value)


def _bound_to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_bound_to_json(part) for part in value]
    return value if np.isfinite(value) else str(value)


def _bound_from_json(value: Any) -> Bound:
    return None if value is None else _tuples(value)


def _tree_to_json(tree: Tree) -> dict[str, Any]:
    if isinstance(tree, dict):
        return {"dict": [[key, _tree_to_json(branch)] for key, branch in tree.items()]}
    if isinstance(tree, tuple):
        return {"tuple": [_tree_to_json(branch) for branch in tree]}
    return {"array": tree.to_json()}


def _tree_from_json(name: str, data: Mapping[str, Any]) -> Tree:
    if "dict" in data:
        return {str(key): _tree_from_json(f"{name}.{_safe(str(key))}", branch) for key, branch in data["dict"]}
    if "tuple" in data:
        return tuple(_tree_from_json(f"{name}.{i}", b) for i, b in enumerate(data["tuple"]))
    return ArraySpec.from_json(name, data["array"])


def key_of(name: str) -> str:
    """Return the last part of a field's name as the user wrote it."""
    return unquote(name.rsplit(".", 1)[-1])
