"""The page of a run, which must hold everything and let nothing out, and the ledger of where GPU-hours went."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from monitoring import report
from monitoring.curves import thin
from monitoring.ledger import KINDS, Account, energy_of, ledger, month_of, spans_of, totals
from monitoring.page import LARGEST, embedded, render
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.runs import RunFolder, list_runs
from tests.conftest import command
from tests.monitoring.run_factory import add_samples, attempt, end, finished_run, make_run

EVIL = '<script>document.title = "owned"</script><img src=x onerror=alert(1)>&"'


def hostile_run(root: Path) -> RunFolder:
    """A run whose every text is markup."""
    run = make_run(root)
    attempt(run, 0, 20, lambda step: {f"train/{EVIL}": 1.0, "train/loss": 1 / step, "valid/loss": 2 / step})
    add_samples(run)
    (run.samples / "step_000000100" / "<b>bold.wav").write_bytes(b"RIFF")
    run.config_file.write_text(run.config_file.read_text() + f"# {EVIL}\n")
    write_json(run.evaluation_file, {"step": 20, "figures": {EVIL: {"value": 1.0, "low": 0.5, "high": 1.5}}})
    write_json(run.launch_file, {"cluster": EVIL})
    end(run, "failed", 20, message=f"the loss is nan {EVIL}")
    return run


class Outline(HTMLParser):
    """Tags in their order, and every address that the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]


def test_the_page_has_everything_inside_and_nothing_that_a_run_wrote_is_markup(tmp_path):
    text = render(hostile_run(tmp_path), finished_run(tmp_path, "0" * 8))
    outline = Outline(text)
    assert "script" not in outline.tags
    assert all(address.startswith("data:") for address in outline.addresses), "it loads nothing"
    assert outline.tags.count("audio") == 2 and outline.tags.count("img") >= 4
    for words in ("the loss is nan", "0.5 to 1.5", "max_steps", "What differs in the configs"):
        assert words in text
    assert not re.search(r"<img src=x", text)


def test_what_does_not_fit_is_named(tmp_path):
    run = finished_run(tmp_path)
    for step, size in ((100, 1000), (200, LARGEST - 10)):
        (run.samples / f"step_{step:09d}").mkdir()
        (run.samples / f"step_{step:09d}" / "mixture.wav").write_bytes(b"\0" * size)
    groups, left_out = embedded(run)
    assert [g.name for g in groups] == ["samples/step_000000200"]
    assert left_out == ["samples/step_000000100/mixture.wav"]


def test_a_long_curve_keeps_its_peaks():
    series = [(i, 100.0 if i == 7777 else float("nan") if i == 5 else i % 10) for i in range(50_000)]
    points = thin(series)
    assert len(points) <= 1300 and (7777, 100.0) in points and points == sorted(points) and points[-1][0] == 49_999


def test_the_command_and_its_mistakes(tmp_path):
    run = finished_run(tmp_path)
    done = command("monitoring/report.py", run.name, "--runs", tmp_path)
    assert done.returncode == 0 and Path(done.stdout.strip()) == run.path / "report.html", done.stderr
    for words, said in [
        ([], "one of the two"),
        ([run.name, "--month", "2026-11"], "one of the two"),
        (["--month", "2026-13"], "is no month"),
        (["--month", "2026-11", "--out", "x"], "go with a run"),
        ([run.name, "--out", str(tmp_path / "no" / "where.html")], "no file in a folder that exists"),
        (["nothing"], "no run 'nothing'"),
    ]:
        with pytest.raises(UserError, match=said):
            report.main([*words, "--runs", str(tmp_path)])


# -- the ledger ---------------------------------------------------------------------------------------------------

T0 = month_of("2026-11")[0]


def written(root: Path, events: list[dict], journals: dict[int, list[tuple[int, float, dict]]]) -> RunFolder:
    """A run whose events and journal lines lie at the seconds that are given, from the beginning of November 2026 on."""
    run = make_run(root)
    rows = [{"event": "created", "time": 0, "config": {"model": {"system": "dismix"}}}, *events]
    run.history_file.write_text("".join(json.dumps({**e, "time": T0 + e["time"]}) + "\n" for e in rows))
    for number, lines in journals.items():
        text = [{"attempt": number, "after_step": 0, "time": T0}]
        text += [{"step": step, "time": T0 + at, "metrics": values} for step, at, values in lines]
        run.journal_file(number).write_text("".join(json.dumps(line) + "\n" for line in text))
    return run


