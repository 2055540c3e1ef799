"""Lay out a store's stats as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UNITS = ("B", "kB", "MB", "GB", "TB")
UNKNOWN = "-"
DURABILITY = {
    "power": "power: commits survive power cuts",
    "process": "process: commits survive the end of the process, not a power cut",
}
SUMMARIES = {
    "reward": "reward",
    "episode_return": "episode return",
    "episode_length": "episode length",
    "priority": "priority",
}


def stats_table(stats: Mapping[str, Any]) -> str:
    """Return several lines of text.

    Args:
        stats: What `StoreStats.to_json` returns.
    """
    sections = [_head(stats), _fields(stats["fields"]), _summaries(stats)]
    return "\n\n".join("\n".join(lines) for lines in sections)


def format_bytes(count: float) -> str:
    """Return a number of bytes in a unit a person reads.

    >>> format_bytes(7056), format_bytes(3.5e9)
    ('7.1 kB', '3.5 GB')
    """
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _head(stats: Mapping[str, Any]) -> list[str]:
    metadata = stats.get("metadata") or {}
    rows = [
        ("store", f"{stats['path']} (format {stats['format_version']})"),
        ("environment", str(metadata.get("env_id", UNKNOWN))),
        ("policy", "; ".join(_listed(metadata.get("policy"))) or UNKNOWN),
        ("steps", f"{stats['steps']:,}, of them {stats.get('tail_steps') or 0:,} not sealed yet"),
        ("transitions", f"{stats['transitions']:,} can be sampled"),
        ("episodes", f"{stats['episodes']:,} in {_count(stats['streams'])} streams"),
        ("segments", f"{_count(stats['segments'])} of {stats.get('segment_steps') or 0:,} steps"),
        ("capacity", _capacity(stats.get("capacity"))),
        ("on disk", _sizes(stats)),
        ("durability", DURABILITY.get(stats.get("durability") or "", UNKNOWN)),
    ]
    if stats.get("quarantined"):
        listed = ", ".join(str(segment) for segment in stats["quarantined"][:10])
        listed += f" and {len(stats['quarantined']) - 10:,} more" if len(stats["quarantined"]) > 10 else ""
        rows.append(("quarantined", f"damaged segments that are left out: {listed}"))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _fields(fields: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [["field", "shape", "dtype", "codec", "chunk", "on disk", "raw", "ratio"]]
    rows += [
        [
            name,
            "x".join(str(side) for side in field["shape"]) or "1",
            str(field["dtype"]),
            str(field["codec"] or UNKNOWN),
            _number(field["chunk_steps"]),
            format_bytes(field["bytes_on_disk"]),
            format_bytes(field["bytes_raw"]),
            _number(field["compression_ratio"]),
        ]
        for name, field in fields.items()
    ]
    return _aligned(rows, left=4)


def _summaries(stats: Mapping[str, Any]) -> list[str]:
    columns = ("count", "min", "max", "mean", "std", "median")
    rows = [["", *columns]]
    for key, name in SUMMARIES.items():
        summary = stats[key]
        rows.append([name, *(_number(summary.get(column)) for column in columns)])
    lines = _aligned(rows, left=1)
    share = stats["reward"].get("nonzero_share")
    if share is not None:
        lines.append(f"{share:.2%} of the rewards are not zero")
    if not stats["priority"].get("count"):
        lines.append("no priorities yet: no prioritized sampler has committed any")
    return lines


def _capacity(capacity: int | str | None) -> str:
    if capacity is None:
        return "none: it keeps everything"
    return capacity if isinstance(capacity, str) else f"{capacity:,} transitions"


def _sizes(stats: Mapping[str, Any]) -> str:
    ratio = stats["compression_ratio"]
    text = f"{format_bytes(stats['bytes_on_disk'])} for {format_bytes(stats['bytes_raw'])} of steps"
    if not ratio:
        return text
    times = f"{ratio:.3g} times smaller" if ratio >= 1 else f"{1 / ratio:.3g} times larger"
    return f"{text}, {times}"


def _aligned(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Pad every column to its widest cell; the first `left` columns to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _number(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:.4g}"


def _listed(value: object) -> list[str]:
    if value is None:
        return []
    return [str(part) for part in value] if isinstance(value, (list, tuple)) else [str(value)]


def _count(value: object) -> str:
    """Take a number, or a list of which the length is meant."""
    return f"{value if isinstance(value, int) else len(value):,}"  # type: ignore[arg-type]
