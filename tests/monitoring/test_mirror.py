"""Journals in, MLflow's own client out: the same points, and everything else a run's page shows."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import pytest
import yaml

from monitoring import mirror as mirror_module
from monitoring.mirror import Mirror
from monitoring.run_facts import PARAM_LENGTH
from monitoring.store import open_store
from pipeline.config import read_yaml
from pipeline.files import append_line, read_json, write_json
from tests.monitoring.conftest import Bench
from tests.monitoring.run_factory import (
    PNG,
    WAV,
    add_samples,
    attempt,
    end,
    expected,
    finished_run,
    grow,
    kill_writer,
    make_run,
)

NAME = "dismix_demo/1f3a9c2e"


def troubled(step: int) -> dict[str, float]:
    odd = {7: math.nan, 8: math.inf, 9: -math.inf, 10: 1e-308, 11: -0.0}
    return {"train/loss": odd.get(step, 1 / step), "time/steps_per_s": 3.0}


def test_points_equal_the_journals_over_all_attempts(bench: Bench):
    run = make_run(bench.runs)
    attempt(run, 0, 30, troubled)
    attempt(run, 20, 25, lambda step: {"train/loss": 2.0, "valid/loss": math.nan})  # resumed, and killed early
    attempt(run, 22, 40, lambda step: {"train/loss": step + 0.1})
    outcome = bench.update()[NAME]
    shown = bench.run()
    assert bench.points(shown.info.run_id) == expected(run)
    assert outcome.new == outcome.points == sum(map(len, expected(run).values())) and outcome.gone == 0
    for name, points in expected(run).items():
        value = shown.data.metrics[name]  # the newest step's, as MLflow chooses it
        assert repr(value) == max(points)[2]


def test_a_second_import_changes_nothing_at_all(bench: Bench):
    run = make_run(bench.runs)
    attempt(run, 0, 30, troubled)
    end(run, "complete", 30)
    add_samples(run)
    assert bench.update()[NAME].changed
    before = hashlib.sha256(bench.path.read_bytes()).hexdigest()
    outcome = bench.update()[NAME]
    assert (outcome.new, outcome.gone, outcome.changed) == (0, 0, False)
    assert hashlib.sha256(bench.path.read_bytes()).hexdigest() == before


def test_what_a_rewound_run_no_longer_has_goes_from_the_store(bench: Bench):
    run = make_run(bench.runs)
    attempt(run, 0, 30, lambda step: {"train/loss": 1.0, "train/only_then": 1.0} if step > 20 else {"train/loss": 1.0})
    bench.update()
    attempt(run, 10, 12)
    outcome = bench.update()[NAME]
    assert outcome.gone == 30
    run_id = bench.run().info.run_id
    assert bench.points(run_id) == expected(run)
    assert "train/only_then" not in bench.run().data.metrics


def test_a_growing_run_is_followed_and_a_quiet_one_not_read_again(bench: Bench, monkeypatch):
    run = make_run(bench.runs)
    attempt(run, 0, 10)
    finished_run(bench.runs, "00000000", steps=5)
    mirror = Mirror(open_store(bench.path, print), lambda: [bench.runs], bench.artifacts)
    assert sum(o.new for o in mirror.update()) == 30
    grow(run, range(11, 14))
    read = []
    monkeypatch.setattr(
        mirror_module, "read_run", lambda r, reader, real=mirror_module.read_run: read.append(r.name) or real(r, reader)
    )
    assert {o.name: o.new for o in mirror.update()} == {NAME: 6, "dismix_demo/00000000": 0}
    assert read == [NAME]
    assert bench.points(bench.run().info.run_id) == expected(run)


@pytest.mark.parametrize("points", [1_000, pytest.param(50_000, marks=pytest.mark.soak)])
def test_many_points_of_five_runs_grow_as_one_mirror_and_as_another(bench: Bench, points):
    """Point for point by MLflow's client: imported at once, followed by the same process, and by others beside it."""
    runs = [make_run(bench.runs, identity=f"{number}" * 8) for number in range(5)]
    for run in runs:
        attempt(run, 0, points // 2, troubled)
    mirror = Mirror(open_store(bench.path, print), lambda: [bench.runs], bench.artifacts)
    assert {o.new for o in mirror.update()} == {points}
    assert {(o.new, o.gone, o.changed) for o in bench.update().values()} == {(0, 0, False)}
    grow(runs[0], range(points // 2 + 1, points // 2 + 301))
    assert sum(o.new for o in mirror.update()) == 600
    grow(runs[1], range(points // 2 + 1, points // 2 + 11))
    assert bench.update()[runs[1].name].new == 20  # another process, which the first must notice
    grow(runs[1], range(points // 2 + 11, points // 2 + 21))
    assert sum(o.new for o in mirror.update()) == 20
    attempt(runs[0], 10, 12, troubled)  # rewound
    assert sum(o.gone for o in mirror.update()) == points + 600 - 20
    for run in runs:
        assert bench.points(bench.run(run.name).info.run_id) == expected(run)
    mirror.store.close()


def test_parameters_are_the_configs_leaves_and_follow_its_changes(bench: Bench):
    run = make_run(bench.runs)
    long = "x" * 7000
    run.config_file.write_text(run.config_file.read_text() + f"note: {long}\n")
    bench.update()
    params = bench.run().data.params
    assert params["model.system"] == "dismix" and params["optimizer.schedule.name"] == "cosine"
    rate = read_yaml(run.config_file)["optimizer"]["lr"]
    assert float(params["optimizer.lr"]) == rate and params["model.simple.width"] == "128"
    assert len(params["note"]) == PARAM_LENGTH and params["note"].endswith("(7000 characters)")
    tree = read_yaml(run.config_file)
    tree["optimizer"]["lr"] = rate / 2
    tree["remark"] = tree.pop("note")
    run.config_file.write_text(yaml.safe_dump(tree))
    run.record("changed", after_step=30, changes={"optimizer.lr": {"from": 0.002, "to": 0.001}})
    bench.update()
    params = bench.run().data.params
    assert float(params["optimizer.lr"]) == rate / 2 and "note" not in params and "remark" in params
    assert bench.run().data.tags["changes"] == "after step 30: optimizer.lr 0.002 -> 0.001"


def test_tags_tell_of_attempts_machines_and_code(bench: Bench):
    run = make_run(bench.runs)
    attempt(run, 0, 5, host="n1", job="17")
    attempt(run, 5, 9, host="n2", job="18")
    attempt(run, 7, 9, host="n1", job="19")
    bench.update()
    tags = bench.run().data.tags
    assert (tags["attempts"], tags["resumed_after"]) == ("3", "5, 7")
    assert (tags["hosts"], tags["job_ids"], tags["processes"], tags["data"]) == ("n1, n2", "17, 18, 19", "2", "da7a")
    assert tags["mlflow.source.git.commit"] == "ab" * 20 and tags["mlflow.source.git.dirty"] == "true"
    assert tags["mlflow.source.type"] == "JOB" and tags["folder"] == str(run.path)
    assert bench.client().get_experiment(bench.run().info.experiment_id).name == "dismix"


def test_every_tag_that_is_written_is_owned(bench: Bench):
    """A tag that is not in OWN_TAGS would never go again."""
    run = finished_run(bench.runs)
    facts = mirror_module.read_run(run)
    assert facts.tags.keys() <= set(mirror_module.OWN_TAGS)


def stand(run, how: str) -> None:
    match how:
        case "queued":
            run.record("queued", job_id="5", cluster="x")
        case "running" | "killed":
            attempt(run, 0, 3)
            if how == "killed":
                kill_writer(run)
        case "requeued":
            attempt(run, 0, 3)
            end(run, "warned", 3)
            run.record("queued", job_id="6", cluster="x")
        case "failed":
            attempt(run, 0, 3)
            end(run, "failed", 3, message="the loss is nan at step 3")
        case "complete" | "terminated" | "interrupted":
            attempt(run, 0, 3)
            end(run, how, 3)


@pytest.mark.parametrize(
    ("how", "status", "state"),
    [
        ("created", "SCHEDULED", "created"),
        ("queued", "SCHEDULED", "queued"),
        ("running", "RUNNING", "running"),
        ("killed", "KILLED", "killed"),
        ("requeued", "SCHEDULED", "queued"),
        ("failed", "FAILED", "failed"),
        ("complete", "FINISHED", "complete"),
        ("terminated", "KILLED", "terminated"),
        ("interrupted", "KILLED", "interrupted"),
    ],
)
def test_status_follows_the_history(bench: Bench, how, status, state):
    run = make_run(bench.runs)
    stand(run, how)
    bench.update()
    shown = bench.run()
    assert (shown.info.status, shown.data.tags["state"]) == (status, state)
    assert (shown.info.end_time is None) == (status in ("RUNNING", "SCHEDULED"))
    assert shown.info.start_time == round(run.history()[0]["time"] * 1000)
    assert shown.data.tags.get("message", "") == ("the loss is nan at step 3" if how == "failed" else "")


def test_a_killed_run_that_goes_on_runs_again(bench: Bench):
    run = make_run(bench.runs)
    stand(run, "killed")
    bench.update()
    attempt(run, 2, 5)
    bench.update()
    assert bench.run().info.status == "RUNNING" and bench.run().info.end_time is None


def test_a_systems_table_begins_with_columns_that_are_there(bench: Bench):
    """A shared view of MLflow's own kind; one that lost it, or is of an older version, gets it again."""
    run = make_run(bench.runs)
    attempt(run, 0, 5, lambda step: {"train/loss": 1.0, "valid/loss": 1.0, "time/steps_per_s": 3.0})
    bench.update()
    client, shown = bench.client(), bench.run()
    key = f"mlflow.sharedViewState.{mirror_module.VIEW}"
    view = json.loads(client.get_experiment(shown.info.experiment_id).tags[key])
    there = {f"metrics.`{name}`" for name in shown.data.metrics} | {f"tags.`{name}`" for name in shown.data.tags}
    there |= {f"params.`{name}`" for name in shown.data.params} | {"attributes.`Duration`", "tags.`cluster`"}
    assert set(view["selectedColumns"]) <= there
    client.set_experiment_tag(shown.info.experiment_id, key, "{}")
    assert bench.update()[NAME].changed and not bench.update()[NAME].changed
    assert json.loads(client.get_experiment(shown.info.experiment_id).tags[key]) == view


def test_evaluation_figures_are_metrics(bench: Bench):
    run = finished_run(bench.runs)
    figures = {
        "pitch": {"value": 0.8, "low": 0.7, "high": 0.9},
        "fad": 2,
        "by_instrument": {"oboe": 0.5},
        "note": "x",
        "ok": True,
    }
    write_json(run.evaluation_file, {"step": 20, "data": "d", "figures": figures})
    bench.update()
    metrics = {k: v for k, v in bench.run().data.metrics.items() if k.startswith("evaluation/")}
    assert metrics == {
        "evaluation/pitch": 0.8, "evaluation/pitch_low": 0.7, "evaluation/pitch_high": 0.9, "evaluation/fad": 2.0,
        "evaluation/by_instrument/oboe": 0.5,
    }  # fmt: skip
    assert bench.client().get_metric_history(bench.run().info.run_id, "evaluation/pitch")[0].step == 20


def listed(bench: Bench, run_id: str, folder: str | None = None) -> list[str]:
    found = []
    for info in bench.client().list_artifacts(run_id, folder):
        found += listed(bench, run_id, info.path) if info.is_dir else [info.path]
    return found


SHOWN = ["figures/swap.png", "samples/step_000000100/mixture.png", "samples/step_000000100/mixture.wav"]


def test_pictures_and_sounds_are_artifacts_and_nothing_else_is(bench: Bench, tmp_path):
    run = finished_run(bench.runs)
    add_samples(run)
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (run.samples / "leads_out.png").symlink_to(secret)
    (run.samples / "folder_out").symlink_to(tmp_path)
    (run.samples / ".half_written.png").write_bytes(b"")
    (run.samples / "notes.txt").write_text("x")
    (run.samples / "page.html").write_text("<script>")
    assert bench.update()[NAME].artifacts == 3
    run_id = bench.run().info.run_id
    assert listed(bench, run_id) == SHOWN
    assert Path(bench.client().download_artifacts(run_id, SHOWN[2])).read_bytes() == WAV
    assert (bench.artifacts / run_id / SHOWN[2]).samefile(run.path / SHOWN[2]), (
        "a hard link: no second copy on the disk"
    )


def test_artifacts_follow_the_run_and_never_the_other_way(bench: Bench):
    run = finished_run(bench.runs)
    add_samples(run)
    bench.update()
    shown = bench.artifacts / bench.run().info.run_id
    (shown / SHOWN[0]).unlink()  # as MLflow's page would
    replacement = run.samples / "new.png"
    replacement.write_bytes(PNG + b"again")
    os.utime(replacement, ns=(0, (run.path / SHOWN[1]).stat().st_mtime_ns))
    replacement.replace(run.path / SHOWN[1])  # as rsync does
    (run.path / SHOWN[2]).unlink()
    bench.update()
    assert listed(bench, bench.run().info.run_id) == SHOWN[:2]
    assert (shown / SHOWN[1]).read_bytes() == PNG + b"again" and (run.path / SHOWN[0]).read_bytes() == PNG


def test_artifacts_are_copied_where_links_cannot_be_made(bench: Bench, monkeypatch):
    def refuse(self, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    run = finished_run(bench.runs)
    add_samples(run)
    bench.update()
    copy = bench.artifacts / bench.run().info.run_id / SHOWN[0]
    assert copy.read_bytes() == PNG and copy.stat().st_ino != (run.path / SHOWN[0]).stat().st_ino
    inode = copy.stat().st_ino
    bench.update()
    assert copy.stat().st_ino == inode, "an unchanged file is not copied again"


def test_broken_lines_are_told_and_cost_only_themselves(bench: Bench):
    run = make_run(bench.runs)
    attempt(run, 0, 10)
    kill_writer(run)
    journal = run.journal_file(1)
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[4] = b"\x00\x00\xff" + lines[4][10:]
    journal.write_bytes(b"".join(lines) + b'{"step": 11, "time": 17636')  # torn, as a power cut leaves it
    outcome = bench.update()[NAME]
    assert outcome.broken == 2 and outcome.points == 18 and "2 broken lines" in str(outcome)
    assert bench.run().data.tags["broken_lines"] == "2"
    assert bench.points(bench.run().info.run_id) == expected(run)


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: run.config_file.write_text("model: [unclosed"),
        lambda run: run.config_file.write_text("model: {}\n"),
        lambda run: append_line(run.history_file, ["no", "event"]),
        lambda run: append_line(run.journal_file(1), {"step": "not a number"}),
        lambda run: append_line(run.journal_file(1), {"step": 2**70, "time": 1.0, "metrics": {"train/loss": 1.0}}),
        lambda run: run.evaluation_file.write_text('{"figures": [1, 2]}'),
        lambda run: run.lease_file.write_text("[]"),
    ],
    ids=["yaml", "no system", "history", "journal", "a step beyond any", "evaluation", "lease"],
)
def test_a_bad_run_stops_no_other(bench: Bench, damage):
    for identity in ("00000000", "ffffffff"):
        finished_run(bench.runs, identity)
    bad = make_run(bench.runs, identity="88888888")
    attempt(bad, 0, 10)
    damage(bad)
    outcomes = bench.update()
    assert outcomes["dismix_demo/88888888"].error and "NOT IMPORTED" in str(outcomes["dismix_demo/88888888"])
    for identity in ("00000000", "ffffffff"):
        run_id = bench.run(f"dismix_demo/{identity}").info.run_id
        assert len(bench.points(run_id)["train/loss"]) == 20


def test_what_a_person_did_in_mlflow_stays(bench: Bench):
    run = make_run(bench.runs)
    attempt(run, 0, 5)
    bench.update()
    client, run_id = bench.client(), bench.run().info.run_id
    client.update_run(run_id, name="the good one")
    client.set_tag(run_id, "mlflow.note.content", "sounds best")
    client.set_tag(run_id, "state", "nonsense")
    attempt(run, 5, 9)
    bench.update()
    shown = client.get_run(run_id)
    assert shown.info.run_name == "the good one" and shown.data.tags["mlflow.note.content"] == "sounds best"
    assert shown.data.tags["state"] == "running"
    client.delete_run(run_id)
    bench.update()
    assert client.get_run(run_id).info.lifecycle_stage == "deleted"


def test_a_copied_run_is_the_same_run_and_one_made_anew_is_not(bench: Bench, tmp_path):
    run = finished_run(bench.runs)
    bench.update()
    first = bench.run().info.run_id
    elsewhere = tmp_path / "pulled"
    (elsewhere / "dismix_demo").mkdir(parents=True)
    run.path.rename(elsewhere / "dismix_demo" / run.path.name)
    moved = Bench(elsewhere, bench.path)
    assert moved.update()[NAME].new == 0 and moved.run().info.run_id == first
    again = finished_run(elsewhere.parent / "runs", steps=3)  # the same config on another cluster
    assert read_json(again.lease_file) and bench.update()[NAME].new == 6
    assert len(bench.client().search_runs([bench.client().get_run(first).info.experiment_id])) == 2


def test_a_run_that_replaced_another_in_its_folder_hides_it(bench: Bench):
    run = finished_run(bench.runs)
    bench.update()
    first = bench.run().info.run_id
    run.path.rename(bench.runs.parent / "removed")
    finished_run(bench.runs, steps=3)
    bench.update()
    assert bench.run().info.run_id != first
    assert bench.client().get_run(first).info.lifecycle_stage == "deleted"
