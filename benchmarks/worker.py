"""The process of one contestant: prepares once, then runs when it is told to, and answers in JSON lines.

A contestant is a class made with options; `prepare()` builds and warms up and returns details, `run()` returns its
measures, `close()` cleans up. Stands alone, so that rivals can live in environments of their own.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def repeat(call: Callable[[], object], seconds: float, least: int = 3) -> tuple[int, float]:
    """Call again and again for so many seconds; return how often, and the seconds it took."""
    calls, began = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        took = time.perf_counter() - began
        if took >= seconds and calls >= least:
            return calls, took


def memory() -> dict[str, int]:
    """Return this process's memory in bytes: resident, anonymous (no file's pages), and the most it was."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    status = dict(line.split(":", 1) for line in lines)
    names = {"resident": "VmRSS", "anonymous": "RssAnon", "peak": "VmHWM"}
    return {name: int(status[key].split()[0]) * 1024 for name, key in names.items()}


def bytes_read() -> int:
    """Return how many bytes this process has had read from disks, page faults of maps included."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


class Worker:
    """Hold the contestant between requests."""

    def __init__(self) -> None:
        self.contestant: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked; return what is to be told."""
        if request["do"] == "prepare":
            before = memory()["anonymous"]
            module, _, name = request["target"].partition(":")
            self.contestant = getattr(importlib.import_module(module), name)(**request["options"])
            details = self.contestant.prepare() or {}
            now = memory()
            return {"details": {**details, "prepared_bytes": now["anonymous"] - before}}
        if request["do"] == "run":
            measures = self.contestant.run()
            return {"measures": measures, "peak_bytes": memory()["peak"]}
        if hasattr(self.contestant, "close"):
            self.contestant.close()
        return {}


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as err:  # noqa: BLE001  whatever a rival raises is for the report
            answer = {"error": f"{type(err).__name__}: {err}", "traceback": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
