"""Write RESULTS.md and its pictures from stored results: goals first, met or MISSED, then every figure."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmarks import goals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

OURS_INK, RIVAL_INK = "#22577a", "#9aa3ad"
LINES = ("#22577a", "#c8553d", "#6b7280", "#588157", "#b08968")
UNITS = {
    "transitions_per_second": "transitions/s", "steps_per_second": "steps/s", "commits_per_second": "commits/s",
    "updates_per_second": "updates/s", "sample_seconds": "draw, µs", "update_seconds": "update, µs",
    "both_seconds": "both, µs",
    "first_batch_seconds": "first batch, s", "memory_bytes": "memory, MB", "commit_seconds": "commit, ms",
    "small_commit_seconds": "commit after a tenth, ms", "wait_share": "waiting, %", "priorities_share": "priorities, %",
    "bytes_per_step_bytes": "bytes a step", "observation_bytes": "observations, bytes a step",
    "times_smaller_than_84x84": "times smaller than 84x84",
    "read_per_batch_bytes": "read from the disk a batch, kB",
    "episodes_equal": "episodes equal", "episodes_not_equal": "episodes not equal",
}  # fmt: skip
SCALE = {"µs": 1e6, "ms": 1e3, "kB": 1e-3, "MB": 1e-6, "%": 100.0}
HEAD = """# Results

