"""Many short lives in a hurry: a process that has everything imported forks one child a trial.

The zygote runs below the shim, warms up on a throw-away store and keeps none open. A trial is two children: one
lives the scenario with the shim set to kill it or to let a call fail, the other, with the shim switched off, checks
what is left. Jobs and results are JSON lines on stdin and stdout.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from diskreplay.errors import ReplayError, StoreFullError, WriterStateError
from tests.torture import scenario, shim
from tests.torture.interrupt import Interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PATIENCE = 60.0
ONWARD = 12  # commits after an error; within as many both actors seal segments, and a full store evicts some
STORE = "life.replay"


@dataclass(frozen=True)
class Job:
    """A life of the scenario and what happens to it.

    Attributes:
        kind: "count", "kill", "eio", "enospc", "short", "late": the call is done, and reported as failed; or
            "interrupt".
        at: The storage call that it happens at, from 1 on; of an interrupt which of the moments at its place.
        forever: Whether every later call fails, too.
        leave: Whether the process exits at the first error, instead of going on once the calls work again.
        place: Of an interrupt, see `interrupt.place_of`; empty: it never comes, and the places are told.
    """

    kind: str = "count"
    at: int = 0
    forever: bool = False
    leave: bool = False
    place: str = ""
    seed: int = 0
    commits: int = scenario.COMMITS

    def options(self) -> dict[str, Any]:
        """Return the shim's settings."""
        return {
            "count": {},
            "interrupt": {},
            "kill": {"kill_at": self.at},
            "eio": {"fail_at": self.at, "error": "EIO", "forever": self.forever},
            "enospc": {"fail_at": self.at, "error": "ENOSPC", "forever": self.forever},
            "late": {"fail_at": self.at, "error": "EIO", "late": True, "forever": self.forever},
            "short": {"short_at": self.at, "forever": self.forever},
        }[self.kind]


@dataclass
class Result:
    """What came of a trial.

    Attributes:
        errors: Class and message of the typed errors that were raised, in order.
        went_on: How the life went on after an error: "same handle", "new handle" or "left".
        acked: The last commit that was acknowledged.
        calls: Storage calls of the whole life, counted up to where the shim was switched off.
        operations: Which they were, of a life that is only counted.
        places: Where an interrupt could have come, and how often; of a life without one.
        problems: What must not be.
    """

    job: Job
    errors: list[tuple[str, str]] = field(default_factory=list)
    went_on: str = ""
    acked: int = 0
    calls: int = 0
    operations: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, line: str) -> Result:
        data = json.loads(line)
        return cls(**{**data, "job": Job(**data["job"]), "errors": [tuple(error) for error in data["errors"]]})


def live(job: Job, folder: Path) -> dict[str, Any]:
    """Live the scenario while the shim, or an interrupt, does what the job says; return a part of the result."""
    store, ack = folder / "root" / STORE, folder / "ack"
    out: dict[str, Any] = {"errors": [], "problems": [], "went_on": ""}
    life = None
    interrupt = Interrupt(job.place, job.at)
    shim.restart(folder / "root", ack=ack, counter=folder / "counter", **job.options())
    try:
        with interrupt if job.kind == "interrupt" else contextlib.nullcontext():
            life = scenario.Life(store, job.seed, ack)
            life.run(job.commits)
            life.close()
    except (Exception, KeyboardInterrupt) as err:  # noqa: BLE001  which one it was is the question
        _judge(job, err, out)
        if job.leave:
            return {**out, "went_on": "left"}
    shim.restart()
    if job.kind == "interrupt" and not job.place:
        out["places"] = dict(interrupt.met)
    if out["errors"] or out["problems"]:
        _go_on(job, life, folder, out)
    return out


def _judge(job: Job, err: Exception, out: dict[str, Any]) -> None:
    out["errors"].append((type(err).__name__, str(err)))
    if not isinstance(err, KeyboardInterrupt if job.kind == "interrupt" else ReplayError):
        out["problems"].append(scenario.describe("an untyped error", err))
    elif job.kind == "enospc" and not isinstance(err, StoreFullError):
        out["problems"].append(scenario.describe("no StoreFullError", err))


def _go_on(job: Job, life: scenario.Life | None, folder: Path, out: dict[str, Any]) -> None:
    """Go on after an error, the cause of which is gone: with the same handle, or if that will not do a new one."""
    store, ack = folder / "root" / STORE, folder / "ack"
    until = min(job.commits, (0 if life is None else life.model.commits) + ONWARD)
    if life is not None:
        try:
            if job.kind == "interrupt":
                life.after_interrupt()
            life.run(until)
            life.close()
        except Exception as err:  # noqa: BLE001  same
            out["errors"].append((type(err).__name__, str(err)))
            refused = scenario.describe("the handle does not go on", err)
            # A step that could not begin a segment ended its episode, and says so: this life cannot repeat it.
            if not isinstance(err, ReplayError) or (job.kind == "enospc" and not isinstance(err, WriterStateError)):
                out["problems"].append(refused)
        else:
            out["went_on"] = "same handle"
            return
    try:
        if life is not None:
            life.close()
        life = scenario.Life(store, job.seed, ack)
        life.run(until)
        life.close()
        out["went_on"] = "new handle"
    except Exception as err:  # noqa: BLE001  same
        out["problems"].append(scenario.describe("a new handle does not go on", err))


