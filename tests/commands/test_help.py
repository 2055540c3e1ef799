import dataclasses
import subprocess
import sys

import pytest

from diskreplay.commands import main

COMMANDS = ["backup", "ingest", "repair", "stats", "train", "verify"]
HEAVY = {"cv2", "gymnasium", "lmdb", "matplotlib", "numba", "numpy", "torch", "tqdm", "zarr"}


def test_every_command_is_known_here():
    assert sorted(main.commands) == COMMANDS


@pytest.mark.parametrize("arguments", [(), *[(name,) for name in COMMANDS]])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_a_sentence_an_example_and_options(cli, arguments, flag):
    result = cli(*arguments, flag)
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[0].startswith("Usage: ")
    assert lines[2].endswith((".", ","))
    assert lines[lines.index("Example:") + 1].startswith("diskreplay ")
    assert "Options:" in lines


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_and_the_store_comes_first(name):
    command = main.commands[name]
    assert next(p.name for p in command.params if p.param_type_name == "argument") == "store"
    for param in command.params:
        if param.param_type_name == "option":
            assert param.help, param.name


def test_the_options_of_train_are_those_of_its_config():
    from diskreplay.commands.train import OPTIONS
    from diskreplay.learning import TrainConfig

    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert {name for _, name, _, _ in OPTIONS} <= fields


def test_version(cli):
    result = cli("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("diskreplay ")


def test_an_unknown_command_is_wrong_usage(cli):
    assert cli("clean").exit_code == 2


def test_help_imports_nothing_heavy():
    """Whoever asks for help does not wait for torch, zarr or gymnasium."""
    code = (
        "import sys\n"
        "from diskreplay.commands import main\n"
        "main(['stats', '--help'], standalone_mode=False)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stderr.split())


def test_the_help_of_train_says_the_defaults(cli):
    """Those of vectors, and of images where they differ."""
    for _ in range(2):  # not piled up
        text = " ".join(cli("train", "--help").stdout.split())
        for line in ("[default: 5; images: 3]", "[default: mse; images: huber]", "[default: per]", "[default: yes]"):
            assert line in text
        assert text.count("[default: 5; images: 3]") == 1
