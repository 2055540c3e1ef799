"""What commands do alike: results on stdout, all else on stderr, exit codes, signals."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click

from diskreplay.errors import ReplayError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType, TracebackType

    Function = TypeVar("Function", bound=Callable[..., Any])

EXIT_ERROR = 1
EXIT_FINDINGS = 3


class CommandGroup(click.Group):
    """Turn expected errors into two lines on stderr and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with _short_warnings():
                return super().invoke(ctx)
        except ReplayError as err:
            _fail(str(err), err.hint)
        except MemoryError:
            _fail_for_memory()
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads on
        except OSError as err:
            place = f"{err.filename}: " if err.filename is not None else ""
            _fail(f"{place}{err.strerror or err}", "Check the path, its permissions and the disk.")
        except RuntimeError as err:
            if type(err).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(err):
                raise
            _fail_for_memory()  # torch's ways to say so


def require_outside(store: Path, option: str, given: Path, kind: str) -> None:
    """Refuse to write a file or folder that an option names into the store."""
    if given.resolve().is_relative_to(store.resolve()):
        raise click.UsageError(f"{option} {given} is inside the store; choose a {kind} outside.")


def print_version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    """Print the installed version and end."""
    del param
    if not asked:
        return
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - costs time

    try:
        number = version("diskreplay")
    except PackageNotFoundError:
        number = "(not installed)"
    click.echo(f"diskreplay {number}")
    ctx.exit()


def json_option(function: Function) -> Function:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(function)


def quiet_option(function: Function) -> Function:
    """Add `--quiet`."""
    return click.option("--quiet", "-q", is_flag=True, help="Show no progress.")(function)


def emit_json(result: Mapping[str, Any]) -> None:
    """Print a result as one line of strict JSON; NaN and infinities become null."""
    click.echo(json.dumps(_finite(result), allow_nan=False))


def emit_text(text: str) -> None:
    """Print a result as text; bytes of a path that are no UTF-8 become question marks."""
    click.echo(text.encode(errors="replace").decode())


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text in columns; the last may be as wide as it likes."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head) - 1)]
    lines = []
    for row in [head, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


class ByteBar:
    """A progress bar over bytes, with its rate, on stderr; a context manager, called with (done, total).

    Args:
        what: What is being done.
        visible: Draw it; never drawn where stderr is not a terminal.
    """

    def __init__(self, what: str, *, visible: bool) -> None:
        self._what = what
        self._visible = visible and sys.stderr.isatty()
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is."""
        if not self._visible:
            return
        if self._bar is None:
            from tqdm import tqdm  # noqa: PLC0415 - costs time

            self._bar = tqdm(total=total, desc=self._what, unit="B", unit_scale=True, leave=False)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def note(message: str) -> None:
    """Say something on stderr that is not a result."""
    click.echo(message, err=True)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Let SIGINT and SIGTERM ask for a stop; yield the question whether one was asked for.

    A second signal stops at once.
    """
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        del number, frame
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        note("Stopping: what was recorded is being committed.")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail_for_memory() -> None:
    _fail("out of memory", "Use smaller batches or files, or a larger machine.")


def _fail(message: str, hint: str) -> None:
    note(f"Error: {' '.join(line.strip() for line in message.splitlines())}")
    if hint:
        note(f"Hint: {hint}")
    sys.exit(EXIT_ERROR)


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Print warnings in one line, without the place in the code."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        note(f"Warning: {click.unstyle(str(message)).removeprefix('WARN: ')}")

    before, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = before


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
