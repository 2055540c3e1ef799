"""The error tree has the shape its docstring draws, and every class can be built from one message string."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from diskreplay import errors

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.ReplayError)]


def test_the_docstring_draws_every_class():
    """No more and no fewer."""
    drawn = set(re.findall(r"(\w+Error)\b", errors.__doc__)) - {
        "FileNotFoundError", "FileExistsError", "ValueError", "LookupError", "TypeError",
    }  # fmt: skip
    assert drawn == {cls.__name__ for cls in CLASSES}


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_survives_a_worker_process(cls):
    """Torch rebuilds its error as `type(message)`; pickling must work too."""
    made = cls("what was wrong")
    assert str(made) == str(pickle.loads(pickle.dumps(made))) == "what was wrong"
    assert cls is errors.ReplayError or made.hint
    assert cls("x", path="/p", hint="do this").hint == "do this"
