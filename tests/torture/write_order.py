"""Lint a log of storage calls: is everything durable that a commit or an acknowledgement says is there?

A crash shows a missing fsync only if it falls into the right moment. The order of calls shows it every time. Rules:

R1  What is renamed into place was synced after its last write; a folder, with everything in it. Nothing in a store
    is made under its final name.
R2  At a commit point (LMDB writes its meta page, with O_DSYNC) no name of a lasting file that the process made is
    pending: its folder was synced since. Outside of stores this holds for renames, as of checkpoints.
R3  At a commit point the transaction's own pages are durable. An acknowledgement follows a commit point of its own,
    and nothing that the process wrote into a store is pending.
R4  A shard is not touched after its rename, and none is renamed over it.
R5  A shard that a commit point may have catalogued is removed or moved only behind a commit point, with no
    acknowledgement and no new shard in between: the transaction that takes it out of the catalogue comes first.
R6  As R2, for folders.
R7  A checkpoint (*.pt) is never written under its final name, and none is pending when its process ends.

Temporary are: *.partial, *.tmp, lock files, lost+found, and the watermark of the index, which is a bound that may
be old. A process that ends with exit code 0 acknowledges as well.

Not covered: whether the calls hold the right bytes; a catalogue that names a file which was never written (R5 does
not read the catalogue; the op-log replay does); stores whose durability is "process".

    python -m tests.torture.write_order                      ingest, train, stats and the scenario
    python -m tests.torture.write_order COMMAND...           this command, in an empty folder of its own
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.torture import shim
from tests.torture.oplog import Directory, File, FileSystem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.torture.oplog import Node

INDEX = "index.lmdb/data.mdb"
SHARD = re.compile(r"/steps/[^/]+/c\.[^/]*$")
TEMPORARY = re.compile(
    r"\.partial(/|$)|\.tmp$|(^|/)locks(/|$)|(^|/)lock\.mdb$|(^|/)lost\+found(/|$)|index\.lmdb/watermark$"
)
COMMANDS = (
    "{python} -m diskreplay ingest cart.replay gym:CartPole-v1 --steps 3000 --seed 1",
    "{python} -m diskreplay ingest cart.replay gym:CartPole-v1 --steps 1000 --seed 2 --num-envs 2",
    "{python} -m diskreplay train cart.replay --out run --updates 200 --checkpoint-every 50",
    "{python} -m diskreplay stats cart.replay --json",
    "{python} -m tests.torture.scenario life.replay --seed 0 --commits 40 --ack {ack}",
)


@dataclass(frozen=True)
class Violation:
    """A rule that the call of this number (counted from 1) breaks."""

    rule: str
    call: int
    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.rule} call {self.call}: {self.path}: {self.why}"


class Linter:
    """Follow a log and note what breaks a rule.

    Args:
        root: The folder the log was recorded in.

    Attributes:
        violations: What was found.
        commit_points: How many there were.
        acknowledgements: How many there were, processes that ended well included.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.files = FileSystem(root)
        self.violations: list[Violation] = []
        self.call = self.commit_points = self.acknowledgements = 0
        self.stores: set[str] = set()
        self._shards: dict[File, int] = {}
        self._catalogued: set[File] = set()
        self._may_remove: set[int] = set()
        self._committed: set[int] = set()
        self._noted: set[tuple[str, str, str]] = set()

    def feed(self, operations: Iterable[shim.Operation]) -> None:
        """Take in the log's next calls."""
        for op in operations:
            self.call += 1
            path = self._relative(op.path)
            if op.name == "ACK":
                self.acknowledge(op.pid)
            elif op.name == "WRITE" and op.dsync and path.endswith(INDEX):
                self._commit_point(op, path)
            elif op.name in {"WRITE", "TRUNCATE", "ALLOCATE"}:
                self._changes(op, path)
            elif op.name in {"CREATE", "LINK"}:
                self._makes(self._relative(op.path2) if op.name == "LINK" else path)
            elif op.name == "RENAME":
                self._renames(op, path, self._relative(op.path2))
            elif op.name == "UNLINK":
                self._removes(op, path)
            self.files.apply(op)

    def acknowledge(self, pid: int | None, *, committed: bool = True) -> None:
        """Check what has to be durable when a process says that it is; None: whatever process."""
        self.acknowledgements += 1
        if committed and pid is not None and pid not in self._committed:
            self._note("R3", "", "acknowledged without a commit point")
        for node, path, pids in self._pending():
            if path.endswith(INDEX) and isinstance(node, File) and all(effect.data is None for effect in node.pending):
                continue  # room behind the pages that it counts, which whoever opens it may make: no harm if it is lost
            if (pid is None or pid in pids) and self._store(path) is not None:
                what = "written" if isinstance(node, File) else f"changed ({', '.join(self._names(node, pid))})"
                self._note("R3", path, f"{what}, not synced, and acknowledged")
            elif pid is None and isinstance(node, File) and path.endswith(".pt"):
                self._note("R7", path, "written, not synced, and the process has ended")
            elif pid is None and isinstance(node, Directory):
                for name in self._names(node, pid):
                    if name.endswith(".pt"):
                        self._note("R7", f"{path}/{name}", "its name is not synced, and the process has ended")
        self._committed.discard(pid or 0)
        self._may_remove.discard(pid or 0)

    def _commit_point(self, op: shim.Operation, path: str) -> None:
        store = path.removesuffix("/" + INDEX)
        if TEMPORARY.search(store):
            return
        self.commit_points += 1
        self.stores.add(store)
        index = self.files.find(op.path)
        if isinstance(index, File) and any(effect.pid == op.pid for effect in index.pending):
            self._note("R3", path, "the transaction's pages are not synced before its meta page")
        for node, where, _ in self._pending():
            if isinstance(node, Directory):
                self._check_names(node, where, op.pid)
            elif SHARD.search("/" + where) and node in self._shards:
                self._note("R1", where, "written, not synced, and committed")
        self._catalogued |= {shard for shard, pid in self._shards.items() if pid == op.pid}
        self._may_remove.add(op.pid)
        self._committed.add(op.pid)

    def _check_names(self, node: Directory, where: str, pid: int) -> None:
        for entry in node.pending:
            if entry.pid != pid:
                continue
            for name, target in entry.changes.items():
                path = f"{where}/{name}".lstrip("/")
                inside = self._store(path) is not None
                if target is None or TEMPORARY.search(path) or not (inside or entry.kind == "RENAME"):
                    continue
                folder = isinstance(target, Directory)
                self._note("R6" if folder else "R2", path, "committed before its folder was synced")

    def _changes(self, op: shim.Operation, path: str) -> None:
        node = self.files.find(op.path)
        if node in self._shards:
            self._note("R4", path, f"{op.name} after the shard was put in place")
        elif path.endswith(".pt"):
            self._note("R7", path, f"{op.name} under its final name")

    def _makes(self, path: str) -> None:
        if self._store(path) is not None and not TEMPORARY.search(path) and not path.endswith(INDEX):
            self._note("R1", path, "made under its final name")

    def _renames(self, op: shim.Operation, path: str, to: str) -> None:
        source, target = self.files.find(op.path), self.files.find(op.path2)
        if TEMPORARY.search(to):
            if isinstance(source, File) and source in self._catalogued:
                self._removes(op, path)
            return
        if target in self._shards:
            self._note("R4", to, "a shard was renamed over")
        nodes = list(self._below(source)) if source is not None else []
        for node in nodes:
            inner = f"{to}/{node.path[len(path) :]}".replace("//", "/").rstrip("/")
            if node.pending and not TEMPORARY.search(inner):
                self._note("R1", to, f"renamed into place before {'it' if inner == to else inner} was synced")
        if isinstance(source, File) and SHARD.search("/" + to):
            self._shards[source] = op.pid
            self._may_remove.discard(op.pid)

    def _removes(self, op: shim.Operation, path: str) -> None:
        node = self.files.find(op.path)
        if isinstance(node, File) and node in self._catalogued and op.pid not in self._may_remove:
            self._note("R5", path, "removed before a commit point that takes it out of the catalogue")

    def _below(self, node: Node) -> Iterator[File | Directory]:
        if isinstance(node, (File, Directory)):
            yield node
        if isinstance(node, Directory):
            for child in node.cache.values():
                yield from self._below(child)

    def _pending(self) -> Iterator[tuple[File | Directory, str, set[int]]]:
        """Yield what is lasting and has pending changes: the node, its path, the processes that made them."""
        for node in list(self.files.dirty):
            path, pids = node.path, {change.pid for change in node.pending}
            attached = node is self.files.top or (node.parent is not None and node.parent.cache.get(node.name) is node)
            if not attached or TEMPORARY.search(path):
                continue
            if isinstance(node, Directory) and not self._names(node, None):
                continue
            yield node, path, pids

    @staticmethod
    def _names(node: Directory, pid: int | None) -> list[str]:
        prefix = f"{node.path}/".lstrip("/")
        changed = {name for entry in node.pending if pid in (None, entry.pid) for name in entry.changes}
        return sorted(name for name in changed if not TEMPORARY.search(prefix + name))

    def _store(self, path: str) -> str | None:
        return next((store for store in self.stores if path == store or path.startswith(store + "/")), None)

    def _relative(self, path: str) -> str:
        return path.removeprefix(self.files.root).lstrip("/")

    def _note(self, rule: str, path: str, why: str) -> None:
        # What stays undone would be told again at every commit.
        if (rule, path, why) not in self._noted:
            self._noted.add((rule, path, why))
            self.violations.append(Violation(rule, self.call, path, why))