def fork(function: Callable[..., Any], *arguments: Any, patience: float = PATIENCE) -> tuple[Any, str]:
    """Call a function in a forked child; return its result, if there is one, and how the child ended."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(read)
            faulthandler.dump_traceback_later(patience - 2, file=sys.stderr)
            data = json.dumps(function(*arguments)).encode()
            with os.fdopen(write, "wb") as pipe:
                pipe.write(data)
        finally:
            # Without the interpreter's clean-up: a process that dies must leave the same as one that ends.
            os._exit(0)
    os.close(write)
    parts, deadline, ended = [], time.monotonic() + patience, ""
    poll = select.poll()
    poll.register(read, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(1000 * left):
            os.kill(pid, signal.SIGKILL)
            ended = f"hung for {patience:.0f} s"
            break
        part = os.read(read, 1 << 16)
        if not part:
            break
        parts.append(part)
    os.close(read)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return json.loads(b"".join(parts) or b"null"), ended or (f"died of signal {-code}" if code < 0 else "")


def run_here(job: Job, folder: Path) -> Result:
    """Do one trial, in two children of this process."""
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "root").mkdir(parents=True)
    lived, ended = fork(live, job, folder)
    result = Result(job, **(lived or {}))
    if lived is None and (job.kind != "kill" or ended != f"died of signal {int(signal.SIGKILL)}"):
        result.problems.append(f"the life {ended or 'ended without a word'}")
    result.acked = scenario.acknowledged(folder / "ack")
    if (folder / "counter").exists():
        result.calls = shim.calls(folder / "counter")
        if job.kind == "count":
            result.operations = shim.operations(folder / "counter")
    # A life that went on after an error has shown that it can.
    onward = 0 if result.went_on in {"same handle", "new handle"} else 2
    found, ended = fork(scenario.check, folder / "root" / STORE, job.seed, result.acked, onward)
    result.problems += found if found is not None else [f"the check {ended or 'ended without a word'}"]
    result.seconds = time.monotonic() - began
    return result


def undisturbed(job: Job) -> Result:
    """Do a trial in which nothing happens.

    Raises:
        RuntimeError: If there are problems even so.
    """
    (result,) = run([job])
    if result.problems:
        raise RuntimeError(f"an undisturbed life has problems: {result.problems}")
    return result


class Zygote:
    """A process that does trials, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.trial", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=shim.environment(None),
            text=True,
        )

    def do(self, job: Job) -> Result:
        """Do one trial.

        Raises:
            RuntimeError: If the zygote is gone.
        """
        self.process.stdin.write(json.dumps(asdict(job)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the zygote ended with {self.process.wait()}")
        return Result.from_json(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Zygotes:
    """A number of zygotes that share the trials; a context manager."""

    def __init__(self, workers: int = 2) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trials-")
        self._zygotes = [Zygote(Path(self._folder.name) / str(number)) for number in range(workers)]

    def run(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Do trials; yield the results as they come. The iterator is to be used up before the next call."""
        todo: queue.SimpleQueue[Job] = queue.SimpleQueue()
        done: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
        for job in jobs:
            todo.put(job)
        for zygote in self._zygotes:
            threading.Thread(target=_work, args=(zygote, todo, done), daemon=True).start()
        for _ in jobs:
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            yield result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for zygote in self._zygotes:
            zygote.close()
        self._folder.cleanup()


def run(jobs: Sequence[Job], *, workers: int = 2) -> Iterator[Result]:
    """Do trials in zygotes of their own; yield the results as they come."""
    with Zygotes(min(workers, len(jobs))) as zygotes:
        yield from zygotes.run(jobs)


def _work(zygote: Zygote, todo: queue.SimpleQueue[Job], done: queue.SimpleQueue[Result | BaseException]) -> None:
    try:
        while True:
            done.put(zygote.do(todo.get_nowait()))
    except queue.Empty:
        return
    except BaseException as err:  # noqa: BLE001  the caller's thread raises it
        done.put(err)


def _warm_up(store: Path) -> list[str]:
    """Live once; return what was wrong with it. All of a life: what it first needs late, every child would import."""
    try:
        life = scenario.Life(store, 0)
        life.run(scenario.COMMITS)
        life.close()
    except Exception as err:  # noqa: BLE001  every trial's life will say it again
        return [scenario.describe("it stops", err)]
    return scenario.check(store, 0, scenario.COMMITS)


def main(folder: Path) -> int:
    """Be a zygote."""
    warm = folder / "warm"
    warm.mkdir(parents=True)
    problems = _warm_up(warm / STORE)
    if problems:
        print("problems of a life in which nothing happens:", *problems, sep="\n", file=sys.stderr)  # noqa: T201
    for line in sys.stdin:
        result = run_here(Job(**json.loads(line)), folder / "trial")
        print(json.dumps(asdict(result)), flush=True)  # noqa: T201
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
