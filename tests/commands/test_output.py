import click
import pytest
from click.testing import CliRunner

from diskreplay.commands.output import CommandGroup
from diskreplay.errors import ReplayError


def fail_with(error):
    group = CommandGroup("main")

    @group.command()
    def fail():
        raise error

    return CliRunner().invoke(group, ["fail"])


class OutOfMemoryError(RuntimeError):
    """Stands for torch's."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_memory_that_is_not_there_is_an_error_of_two_lines(check_error, error):
    check_error(fail_with(error), "out of memory", "smaller batches")


def test_an_error_of_several_lines_is_told_in_one(check_error):
    result = fail_with(ReplayError("weights:\n\tdo not\n\tfit", hint="Give others."))
    check_error(result, "Error: weights: do not fit")
    assert len(result.stderr.splitlines()) == 2


def test_other_errors_are_not_hidden():
    assert isinstance(fail_with(RuntimeError("a bug")).exception, RuntimeError)
    assert fail_with(click.UsageError("wrong")).exit_code == 2
