import shutil

import pytest
from click.testing import CliRunner

from diskreplay.commands import main


@pytest.fixture
def cli():
    """Run the command line in this process; the result has exit_code, stdout and stderr."""

    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="session")
def recorded_store(tmp_path_factory):
    """Record 400 random steps of CartPole; nobody changes this store."""
    path = tmp_path_factory.mktemp("recorded") / "s.replay"
    arguments = ["ingest", str(path), "gym:CartPole-v1", "--steps", "400", "--num-envs", "1"]
    result = CliRunner().invoke(main, [*arguments, "--seed", "0"])
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def store(recorded_store, tmp_path):
    """Copy the recorded store, for a test to change."""
    return shutil.copytree(recorded_store, tmp_path / "s.replay")


@pytest.fixture
def check_error():
    """Expect exit status 1 with two lines on stderr, nothing on stdout and no traceback."""

    def check(result, *parts):
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        error, hint = result.stderr.strip().splitlines()[-2:]
        assert error.startswith("Error: ")
        assert hint.startswith("Hint: ")
        assert "Traceback" not in result.stderr
        for part in parts:
            assert str(part) in error + hint

    return check
