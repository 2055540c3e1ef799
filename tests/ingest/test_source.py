import pytest

from diskreplay.errors import SourceError
from diskreplay.ingest import Source, parse_source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gym:CartPole-v1", Source("gym", "CartPole-v1")),
        ("gym:ALE/Breakout-v5", Source("gym", "ALE/Breakout-v5")),
        ("gym:my_games:Maze-v0", Source("gym", "my_games:Maze-v0")),
        ("npz:C:/runs/a b.npz", Source("npz", "C:/runs/a b.npz")),
    ],
)
def test_source_splits_at_the_first_colon(text, expected):
    assert parse_source(text) == expected
    assert str(parse_source(text)) == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("gymn:CartPole-v1", "gym:ID"),
        ("GYM:CartPole-v1", "gym:ID"),
        ("episodes.npz", "npz:episodes.npz"),
        ("CartPole-v1", "gym:CartPole-v1"),
        ("warehouse:7", "npz:FILE"),
        ("", "gym:ID"),
        ("npz:", "npz:FILE"),
    ],
)
def test_unknown_source_says_what_to_write(text, hint):
    with pytest.raises(SourceError) as caught:
        parse_source(text)
    assert repr(text) in str(caught.value)
    assert hint in caught.value.hint
