"""What is judged and rendered from known samples, and a quick run of two real questions."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import goals, render
from benchmarks.__main__ import main
from benchmarks.rows import Rows

MACHINE = {"cores": 2, "cpu": "c", "memory_gib": 1, "filesystem": "ext4", "kernel": "6", "python": "3", "commit": "",
           "load_at_start": 0.0, "libraries": {"own": {"numpy": "2"}}}  # fmt: skip


def entry(measure, values, **more):
    samples = [{measure: value, "peak_bytes": 1e6} for value in values]
    return {"samples": samples, "note": "", "group": "g", "x": None, **more}


def test_ratios_are_of_the_same_round_and_know_what_is_better():
    case = {"contestants": {"ours": entry("seconds", [1, 4, 2]), "theirs": entry("seconds", [2, 2, 8])}}
    assert goals.ratios(case, "ours", "theirs", "seconds") == [2, 0.5, 4]
    assert goals.at_least(case, "w", "ours", "theirs", "seconds", 2).met
    assert goals.at_least(case, "w", "ours", "theirs", "seconds", 2.1).met is False
    case = {"contestants": {"ours": entry("per_second", [1]), "theirs": entry("per_second", [2])}}
    assert goals.ratios(case, "ours", "theirs", "per_second") == [0.5]
    sizes = {"contestants": {"ours": {"details": {"bytes": 10}}, "theirs": {"details": {"bytes": 300}}}}
    assert goals.size_ratio(sizes, "w", "ours", "theirs", 30).met
    assert goals.size_ratio(sizes, "w", "ours", "theirs", 31).met is False


@pytest.mark.parametrize("places", [(None, None), (1e6, 1e7)])
def test_a_loss_is_rendered_as_plainly_as_a_win(tmp_path, places):
    question = SimpleNamespace(__name__="benchmarks.toy", __doc__="Why?", TITLE="Toy: x", MEASURE="steps_per_second")
    cases = [
        {"name": f"case {i}", "about": {"steps": 1000}, "memory_limit": None, "contestants": {
            "diskreplay": entry("steps_per_second", [100, 110], x=x),
            "rival": {**entry("steps_per_second", [], x=x), "skipped": "not there"},
        }}
        for i, x in enumerate(places)
    ]  # fmt: skip
    verdicts = [goals.below("w", "limit", value, 2).to_json() for value in (3.0, 1.0, None)]
    result = {"settings": {"quick": False, "rounds": 2}, "machine": MACHINE, "cases": cases, "verdicts": verdicts,
              "finished": True}  # fmt: skip
    text = render.render([question], {"benchmarks.toy": result}, tmp_path).read_text()
    assert text.count("| **MISSED** |") == text.count("| met |") == text.count("| not measured |") == 1
    assert "105 (100 to 110)" in text
    assert "**not there**" in text
    assert (tmp_path / "plots" / "toy.png").stat().st_size > 5_000


def test_windows_and_returns_of_rows_stay_in_their_episode():
    last = np.array([0, 0, 0, 1, 0, 0, 1], bool)
    rows = Rows(
        observation=np.arange(7), action=np.arange(7), reward=np.arange(1, 8, dtype=np.float32),
        terminated=np.array([0, 0, 1, 0, 0, 0, 0], bool), truncated=np.zeros(7, bool), is_last=last, about={},
    )  # fmt: skip
    assert rows.transitions.tolist() == [0, 1, 2, 4, 5]
    assert [(e.start, e.stop) for e in rows.episodes()] == [(0, 4), (4, 7)]
    assert rows.windows(np.array([1, 5]), 3).tolist() == [[0, 0, 1, 2], [4, 4, 5, 6]]
    total, discount, following = rows.n_step(2, 0.5)
    assert total[rows.transitions].tolist() == [2, 3.5, 3, 8, 6]
    assert discount[rows.transitions].tolist() == [0.25, 0, 0, 0.25, 0.5]
    assert following[rows.transitions].tolist() == [2, 3, 3, 6, 6]


def test_a_quick_run_of_real_questions(tmp_path):
    options = ["--quick", "--skip-rivals", "--rounds", "1", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*options, "--sizes", "3e3,7e4", "--only", "growth", "checkpoint"]) == 0
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    assert "70,000 steps beside 3,000" in text
    assert "quick run" in text