def begins(number: int, at: float, after: int, **facts: object) -> list[dict]:
    """An attempt of two processes that needed 100 s until it was ready and 20 s more to its first step."""
    facts = {
        "event": "attempt",
        "time": at,
        "attempt": number,
        "after_step": after,
        "host": "n1",
        "world_size": 2,
        **facts,
    }
    startup = {"imports_s": 60.0, "model_s": 40.0, "first_step_s": 20.0}
    return [facts, {"event": "first_step", "time": at + 20, "attempt": number, "step": after + 1, **startup}]


def seconds(run: RunFolder) -> dict[str, float]:
    account = Account()
    account.add(spans_of(run, run.history()))
    return {kind: round(hours * 3600 / 2) for kind, hours in account.hours.items()}


def test_every_second_of_a_run_is_in_one_place(tmp_path):
    """Queued at 0, born at 900, killed at 3,020 after step 40; the next goes on from step 20 and completes."""
    steps = [(10 * i, 1020 + 500 * i, {"train/loss": 1.0}) for i in range(1, 5)]
    first = sorted([*steps, (20, 2030, {"time/save_s": 10.0})], key=lambda line: line[1])
    history = [
        {"event": "queued", "time": 0, "job_id": "7"},
        *begins(1, 1000, 0),
        {"event": "requeued", "time": 3100, "job_id": "7"},
        *begins(2, 3300, 20),
        {"event": "end", "time": 4320, "attempt": 2, "reason": "complete", "step": 40},
    ]
    run = written(tmp_path, history, {1: first, 2: [(30, 3820, {}), (40, 4320, {"time/save_s": 5.0})]})
    assert seconds(run) == {"queued": 900 + 100, "starting": 240, "useful": 1000 + 995, "saving": 15, "lost": 990}


@pytest.mark.parametrize(
    ("how", "useful", "lost"),
    [("complete", 1990, 0), ("warned", 1990, 0), ("failed", 990, 1000), (None, 990, 1000)],
)
def test_what_was_not_saved_is_lost_where_an_attempt_did_not_end_by_agreement(tmp_path, how, useful, lost):
    ended = [{"event": "end", "time": 3020, "attempt": 1, "reason": how, "step": 40}] if how else []
    lines = [(20, 2020, {"time/save_s": 10.0}), (40, 3020, {"train/loss": 1.0})]
    run = written(tmp_path, [*begins(1, 1000, 0), *ended], {1: lines})
    assert seconds(run) == {"queued": 0, "starting": 120, "useful": useful, "saving": 10, "lost": lost}


def test_a_month_takes_its_part_of_a_run_that_goes_beyond_it(tmp_path):
    begin, after = month_of("2026-11")
    length = after - begin
    end_of_it = {"event": "end", "time": length + 7200, "attempt": 1, "reason": "complete", "step": 2}
    written(tmp_path, [*begins(1, length - 7200, 0), end_of_it], {1: [(2, length + 7200, {})]})
    november, december = (ledger(list_runs(tmp_path), *month_of(m)) for m in ("2026-11", "2026-12"))
    assert november[0].account.held == pytest.approx(2 * (7200 + 100) / 3600)
    assert december[0].account.hours == pytest.approx({**dict.fromkeys(KINDS, 0.0), "useful": 4.0})
    assert ledger(list_runs(tmp_path), *month_of("2026-10")) == []
    assert totals(november, "system")["dismix"].held == november[0].account.held
    done = command("monitoring/report.py", "--month", "2026-12", "--runs", tmp_path)
    assert done.returncode == 0 and "system dismix" in done.stdout and "4.00" in done.stdout, done


def test_energy_is_what_each_attempt_has_counted_and_a_month_takes_its_part(tmp_path):
    begin, after = month_of("2026-11")
    length = after - begin
    line = [(1, 200, {"gpu/energy_kwh": 0.5}), (2, 300, {"gpu/energy_kwh": 2.0}), (3, 301, {"train/loss": 1.0})]
    over = [(3, length - 60, {"gpu/energy_kwh": 1.0}), (4, length + 60, {"gpu/energy_kwh": 1.25})]
    ended = {"event": "end", "time": length + 60, "attempt": 2, "reason": "complete", "step": 4}
    run = written(tmp_path, [*begins(1, 100, 0), *begins(2, length - 90, 2), ended], {1: line, 2: over})
    assert energy_of(run) == pytest.approx(3.25)
    (november,), (december,) = (ledger(list_runs(tmp_path), *month_of(m)) for m in ("2026-11", "2026-12"))
    assert (november.account.energy, december.account.energy) == (pytest.approx(3.0), pytest.approx(0.25))
    assert totals([november, december], "system")["dismix"].energy == pytest.approx(3.25)
    done = command("monitoring/report.py", "--month", "2026-11", "--runs", tmp_path)
    assert "kWh of GPUs" in done.stdout and "3.00" in done.stdout, done
    assert "3.25 kWh" in render(run, None)