def lint(operations: Iterable[shim.Operation], root: str | os.PathLike[str], *, ended: bool = False) -> Linter:
    """Check a log.

    Args:
        operations: The calls.
        root: The folder they were recorded in.
        ended: Whether the process has ended with exit code 0.
    """
    linter = Linter(root)
    linter.feed(operations)
    if ended:
        linter.acknowledge(None)
    return linter


def run_under_shim(commands: Sequence[Sequence[str]], folder: Path) -> tuple[Linter, list[str]]:
    """Run commands one after the other in `folder / "root"`; return the linter and a line on each.

    Raises:
        RuntimeError: If a command fails.
    """
    root, log = (folder / "root").resolve(), folder / "ops.log"
    root.mkdir(parents=True)
    linter, lines, offset = Linter(root), [], 0
    for command in commands:
        environment = shim.environment(root, ack=folder / "ack", log=log)
        here = str(Path(__file__).absolute().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        done = subprocess.run(command, cwd=root, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        before = linter.call, linter.commit_points, len(linter.violations)
        operations = list(shim.read_log(log))[offset:] if log.exists() else []
        offset += len(operations)
        linter.feed(operations)
        linter.acknowledge(None)
        calls, points, wrong = (
            linter.call - before[0],
            linter.commit_points - before[1],
            len(linter.violations) - before[2],
        )
        lines.append(f"{wrong} violations in {calls:,} calls, {points} commit points: {shlex.join(command)}")
    return linter, lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run; default: the commands of the project")
    command = parser.parse_args(arguments).command
    with tempfile.TemporaryDirectory(prefix="order-") as name:
        filled = (line.format(python=sys.executable, ack=Path(name) / "ack") for line in COMMANDS)
        commands = [command] if command else [shlex.split(line) for line in filled]
        linter, lines = run_under_shim(commands, Path(name))
    for line in [*lines, *map(str, linter.violations[:50])]:
        print(line)  # noqa: T201
    print(  # noqa: T201
        f"{len(linter.violations)} violations in {linter.call:,} calls, {linter.commit_points} commit points, "
        f"{linter.acknowledgements} acknowledgements"
    )
    return int(bool(linter.violations))


if __name__ == "__main__":
    sys.exit(main())