Written by `make bench` (`python -m benchmarks`); every sample is in `results/*.jsonl`. Contestants run in turn, a
process each, in the same run: ratios are medians of the rounds' own ratios, with the smallest and largest in brackets;
above 1 is better for diskreplay. Checksums stay on. What each is, and what it does not do, stands beside it. In the
tables of figures the ratio is the first row's beside that row's.
"""


QUICK = "**Some of this is of quick runs: they show that everything runs, and measure nothing.**\n"


def render(questions: Sequence[ModuleType], results: Mapping[str, dict[str, Any] | None], out: Path) -> Path:
    """Write everything; return the file."""
    (out / "plots").mkdir(parents=True, exist_ok=True)
    parts, verdicts = [], []
    for question in questions:
        result = results.get(question.__name__)
        if result is None:
            continue
        name = question.__name__.rpartition(".")[2]
        title = question.TITLE.partition(":")[0]
        verdicts += [f"| [{title}](#{name}) {_goal_row(verdict)}" for verdict in result.get("verdicts", [])]
        parts.append(_section(question, name, result, out))
    text = [
        HEAD,
        "## Goals\n",
        "| question | work | beside | goal | measured | |\n|---|---|---|---|---|---|",
        *verdicts,
    ]
    path = out / "RESULTS.md"
    path.write_text("\n".join([*text, "", *parts]), encoding="utf-8")
    return path


def _goal_row(verdict: dict[str, Any]) -> str:
    met = {True: "met", False: "**MISSED**", None: "not measured"}[verdict["met"]]
    return f"| {verdict['work']} | {verdict['beside']} | {verdict['goal']} | {verdict['measured']} | {met} |"


def _section(question: ModuleType, name: str, result: dict[str, Any], out: Path) -> str:
    about = result["machine"]
    quick = (
        " **A quick run: it shows that everything runs, and measures nothing.**" if result["settings"]["quick"] else ""
    )
    unfinished = "" if result["finished"] else " **Unfinished.**"
    libraries = {**about["libraries"].get("own", {}), **about["libraries"].get("torchrl", {})}
    lines = [
        f'## <a id="{name}"></a>{question.TITLE}\n',
        (question.__doc__ or "").strip() + quick + unfinished + "\n",
        f"{about['cores']} cores ({about['cpu']}), {about['memory_gib']} GiB, {about['filesystem']}"
        f"{_read_ahead(about)}, Linux "
        f"{about['kernel']}, Python {about['python']}, diskreplay at {about['commit'] or 'an unknown commit'}; "
        + ", ".join(f"{library} {version}" for library, version in sorted(libraries.items()))
        + f". {result['settings']['rounds']} rounds; load {about['load_at_start']:.1f} at the start.\n",
    ]
    measures = getattr(question, "MEASURES", (question.MEASURE,))
    for case in result["cases"]:
        lines += _table(case, measures)
    if any(entry["samples"] for case in result["cases"] for entry in case["contestants"].values()):
        picture = out / "plots" / f"{name}.png"
        plot(question, result, measures, picture)
        lines.append(f"![{question.TITLE}](plots/{picture.name})\n")
    return "\n".join(lines)


def _read_ahead(about: dict[str, Any]) -> str:
    size = about.get("read_ahead_kib")
    return f" (read-ahead {size:,} KiB)" if size else ""


def _table(case: dict[str, Any], measures: Sequence[str]) -> list[str]:
    limit = f"; memory limit {case['memory_limit'] >> 20} MiB each" if case.get("memory_limit") else ""
    about = ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in case["about"].items())
    names = [unit(measure) for measure in measures]
    lines = [
        f"### {case['name']}\n",
        f"{about}{limit}.\n",
        "| | " + " | ".join(f"{name} | ratio" for name in names) + " | bytes a step | remarks |",
        "|---|" + "--:|--:|" * len(names) + "--:|---|",
    ]
    first = next(iter(case["contestants"]))
    for who, entry in case["contestants"].items():
        cells = []
        for measure in measures:
            values = [value * scale(measure) for value in goals.samples(case, who, measure)]
            spread = f" ({_short(min(values))} to {_short(max(values))})" if len(values) > 1 else ""
            cells.append(f"{_short(statistics.median(values))}{spread}" if values else "-")
            found = goals.ratios(case, first, who, measure) if who != first else []
            cells.append(f"{statistics.median(found):.2f}x" if found else "")
        reason = entry.get("failed") or entry.get("skipped")
        remarks = "; ".join(filter(None, [f"**{reason}**" if reason else "", entry["note"], _remarks(entry)]))
        size = entry.get("details", {}).get("bytes_per_step", "")
        lines.append(f"| {who} | " + " | ".join(cells) + f" | {size} | {remarks} |")
    return [*lines, ""]


def _remarks(entry: dict[str, Any]) -> str:
    details = entry.get("details", {})
    known = [f"{name} {details[name]}" for name in ("prefetch", "threads", "geometry") if name in details]
    peaks = [sample["peak_bytes"] for sample in entry["samples"]]
    return ", ".join([*known, *([f"peak {max(peaks) / 1e6:,.0f} MB"] if peaks else [])])


def plot(question: ModuleType, result: dict[str, Any], measures: Sequence[str], path: Path) -> None:
    """Draw lines over `x` where contestants have several, bars otherwise; medians, with lowest and highest.

    Cases that have several of their own get a row of lines each; else all cases make one.
    """
    cases = result["cases"]
    places = [{entry["x"] for entry in case["contestants"].values() if entry["x"]} for case in cases]
    lined = len(set().union(*places)) > 1
    rows = [[case] for case in cases] if lined and max(map(len, places)) > 1 else [cases]
    measures = [
        m for m in measures if any(goals.samples(case, name, m) for case in cases for name in case["contestants"])
    ]
    columns = len(measures[:2]) if lined else len(cases)
    tallest = max(len(case["contestants"]) for case in cases)
    height = 4 * len(rows) if lined else 1.2 + 0.42 * tallest
    figure = Figure(figsize=(6.2 * columns, height), layout="constrained", dpi=110)
    figure.suptitle(question.TITLE, fontsize=12)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    if lined:
        label = getattr(question, "AXIS", "steps")
        for row, of_row in zip(axes, rows, strict=True):
            for axis, measure in zip(row, measures[:2], strict=True):
                _lines(axis, of_row, measure, label)
                if len(rows) > 1:
                    axis.set_title(of_row[0]["name"], fontsize=9)
    else:
        for axis, case in zip(axes[0], cases, strict=True):
            _bars(axis, case, question.MEASURE, getattr(question, "REFERENCE", None))
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.savefig(path, format="png", metadata={"Software": None})


def _bars(axis: Any, case: dict[str, Any], measure: str, reference: tuple[float, str] | None) -> None:
    ran = [(name, goals.samples(case, name, measure)) for name in case["contestants"]]
    ran = [(name, [value * scale(measure) for value in values]) for name, values in ran if values][::-1]
    names = [name for name, _ in ran]
    middles = [statistics.median(values) for _, values in ran]
    spread = [[m - min(v) for m, (_, v) in zip(middles, ran, strict=True)],
              [max(v) - m for m, (_, v) in zip(middles, ran, strict=True)]]  # fmt: skip
    inks = [OURS_INK if name.startswith("diskreplay") else RIVAL_INK for name in names]
    positive = [middle for middle in middles if middle > 0]
    if positive and max(positive) > 400 * min(positive):  # points: on this scale a bar's length would say nothing
        for name, ink, middle, low, high in zip(names, inks, middles, *spread, strict=True):
            axis.errorbar([middle], [name], xerr=[[low], [high]], fmt="o", color=ink)
        axis.set_xscale("log")
    else:
        axis.barh(names, middles, xerr=spread, color=inks, error_kw={"lw": 1, "ecolor": "#333333"})
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.xaxis.set_major_formatter(FuncFormatter(_tick))
    axis.set_xlabel(unit(measure), fontsize=8)
    axis.set_title(case["name"], fontsize=9)
    axis.margins(x=0.14)  # room for the figures
    if reference is not None:
        value, name = reference
        axis.axvline(value, color="#333333", lw=1, ls="--")
        axis.annotate(f"{name} ", (value, 0), ha="right", va="center", fontsize=7, color="#333333")
    for place, (middle, above) in enumerate(zip(middles, spread[1], strict=True)):
        axis.annotate(f"  {_short(middle)}", (middle + above, place), va="center", fontsize=7, color="#333333")


def _lines(axis: Any, cases: Sequence[dict[str, Any]], measure: str, label: str) -> None:
    groups: dict[str, list[tuple[float, list[float]]]] = {}
    for case in cases:
        for name, entry in case["contestants"].items():
            values = [value * scale(measure) for value in goals.samples(case, name, measure)]
            if values and not entry["x"]:
                axis.axhline(statistics.median(values), color="#333333", lw=1, ls="--", label=entry["group"])
            elif values:
                groups.setdefault(entry["group"], []).append((entry["x"], values))
    if not groups:  # another case has this measure
        axis.set_visible(False)
        return
    for number, (group, points) in enumerate(groups.items()):
        points.sort()
        middles = [statistics.median(values) for _, values in points]
        spread = [[m - min(v) for m, (_, v) in zip(middles, points, strict=True)],
                  [max(v) - m for m, (_, v) in zip(middles, points, strict=True)]]  # fmt: skip
        axis.errorbar([x for x, _ in points], middles, yerr=spread, marker="o", ms=4, capsize=2, lw=1.4, label=group,
                      color=LINES[number % len(LINES)])  # fmt: skip
    axis.set_xscale("log")
    highest = [v for points in groups.values() for _, values in points for v in values if v > 0]
    if highest and max(highest) > 20 * min(highest):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0,) if max(highest) > 200 * min(highest) else (1.0, 2.0, 5.0)))
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(FuncFormatter(_tick))
    axis.set_xlabel(label, fontsize=8)
    axis.set_ylabel(unit(measure), fontsize=8)
    axis.legend(fontsize=7, frameon=False)


def unit(measure: str) -> str:
    """Return what a measure is called."""
    return UNITS.get(measure, measure.replace("_", " "))


def scale(measure: str) -> float:
    """Return what turns a measure into its unit."""
    return SCALE.get(unit(measure).rpartition(" ")[2], 1.0)


def _tick(value: float, _: int) -> str:
    return f"{value:,.0f}" if value >= 1_000 else f"{value:g}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
