"""metrics.jsonl, its cut on resume, TensorBoard events and the curve."""

from __future__ import annotations

import json

import pytest

from diskreplay.errors import TrainingError
from diskreplay.learning.curve import plot_curve
from diskreplay.learning.metrics import MetricsLog, read_metrics


def record(update, **values):
    return {"kind": "train", "update": update, "loss": 0.5, "data_wait_share": 0.01, **values}


def evaluation(update, returns):
    mean = sum(returns) / len(returns)
    return {
        "kind": "evaluation",
        "update": update,
        "eval_return_mean": mean,
        "eval_returns": returns,
    }


def write(folder, updates, **options):
    with MetricsLog(folder, tensorboard=False, **options) as log:
        for update in updates:
            log.write(record(update))


def test_one_object_a_line(tmp_path):
    """Every line is a JSON object, in the order of writing."""
    write(tmp_path, [10, 20])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == [10, 20]


def test_resume_cuts_what_comes_after_the_checkpoint(tmp_path):
    """Lines past the checkpoint's update are dropped, then the file is appended to."""
    write(tmp_path, [10, 20, 30, 40])
    write(tmp_path, [30, 40, 50], update=20)
    assert [each["update"] for each in read_metrics(tmp_path)] == [10, 20, 30, 40, 50]


def test_a_new_run_starts_an_empty_file(tmp_path):
    """Lines of an attempt that never reached a checkpoint do not stay."""
    write(tmp_path, [10, 20])
    write(tmp_path, [10])
    assert [each["update"] for each in read_metrics(tmp_path)] == [10]


def test_a_torn_last_line_is_dropped(tmp_path):
    """A crash in the middle of a line costs that line alone."""
    write(tmp_path, [10, 20])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "tra')
    assert [each["update"] for each in read_metrics(path)] == [10, 20]
    write(tmp_path, [30], update=20)
    assert [each["update"] for each in read_metrics(path)] == [10, 20, 30]


def test_damage_elsewhere_is_reported(tmp_path):
    """A line that is not JSON, but not the last, is no torn write."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('nonsense\n{"update": 1}\n')
    with pytest.raises(TrainingError, match="line 1 is not JSON"):
        read_metrics(path)
    with pytest.raises(TrainingError, match="no metrics"):
        read_metrics(tmp_path / "elsewhere")


def test_events_hold_the_scalars(tmp_path):
    """TensorBoard reads back what was written, and a resumed run's repeated updates once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path) as log:
        for update in (10, 20, 30):
            log.write(record(update, loss=float(update)))
    with MetricsLog(tmp_path, update=20) as log:
        log.write(record(30, loss=-1.0))
        log.write(evaluation(30, [1.0, 3.0]))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    values = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert values == [(10, 10.0), (20, 20.0), (30, -1.0)]
    assert events.Scalars("evaluation/eval_return_mean")[0].value == 2.0


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(10)],
        [evaluation(10, [1.0, 2.0])],
        [record(10), evaluation(10, [3.0]), record(20, loss=0.0), evaluation(20, [5.0, 9.0])],
    ],
)
def test_curve_is_a_png(tmp_path, records):
    """Whatever a run wrote, also nothing, can be drawn."""
    path = plot_curve(records, tmp_path / "curve.png", title="CartPole-v1")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "line",
    [
        b"5",
        b"{}",
        b'{"kind": "train", "update": 1}',
        b'{"kind": "evaluation", "update": 1, "eval_return_mean": 1.0, "eval_returns": []}',
        b'{"kind": "evaluation", "update": 1, "eval_return_mean": 1.0, "eval_returns": ["x"]}',
        b"\xff\xfe",
    ],
)
def test_lines_that_are_no_records_are_refused(tmp_path, line):
    """A curve cannot be drawn from them, nor a run go on."""
    good = b'{"kind": "train", "update": 1, "loss": 0.5, "data_wait_share": 0.1}'
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([line, good]))
    with pytest.raises(TrainingError, match="line 1 is not"):
        read_metrics(tmp_path)
