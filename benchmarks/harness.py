"""Run contestants side by side: a worker process each, prepared once, then run in turn, round by round.

The order turns around every other round, so that nobody always comes after the same neighbour. Every sample goes
to a JSON-lines file; medians and ratios are made from those.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks import machine

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 5


@dataclass(frozen=True)
class Contestant:
    """Who runs.

    Attributes:
        name: How tables call it; unique in its case.
        target: "module:Class", see worker.py.
        options: What the class is made with; JSON.
        needs: A module it cannot run without: then it is skipped, and said so.
        program: A program, likewise.
        environment: "own" or "torchrl": which interpreter.
        note: What it does differently, for the reader.
        group: Which line of a plot over `x` it belongs to.
        x: Its place on a plot's axis, such as the number of steps.
        fresh: Start its process anew for every round.
    """

    name: str
    target: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: str = ""
    program: str = ""
    environment: str = "own"
    note: str = ""
    group: str = ""
    x: float | None = None
    fresh: bool = False


@dataclass(frozen=True)
class Case:
    """Contestants that are compared with each other; the first is what the others are measured by.

    Attributes:
        name: Unique in its question.
        contestants: Who runs, in this order.
        about: What the reader has to know: sizes, limits.
        memory_limit: Bytes that each process may use, page cache included, from its start.
        cold: Files and folders that leave the page cache once everybody is prepared.
        rounds: As many rounds, whatever was asked for.
    """

    name: str
    contestants: tuple[Contestant, ...]
    about: dict[str, Any] = field(default_factory=dict)
    memory_limit: int | None = None
    cold: tuple[Path, ...] = ()
    rounds: int | None = None


@dataclass(frozen=True)
class Settings:
    """What a run was asked for."""

    data: Path
    out: Path
    quick: bool = False
    rivals: bool = True
    rounds: int = ROUNDS
    sizes: tuple[int, ...] = ()
    torchrl: str = ""

    def python(self, environment: str) -> str:
        """Return the interpreter of an environment; empty if there is none."""
        return sys.executable if environment == "own" else self.torchrl

    def unavailable(self, who: Contestant) -> str:
        """Say why a contestant cannot run; empty if it can."""
        if not self.rivals and who.target.startswith("benchmarks.compare"):
            return "rivals were left out"
        python = self.python(who.environment)
        if not python or not Path(python).exists():
            return "no environment for it"
        if who.needs and not machine.has_module(python, who.needs):
            return f"{who.needs} is not installed"
        if who.program and shutil.which(who.program) is None:
            return f"{who.program} is not installed"
        return ""

    def pick(self, full: Any, quick: Any) -> Any:
        """Return the value for a full run or for a quick one."""
        return quick if self.quick else full

    def to_json(self) -> dict[str, Any]:
        """Return what makes two runs comparable."""
        return {"quick": self.quick, "rivals": self.rivals, "rounds": self.rounds, "sizes": list(self.sizes)}


class ContestantError(Exception):
    """A contestant's process raised, or died."""


class Process:
    """A contestant's process."""

    def __init__(self, who: Contestant, settings: Settings, limit: int | None) -> None:
        self.who = who
        self._stack = ExitStack()
        name = "".join(letter for letter in who.name if letter.isalnum())
        prefix = self._stack.enter_context(machine.memory_limit(name, limit))
        command = [*prefix, settings.python(who.environment), "-W", "ignore", "-m", "benchmarks.worker"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, wait for its answer.

        Raises:
            ContestantError: If it failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ContestantError(f"its process died ({self._process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            print(answer["traceback"], file=sys.stderr)
            raise ContestantError(answer["error"])
        return answer

    def prepare(self) -> dict[str, Any]:
        """Build and warm up; return details."""
        details: dict[str, Any] = self.ask(do="prepare", target=self.who.target, options=self.who.options)["details"]
        return details

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            if self._process.poll() is None:
                try:
                    self.ask(do="close")
                except ContestantError as err:
                    print(f"{self.who.name}, closing: {err}", file=sys.stderr)
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()


def run_case(case: Case, settings: Settings, samples: Path) -> dict[str, Any]:
    """Run a case; return what came of it. Failures are results too."""
    found: dict[str, dict[str, Any]] = {}
    alive: dict[str, Process] = {}
    with ExitStack() as stack:
        for who in case.contestants:
            entry: dict[str, Any] = {"note": who.note, "group": who.group or who.name, "x": who.x, "samples": []}
            found[who.name] = entry
            reason = settings.unavailable(who)
            if reason:
                entry["skipped"] = reason
                continue
            say(f"  preparing {who.name}")
            began = time.perf_counter()
            process = stack.enter_context(Process(who, settings, case.memory_limit))
            try:
                entry["details"] = process.prepare()
            except ContestantError as err:
                entry["failed"] = str(err)
                say(f"  {who.name} failed: {err}")
                continue
            entry["prepare_seconds"] = round(time.perf_counter() - began, 1)
            alive[who.name] = process
        if case.cold:
            machine.forget_files(*case.cold)
        for number in range(case.rounds or settings.rounds):
            for name in list(alive)[:: -1 if number % 2 else 1]:
                try:
                    answer = _run(alive[name], settings, case, fresh=number > 0)
                except ContestantError as err:
                    found[name]["failed"] = str(err)
                    del alive[name]
                    say(f"  {name} failed: {err}")
                    continue
                sample = {**answer["measures"], "peak_bytes": answer["peak_bytes"]}
                found[name]["samples"].append(sample)
                line = {"case": case.name, "contestant": name, "round": number, "at": round(time.time(), 1), **sample}
                with samples.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                say(f"  {number + 1}: {name:32} " + "  ".join(f"{k} {v:,.6g}" for k, v in sample.items()))
    return {"name": case.name, "about": case.about, "memory_limit": case.memory_limit, "contestants": found}


def _run(process: Process, settings: Settings, case: Case, *, fresh: bool) -> dict[str, Any]:
    if not (fresh and process.who.fresh):
        return process.ask(do="run")
    with Process(process.who, settings, case.memory_limit) as another:
        another.prepare()
        return another.ask(do="run")


def run_question(question: ModuleType, settings: Settings, *, again: bool) -> dict[str, Any]:
    """Run a question's cases, going on where an unfinished run with the same settings stopped; store the result."""
    name = question.__name__.rpartition(".")[2]
    folder = settings.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path, samples = folder / f"{name}.json", folder / f"{name}.jsonl"
    result = load_result(path)
    same = result is not None and result["settings"] == settings.to_json()
    if result is not None and same and result["finished"] and not again:
        say(f"{name}: done before")
        return result
    if result is None or not same or result["finished"]:
        about = machine.facts(settings.data)
        about["libraries"] = {env: machine.versions(settings.python(env)) for env in ("own", "torchrl") if
                              settings.python(env)}  # fmt: skip
        result = {"question": name, "settings": settings.to_json(), "machine": about, "cases": [], "finished": False}
        samples.unlink(missing_ok=True)
    done = {case["name"] for case in result["cases"]}
    for case in question.cases(settings):
        if case.name in done:
            continue
        say(f"{name}, {case.name}")
        result["cases"].append(run_case(case, settings, samples))
        store_result(path, result)
    result["verdicts"] = [verdict.to_json() for verdict in question.judge(result["cases"])]
    result["finished"] = True
    store_result(path, result)
    return result


def load_result(path: Path) -> dict[str, Any] | None:
    """Return a stored result, or None."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def store_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1), encoding="utf-8")
    partial.replace(path)


def say(text: str) -> None:
    """Tell whoever watches."""
    print(text, file=sys.stderr, flush=True)
