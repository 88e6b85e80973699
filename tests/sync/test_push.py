"""Code to the cluster: what git would take, nothing else; said before, proved afterwards."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import RunFailed, UserError
from sync import push as push_module
from sync.host import Host
from tests.sync.cluster_runs import content
from tests.sync.far_side import FarSide


@pytest.fixture
def code(tmp_path) -> Path:
    root = tmp_path / "code"
    files = {
        "jobs/launch.py": "print()\n",
        "configs/a b.yaml": "x: 1\n",
        ".gitignore": "/runs/\n*.pyc\n",
        "run.sh": "#!/bin/sh\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "run.sh").chmod(0o755)
    git(root, "init", "-q")
    git(root, "add", ".")
    return root


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-C", root, *words], check=True, capture_output=True)


def push(code: Path, *words: object) -> None:
    assert push_module.main(["faraway", *map(str, words)], code) == 0


def there(far: FarSide) -> dict[str, bytes]:
    return {name: payload for name, payload in content(far.project).items() if name != ".pushed.json"}


def test_what_git_would_take_is_there_and_nothing_else(far: FarSide, code: Path, capsys):
    (code / "runs").mkdir()
    (code / "runs" / "ignored.txt").write_text("x")
    (code / "new and unadded.py").write_text("x")
    (code / "big.py").write_bytes(b"#" * 2_100_000)
    (code / "link.py").symlink_to("jobs/launch.py")
    push(code)
    expected = {"jobs/launch.py", "configs/a b.yaml", ".gitignore", "run.sh", "new and unadded.py"}
    assert there(far) == {name: (code / name).read_bytes() for name in expected}
    assert os.access(far.project / "run.sh", os.X_OK)
    said = capsys.readouterr().err
    assert "new: jobs/launch.py" in said and "left out, too large for code: big.py (2.1 MB; --max-mb" in said
    push(code, "--max-mb", 3)
    assert (far.project / "big.py").stat().st_size == 2_100_000
    push(code, "--max-mb", 3)
    assert "0 files (0 bytes) to send, 6 unchanged" in capsys.readouterr().err


def test_content_decides_and_not_time_or_size(far: FarSide, code: Path, capsys):
    push(code)
    script = code / "jobs/launch.py"
    stamp = script.stat()
    script.write_text("abort()\n"[:8])
    os.utime(script, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    os.utime(code / "run.sh", (1e9, 1e9))
    capsys.readouterr()
    push(code)
    said = capsys.readouterr().err
    assert "changed: jobs/launch.py" in said and "1 file" in said and "run.sh" not in said
    assert there(far)["jobs/launch.py"] == script.read_bytes()


def test_dry_run_says_it_and_changes_nothing(far: FarSide, code: Path, capsys):
    push(code, "--dry-run")
    assert "4 files" in capsys.readouterr().err and there(far) == {}


def test_what_others_made_there_stays(far: FarSide, code: Path, capsys):
    (far.project / "runs" / "mine").mkdir()
    (far.project / "runs" / "mine" / "x").write_text("x")
    push(code)
    git(code, "mv", "jobs/launch.py", "jobs/start.py")
    push(code)
    assert {"jobs/launch.py", "jobs/start.py", "runs/mine/x"} <= there(far).keys()
    assert "1 files of an earlier push are gone here and stay there" in capsys.readouterr().err
    with pytest.raises(UserError, match="--max-delete 1 allows"):
        push(code, "--delete", "--yes", "--max-delete", 0)
    push(code, "--delete", "--yes")
    assert "jobs/launch.py" not in there(far) and {"jobs/start.py", "runs/mine/x"} <= there(far).keys()


def test_what_arrives_otherwise_is_found(far: FarSide, code: Path, monkeypatch):
    real = Host.send

    def spoiling(self, names, *rest, **options):
        real(self, names, *rest, **options)
        (far.project / "run.sh").write_text("spoilt")

    monkeypatch.setattr(Host, "send", spoiling)
    with pytest.raises(RunFailed, match=r"1 files on faraway are not what they are here, such as run\.sh"):
        push(code)


def test_outside_git_and_with_data_in_the_tree_it_stops(far: FarSide, code: Path, tmp_path, monkeypatch):
    (tmp_path / "plain").mkdir()
    with pytest.raises(UserError, match="is no git repository"):
        push(tmp_path / "plain")
    monkeypatch.setattr(push_module, "MOST", 0.00001)
    with pytest.raises(UserError, match="more than code can be"):
        push(code)
