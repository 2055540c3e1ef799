"""What SOURCE means on the command line: `scheme:target`. Knows the schemes, opens nothing."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from diskreplay.errors import SourceError

SCHEMES = {
    "gym": "gym:ID, a Gymnasium environment, such as gym:CartPole-v1 or gym:ALE/Breakout-v5",
    "npz": "npz:FILE, a numpy archive of episodes, such as npz:episodes.npz",
}


@dataclass(frozen=True)
class Source:
    """Name a source of steps.

    Attributes:
        scheme: One of SCHEMES.
        target: What follows the colon: an environment's id, a file.
    """

    scheme: str
    target: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.target}"


def parse_source(text: str) -> Source:
    """Split `scheme:target`.

    Raises:
        SourceError: If the scheme is missing or unknown, or nothing follows it.

    >>> parse_source("gym:CartPole-v1")
    Source(scheme='gym', target='CartPole-v1')
    """
    scheme, colon, target = text.partition(":")
    if not colon or scheme not in SCHEMES:
        raise SourceError(f"unknown source {text!r}", hint=_suggestion(text, scheme, bool(colon)))
    if not target:
        raise SourceError(f"{text!r} names nothing after the colon", hint=f"Use {SCHEMES[scheme]}.")
    return Source(scheme, target)


def _suggestion(text: str, scheme: str, has_colon: bool) -> str:
    if not has_colon and text.endswith(".npz"):
        return f"For a file, write npz:{text}."
    if not has_colon and "-v" in text:
        return f"For an environment, write gym:{text}."
    near = get_close_matches(scheme.lower(), SCHEMES, n=1)
    if near and has_colon:
        return f"Use {SCHEMES[near[0]]}."
    return f"Use {', or '.join(SCHEMES.values())}."
