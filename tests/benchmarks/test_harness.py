"""The harness: who runs when, what is kept, and what a failure leaves."""

import json
from pathlib import Path

import pytest

from benchmarks import goals
from benchmarks.harness import Case, Contestant, Settings, run_case, run_question

TOYS = "tests.benchmarks.toys"


@pytest.fixture
def settings(tmp_path):
    return Settings(data=tmp_path / "data", out=tmp_path / "out", rounds=2, rivals=False)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rounds_alternate_and_every_sample_is_kept(settings, tmp_path):
    who = Contestant("a", f"{TOYS}:Toy", {"rate": 3}), Contestant("b", f"{TOYS}:Toy", {"rate": 2}, fresh=True)
    case = run_case(Case("toys", who), settings, tmp_path / "samples.jsonl")
    kept = lines(tmp_path / "samples.jsonl")
    assert [line["contestant"] for line in kept] == ["a", "b", "b", "a"]
    assert goals.samples(case, "a", "things_per_second") == [3, 6]
    assert goals.samples(case, "b", "things_per_second") == [2, 2]  # a new process each round
    assert goals.ratios(case, "a", "b", "things_per_second") == [1.5, 3]
    assert case["contestants"]["a"]["details"]["bytes"] == 300
    pids = {line["contestant"]: line["process"] for line in kept}
    assert len(set(pids.values())) == 2


def test_failures_and_absences_are_results(settings, tmp_path):
    who = (
        Contestant("fails", f"{TOYS}:Toy", {"rate": 1, "fails_at": 2}),
        Contestant("dies", f"{TOYS}:Dies", {"rate": 1}),
        Contestant("absent", f"{TOYS}:Toy", {"rate": 1}, needs="no_such_module_anywhere"),
        Contestant("elsewhere", f"{TOYS}:Toy", {"rate": 1}, environment="torchrl"),
        Contestant("rival", "benchmarks.compare.numpy_arrays:Windows"),
        Contestant("good", f"{TOYS}:Toy", {"rate": 1}),
    )
    found = run_case(Case("toys", who), settings, tmp_path / "samples.jsonl")["contestants"]
    assert len(found["fails"]["samples"]) == 1
    assert "no more" in found["fails"]["failed"]
    assert "died (3)" in found["dies"]["failed"]
    assert found["absent"]["skipped"] == "no_such_module_anywhere is not installed"
    assert found["elsewhere"]["skipped"] == "no environment for it"
    assert found["rival"]["skipped"] == "rivals were left out"
    assert len(found["good"]["samples"]) == 2
    verdict = goals.at_least({"contestants": found}, "work", "good", "dies", "things_per_second", 1)
    assert verdict.met is None
    assert "died" in verdict.measured


class Question:
    __name__ = "benchmarks.toy"

    def __init__(self, names):
        self.names, self.made = names, []

    def cases(self, settings):
        for name in self.names:
            self.made.append(name)
            yield Case(name, (Contestant("a", f"{TOYS}:Toy", {"rate": 1}),))

    @staticmethod
    def judge(cases):
        return [goals.below("toys", "a limit", goals.median(case, "a", "things_per_second"), 1.6) for case in cases]


def test_an_unfinished_question_goes_on(settings, monkeypatch):
    def broken(cases):
        raise KeyboardInterrupt

    question = Question(["one", "two"])
    monkeypatch.setattr(question, "judge", broken)
    with pytest.raises(KeyboardInterrupt):
        run_question(question, settings, again=False)
    done = run_question(Question(["one", "two", "three"]), settings, again=False)
    samples = lines(settings.out / "results" / "toy.jsonl")
    assert [line["case"] for line in samples] == ["one", "one", "two", "two", "three", "three"]
    assert [verdict["met"] for verdict in done["verdicts"]] == [True] * 3
    assert run_question(Question([]), settings, again=False) == done
    again = run_question(Question(["one"]), settings, again=True)
    assert [case["name"] for case in again["cases"]] == ["one"]
    assert not list(Path(settings.out).rglob("*.partial"))
