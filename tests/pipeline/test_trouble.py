"""What must not end a training, and what must: a full disk, a slow file system, a long look at the samples."""

import errno
import json
import time

import pytest

import tests.pipeline.test_trainer as trainer_tests
from pipeline import heartbeat, runs
from pipeline.control import Stop
from pipeline.errors import RunFailed
from pipeline.files import append_line

lab = trainer_tests.lab
Line = trainer_tests.Line


def no_room(path, *_, **__):
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def no_room_for(*events):
    def append(path, tree, **kwargs):
        if tree["event"] in events:
            no_room(path)
        append_line(path, tree, **kwargs)

    return append


class SlowLine(Line):
    """Each step takes a moment."""

    def training_step(self, batch, step):
        time.sleep(0.01)
        return super().training_step(batch, step)


def test_a_disk_that_fills_while_it_trains_costs_the_heartbeat_and_is_told_once(lab, monkeypatch, capsys):
    run, trainer = lab(kind=SlowLine)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(runs, "write_json", no_room)
    assert trainer.fit() is Stop.NO
    assert capsys.readouterr().err.count("heartbeat.json cannot be written (No space left on device)") == 1
    assert run.steps()[-1] == 20


def test_an_event_that_finds_no_room_is_said_and_training_goes_on(lab, monkeypatch, capsys):
    _, trainer = lab()
    monkeypatch.setattr(runs, "append_line", no_room_for("first_step", "end"))
    assert trainer.fit() is Stop.NO
    told = capsys.readouterr().err
    assert "so it lacks: first_step" in told and "so it lacks: end (attempt 1, reason complete, step 20" in told


def test_what_later_attempts_go_by_is_written_down_or_the_run_stops(lab, monkeypatch):
    run, trainer = lab()
    monkeypatch.setattr(runs, "append_line", no_room)
    with pytest.raises(RunFailed, match=r"history\.jsonl cannot be written .*is not begun; make room"):
        trainer.fit()
    monkeypatch.undo()
    _, trainer = lab("b", poison=7)
    monkeypatch.setattr(runs, "append_line", no_room_for("rolled_back"))
    with pytest.raises(RunFailed, match="the same data would do the same harm"):
        trainer.fit()


def test_the_heart_beats_through_a_long_validation(lab, monkeypatch):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.05)
    beats = []

    class LongLook(Line):
        def validation_step(self, batch, step):
            time.sleep(0.3)
            beats.append(json.loads(run.heartbeat_file.read_text())["time"])
            return super().validation_step(batch, step)

    run, trainer = lab(kind=LongLook, max_steps=5, validate_every=5)
    trainer.fit()
    assert len(beats) == len(set(beats)) == 2 and beats[1] - beats[0] >= 0.2
    assert run.heartbeat()["state"] == "complete" and run.heartbeat()["step"] == 5
