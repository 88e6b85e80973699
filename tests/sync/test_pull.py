"""What comes from a login node that is real (sshd and rsync on loopback), and what never does."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import RunFailed, UserError
from pipeline.files import read_lines
from pipeline.journal import Journal
from sync import pull as pull_module
from sync import pulled as pulled_module
from sync.pulled import Pulled
from tests.conftest import ROOT
from tests.monitoring.run_factory import attempt, curve, finished_run, grow, make_run
from tests.sync.cluster_runs import RUN, add_checkpoint, content, only, whole_run, with_environment
from tests.sync.far_side import FarSide

USUAL = ("config.yaml", "history.jsonl", "lease.json", "metrics", "samples", "figures", "logs")
ODD = ["two words.png", "naïve 音楽.wav", "line\nbreak.png", "glob*[a]?.png", "'quote\".png", "-n.png", "$(touch x).png",
       os.fsdecode(b"not \xff utf-8.png"), "back\\slash.png"]  # fmt: skip


def pull(far: FarSide, *words: object) -> None:
    assert pull_module.main(["faraway", *map(str, words), "--to", str(far.here / "pulled")]) == 0


@pytest.mark.parametrize("environment", [False, True], ids=["a bare Python there", "the project's Python there"])
def test_light_parts_come_first_and_whole(far: FarSide, capsys, environment):
    if environment:
        with_environment(far)
    whole_run(far)
    pull(far)
    assert content(far.pulled) == only(content(far.runs), *USUAL)
    said = capsys.readouterr()
    assert said.out == f"{far.pulled}\n" and said.err.index("metrics: 4 files") < said.err.index("samples: 3 files")
    record = Pulled(far.pulled).record(RUN)
    assert {entry.other == "" for entry in record.values()} == {environment}
    pull(far)
    assert "nothing new in 1 run" in capsys.readouterr().err


def test_checkpoints_come_by_choice(far: FarSide, capsys):
    whole_run(far)
    pull(far, RUN, "--only", "ema")
    assert capsys.readouterr().out == f"{far.pulled / RUN}\n"
    names = sorted(content(far.pulled))
    assert [name.removeprefix(f"{RUN}/checkpoints/step_000000020/") for name in names] == [
        "MANIFEST.json", "ema.safetensors", "model.safetensors", "state.json",
    ]  # fmt: skip
    pull(far, RUN, "--only", "checkpoints,code")
    assert content(far.pulled) == only(content(far.runs), "checkpoints", "code")


def test_a_run_is_named_as_everywhere(far: FarSide):
    first = finished_run(far.runs, "00000000")
    finished_run(far.runs, "11111111")
    finished_run(far.runs, "22222222", "other")
    os.utime(first.history_file, (2e9, 2e9))
    pull(far, "dismix_demo")
    assert {name.rsplit("/", 2)[0] for name in only(content(far.pulled), "config.yaml")} <= {"dismix_demo/00000000"} | {
        "dismix_demo"
    }
    assert (far.pulled / "dismix_demo/00000000").is_dir() and not (far.pulled / "dismix_demo/11111111").exists()
    pull(far)
    assert (far.pulled / "other/22222222").is_dir() and (far.pulled / "dismix_demo/11111111").is_dir()


def test_odd_names_arrive_as_they_are(far: FarSide):
    run = finished_run(far.runs)
    for name in ODD:
        (run.samples / name).write_bytes(os.fsencode(name))
    pull(far)
    assert sorted(path.name for path in (far.pulled / RUN / "samples").iterdir()) == sorted(ODD)
    assert content(far.pulled) == content(far.runs)


def test_links_and_what_is_being_written_stay_there(far: FarSide, tmp_path):
    run = whole_run(far)
    (run.samples / "out.png").symlink_to("/etc/passwd")
    (run.samples / "folder").symlink_to("/etc")
    (run.samples / ".mixture.wav.12.tmp").write_bytes(b"half")
    (run.checkpoints / ".writing_step_000000030_7").mkdir()
    (run.checkpoints / ".writing_step_000000030_7" / "model.safetensors").write_bytes(b"half")
    pull(far, "--only", "samples,checkpoints")
    assert not [name for name in content(far.pulled) if "out.png" in name or "folder" in name or "/." in name]


def test_a_journal_that_grows_meanwhile_comes_as_far_as_it_was(far: FarSide, capsys):
    run = make_run(far.runs)
    attempt(run, 0, 2000)
    stop = threading.Event()

    def write() -> None:
        journal = Journal(run.journal_file(1), 1, 0)
        while not stop.is_set():
            journal.log(3000, curve(3000))
            time.sleep(0.001)
        journal.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            pull(far)
            here = (far.pulled / RUN / "metrics/attempt_001.jsonl").read_bytes()
            assert run.journal_file(1).read_bytes().startswith(here)
    finally:
        stop.set()
        writer.join()
    assert "changed at every look" not in capsys.readouterr().err
    pull(far)
    assert content(far.pulled) == content(far.runs)
    assert read_lines(far.pulled / RUN / "metrics/attempt_001.jsonl")[1] == 0


def test_of_a_grown_file_only_the_new_bytes_travel(far: FarSide):
    run = make_run(far.runs)
    attempt(run, 0, 1)
    noise = run.logs / "7_0_log.out"
    noise.write_bytes(os.urandom(4_000_000))  # rsync cannot compress it
    pull(far)
    with noise.open("ab") as file:
        file.write(os.urandom(1000))
    grow(run, range(2, 3))
    before = far.received()
    pull(far)
    assert content(far.pulled) == content(far.runs)
    assert 0 < far.received() - before < 400_000


def test_what_was_damaged_here_comes_again_where_it_changed_there(far: FarSide):
    run = make_run(far.runs)
    attempt(run, 0, 500)
    pull(far)
    journal = far.pulled / RUN / "metrics/attempt_001.jsonl"
    raw = bytearray(journal.read_bytes())
    raw[100] ^= 1
    stamp = journal.stat()
    journal.write_bytes(raw)
    os.utime(journal, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    grow(run, range(501, 503))
    pull(far)
    assert content(far.pulled) == content(far.runs)


def test_what_lies_here_already_is_not_taken_for_good(far: FarSide):
    """Of the same size and time, as rsync looks at it, and nothing written down: only the cluster's hash tells."""
    whole_run(far)
    pull(far)
    picture = far.pulled / RUN / "figures/swap.png"
    stamp, raw = picture.stat(), bytearray(picture.read_bytes())
    raw[3] ^= 1
    picture.write_bytes(raw)
    os.utime(picture, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    Pulled(far.pulled).record_file(RUN).unlink()
    pull(far)
    assert content(far.pulled) == only(content(far.runs), *USUAL)


def test_one_connection_serves_all_commands(far: FarSide):
    whole_run(far)
    pull(far)
    pull(far, "--only", "checkpoints")
    far.pull("--only", "code")
    assert far.logins() == 1


def test_a_look_loads_nothing_that_it_does_not_need(far: FarSide):
    """Where nothing is new the command's time is that of its start."""
    whole_run(far)
    pull(far)
    program = (
        "import sys, jobs.profiles; from pathlib import Path; jobs.profiles.PROFILES = Path(sys.argv[1]); from sync import pull\n"
        "pull.main(['faraway', '--to', sys.argv[2]]); sys.exit(' '.join({'pydantic', 'yaml', 'rich', 'psutil'} & set(sys.modules)) or 0)"
    )
    words = [sys.executable, "-c", program, far.profiles, far.here / "pulled"]
    done = subprocess.run(words, env=far.environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "faraway: nothing new in 1 run\n")


def test_a_profile_that_was_changed_is_read_again(far: FarSide):
    whole_run(far)
    pull(far)
    far.profile(runs=str(far.project / "elsewhere"))
    with pytest.raises(RunFailed, match=r"no folder .*/elsewhere"):
        pull(far)


def test_what_was_removed_here_comes_again(far: FarSide):
    """The cluster lies as it lay, so it does not tell its files; this side does not, so it asks for them."""
    whole_run(far)
    pull(far)
    before = content(far.pulled)
    (far.pulled / RUN / "figures/swap.png").unlink()
    pull(far)
    assert content(far.pulled) == before


def test_nothing_is_deleted_unless_asked(far: FarSide, capsys, monkeypatch):
    run = whole_run(far)
    pull(far)
    (far.pulled / RUN / "evaluation.json").write_text("made here")
    (run.path / "samples/step_000000100/mixture.wav").unlink()
    (run.path / "samples/step_000000100/mixture.png").unlink()
    pull(far)
    assert "2 files are no longer on faraway and stay here" in capsys.readouterr().err
    with pytest.raises(UserError, match="--max-delete 2 allows"):
        pull(far, "--delete", "--max-delete", 1)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # no terminal
    with pytest.raises(UserError, match="--yes"):
        pull(far, "--delete")
    pull(far, "--delete", "--yes", "--dry-run")
    assert (far.pulled / RUN / "samples/step_000000100/mixture.wav").is_file()
    pull(far, "--delete", "--yes")
    assert not (far.pulled / RUN / "samples/step_000000100").exists() and (far.pulled / RUN / "samples").parent.is_dir()
    assert (far.pulled / RUN / "evaluation.json").read_text() == "made here"


def test_an_emptied_cluster_deletes_nothing(far: FarSide):
    run = whole_run(far)
    pull(far)
    before = content(far.pulled)
    for path in sorted(run.path.rglob("*"), reverse=True):
        if path.is_file() and path.name not in ("config.yaml", "history.jsonl"):
            path.unlink()
    with pytest.raises(RunFailed, match="is empty on faraway"):
        pull(far, "--only", "samples,logs", "--delete", "--yes")
    far.runs.rename(far.project / "runs_away")
    with pytest.raises(RunFailed, match=r"has no folder .*/runs"):
        pull(far, "--delete", "--yes")
    far.runs.mkdir()
    pull(far, "--delete", "--yes")
    assert content(far.pulled) == before


def test_two_pulls_at_once_are_one_too_many(far: FarSide, monkeypatch):
    whole_run(far)
    monkeypatch.setattr(pulled_module, "PATIENCE", 0.2)
    with Pulled(far.pulled).locked(), pytest.raises(RunFailed, match=f"process {os.getpid()}.* is at work"):
        pull(far)
    pull(far)


def test_dry_run_changes_nothing(far: FarSide, capsys):
    whole_run(far)
    pull(far, "--dry-run")
    said = capsys.readouterr()
    assert f"{RUN}/metrics/attempt_001.jsonl" in said.out.splitlines() and "metrics: 4 files" in said.err
    assert content(far.pulled) == {}


def test_watching_brings_what_is_new_and_ends_when_told(far: FarSide):
    run = make_run(far.runs)
    attempt(run, 0, 5)
    process = far.start("pull", "faraway", "--watch", "--every", 0.2, "--to", far.here / "pulled")
    journal = far.pulled / RUN / "metrics/attempt_001.jsonl"
    far.wait(lambda: journal.is_file())
    grow(run, range(6, 9))
    far.wait(lambda: journal.read_bytes() == run.journal_file(1).read_bytes())
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130 and "Traceback" not in said


def test_users_mistakes_are_one_sentence(far: FarSide, capsys):
    whole_run(far)
    far.profile("plain", ssh=None)
    far.profile("closed", ssh={"host": "127.0.0.1", "folder": "/x"})
    mistakes = {
        "no cluster 'nowhere'.*faraway": ["nowhere"],
        "says nothing of ssh; add a line such as.*Profiles with one: closed, faraway": ["plain"],
        "no part 'sample'. Did you mean 'samples'": ["faraway", "--only", "sample"],
        "no run 'dismix_dem'. Did you mean 'dismix_demo'.*Runs there: dismix_demo/1f3a9c2e": ["faraway", "dismix_dem"],
        "--bwlimit must be": ["faraway", "--bwlimit", "0"],
    }
    for sentence, words in mistakes.items():
        with pytest.raises(UserError, match=sentence):
            pull_module.main([*words, "--to", str(far.here / "pulled")])
    with pytest.raises(RunFailed, match=r"ssh nobody\.invalid does not connect"):
        far.profile("closed", ssh={"host": "nobody.invalid", "folder": "/x"})
        pull_module.main(["closed", "--to", str(far.here / "pulled")])
    for folder in ("/x; rm -rf y", "/two words", "$(id)"):
        far.profile("bad", ssh={"host": "faraway", "folder": folder})
        with pytest.raises(UserError, match=r"bad\.yaml: 'ssh\.folder'"):
            pull_module.main(["bad"])
    done = far.type("pull", "nowhere", code=2)
    assert re.fullmatch(r"error: no cluster 'nowhere'[^\n]*\n", done.stderr)


def test_the_laptops_rsync_is_as_poor_as_openrsync(far: FarSide):
    """What the tests stand on: the wrapper refuses what openrsync lacks, and speaks its protocol."""
    for flag in ("--info=progress2", "--append-verify", "--mkpath", "-s"):
        done = subprocess.run(["rsync", flag, "a", "b"], env=far.environment, capture_output=True, text=True)
        assert done.returncode == 1 and "openrsync" in done.stderr
    assert "--protocol=29" in (Path(far.base) / "bin" / "rsync").read_text()


def test_a_damaged_record_costs_nothing_but_a_look(far: FarSide, capsys):
    whole_run(far)
    pull(far)
    file = Pulled(far.pulled).record_file(RUN)
    tree = file.read_bytes()
    file.write_bytes(tree.replace(b"figures", b"fIgures", 1))
    pull(far)
    assert "is damaged" in capsys.readouterr().err
    assert json.loads(file.read_bytes()) == json.loads(tree) and content(far.pulled) == only(content(far.runs), *USUAL)


def test_a_new_checkpoint_appears_whole(far: FarSide, monkeypatch):
    """At the moment it gets its name all of it is there: a reader would set a partial one aside as damaged."""
    run = whole_run(far)
    pull(far, "--only", "checkpoints")
    add_checkpoint(run, 30)
    seen = []
    real = Path.rename

    def rename(self, target):
        result = real(self, target)
        seen.append(sorted(path.name for path in Path(target).iterdir()))
        return result

    monkeypatch.setattr(Path, "rename", rename)
    pull(far, "--only", "checkpoints")
    assert seen == [sorted(path.name for path in (run.checkpoints / "step_000000030").iterdir())]
