"""Reading on is reading all: whatever happens to the journals, what was read in pieces equals what is read at once."""

from __future__ import annotations

import json
import random

import pytest

from monitoring import run_rows
from monitoring.run_rows import RunRows, milliseconds, stored
from pipeline.files import write_json
from pipeline.journal import read_journals
from tests.monitoring.run_factory import attempt, grow, make_run


def at_once(run) -> set:
    points = [(p.step, milliseconds(p.time), p.metrics) for p in read_journals(run.metrics)]
    return {(key, at, step, *stored(value)) for step, at, metrics in points for key, value in metrics.items()}


def happen(run, draw: random.Random, step: int) -> int:
    """Something that happens to a run's journals; returns its newest step."""
    newest = sorted(run.metrics.glob("attempt_*.jsonl"))[-1]
    match draw.choice(("grow", "grow", "tear", "mend", "resume", "replace", "rewrite", "zombie", "break")):
        case "grow":
            grow(run, range(step + 1, step + 4))
            return step + 3
        case "tear" | "mend":  # a line that is there in part, and later whole
            line = json.dumps({"step": step + 1, "time": 1.5, "metrics": {"train/loss": float(step)}}).encode()
            raw = newest.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]
            newest.write_bytes(whole + draw.choice((line[: draw.randrange(len(line))], line, line + b"\n")))
        case "resume":
            after = draw.randrange(step + 1)
            attempt(run, after, after + 2)
            return after + 2
        case "replace":  # as a pull does: another file, the same beginning
            aside = newest.with_name("aside")
            aside.write_bytes(newest.read_bytes())
            aside.replace(newest)
        case "rewrite":
            newest.write_bytes(newest.read_bytes().replace(b"0.5", b"0.6"))
        case "zombie":
            oldest = min(run.metrics.glob("attempt_*.jsonl"))
            if oldest.read_bytes().endswith(b"\n"):
                with oldest.open("ab") as file:
                    file.write(b'{"step": %d, "time": 2.5, "metrics": {"zombie": 1.0}}\n' % draw.randrange(1, step + 2))
        case "break":
            raw = newest.read_bytes()
            newest.write_bytes((raw if raw.endswith(b"\n") else raw + b"\n") + b"\x00\xff not json\n")
    return step


@pytest.mark.parametrize("seed", range(8))
def test_in_pieces_as_at_once(tmp_path, seed):
    draw = random.Random(seed)
    run = make_run(tmp_path)
    attempt(run, 0, 3)
    reader, mirrored, step = RunRows(run), set(), 3
    for turn in range(40):
        step = happen(run, draw, step)
        if draw.random() < 0.2:
            write_json(run.evaluation_file, {"step": turn, "figures": {"fad": turn}})
        change = reader.read()
        assert not change.new & mirrored and change.gone <= mirrored
        mirrored = (mirrored | change.new) - change.gone
        fresh = RunRows(run)
        fresh.read()
        assert mirrored == reader.rows == fresh.rows == at_once(run) | run_rows.evaluation_rows(run)
        assert reader.broken == fresh.broken


def test_only_what_was_appended_is_parsed(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    attempt(run, 0, 2000)
    reader = RunRows(run)
    assert len(reader.read().new) == 4000
    parsed = []
    monkeypatch.setattr(run_rows.json, "loads", lambda raw, real=json.loads: parsed.append(raw) or real(raw))
    grow(run, range(2001, 2004))
    assert len(reader.read().new) == 6 and len(parsed) == 3
    assert reader.read() == run_rows.Change(set(), set())
