"""Run the questions and write RESULTS.md: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks import render
from benchmarks.harness import ROOT, ROUNDS, Settings, load_result, run_question, say

QUESTIONS = (
    "warm_reads", "vector_reads", "cold_reads", "sum_tree", "opening", "checkpoint", "ingest_speed", "data_wait",
    "growth", "commits", "disk_bytes", "geometry",
)  # fmt: skip
HERE = ROOT / "benchmarks"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure diskreplay beside its peers.")
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, metavar="QUESTION", default=[],
                        help=f"run these, done before or not: {', '.join(QUESTIONS)}")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="run what is done already, too")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures nothing")
    parser.add_argument("--skip-rivals", action="store_true", help="diskreplay alone")
    parser.add_argument("--rounds", type=int, default=None, help=f"alternating rounds (default: {ROUNDS}; quick: 2)")
    parser.add_argument("--sizes", default="", help="steps or leaves, such as 1e6,1e7, for the questions that grow")
    parser.add_argument("--data", type=Path, default=HERE / ".data", help="what is generated once is kept here")
    parser.add_argument(
        "--out", type=Path, default=None, help="for results (default: benchmarks/, quick: .benchmarks/)"
    )
    parser.add_argument("--torchrl-python", type=Path, default=ROOT / ".venv-torchrl" / "bin" / "python",
                        help="the interpreter that has torchrl")  # fmt: skip
    parser.add_argument("--render-only", action="store_true", help="write RESULTS.md from what is there")
    return parser.parse_args(arguments)


def settings_of(options: argparse.Namespace) -> Settings:
    """Return what was asked for."""
    out = options.out or (ROOT / ".benchmarks" if options.quick else HERE)
    data = options.data / "quick" if options.quick else options.data
    return Settings(
        data=data.resolve(),
        out=out.resolve(),
        quick=options.quick,
        rivals=not options.skip_rivals,
        rounds=options.rounds or (2 if options.quick else ROUNDS),
        sizes=tuple(int(float(size)) for size in options.sizes.split(",") if size),
        torchrl=str(options.torchrl_python.absolute()),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; return 1 if a contestant failed."""
    options = parse(arguments)
    settings = settings_of(options)
    settings.data.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in () if options.render_only else options.only or QUESTIONS:
        question = importlib.import_module(f"benchmarks.{name}")
        result = run_question(question, settings, again=options.again or bool(options.only))
        failed += [
            f"{name}, {case['name']}, {who}: {entry['failed']}"
            for case in result["cases"]
            for who, entry in case["contestants"].items()
            if "failed" in entry
        ]
    questions = [importlib.import_module(f"benchmarks.{name}") for name in QUESTIONS]
    results = {q.__name__: load_result(settings.out / "results" / f"{n}.json")
               for n, q in zip(QUESTIONS, questions, strict=True)}  # fmt: skip
    for question in questions:  # anew: what is judged, and how, may have changed since they were stored
        result = results[question.__name__]
        if result is not None and result["finished"]:
            result["verdicts"] = [verdict.to_json() for verdict in question.judge(result["cases"])]
    say(f"wrote {render.render(questions, results, settings.out)}")
    for line in failed:
        say(f"failed: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
