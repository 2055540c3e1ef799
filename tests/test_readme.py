"""The README's Python session runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_session_in_the_readme_runs(tmp_path, monkeypatch):
    """In an empty folder, in one piece; it leaves a sound store."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    exec(compile(code, str(README), "exec"), {})
    from diskreplay import ReplayStore

    with ReplayStore.open("cartpole.replay") as store:
        assert store.num_episodes == 20
        assert store.verify() == []
        assert store.stats().priority["count"] == len(store)
