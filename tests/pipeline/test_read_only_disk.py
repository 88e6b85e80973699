"""A disk that becomes read-only in the middle of a training, as ext4 does after an error: a real one on a loop device, really broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tests.pipeline.test_trainer as trainer_tests
from pipeline import checkpoint, heartbeat
from pipeline.control import Stop
from pipeline.errors import RunFailed
from tests.pipeline.test_trainer import Line, final, losses

lab = trainer_tests.lab


@dataclass
class Disk:
    """``image`` mounted at ``place``; ``device``: its loop device, such as ``loop3``."""

    image: Path
    place: Path
    device: str = ""

    def mount(self) -> None:
        self.place.mkdir(exist_ok=True)
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", self.image, self.place], check=True)
        found = subprocess.check_output(["findmnt", "-no", "SOURCE", self.place], text=True)
        self.device = Path(found.strip()).name

    def break_it(self) -> None:
        """From now on the kernel takes it for damaged, and refuses every write, also to files that are open."""
        os.sync()  # what was written before is on it
        Path(f"/sys/fs/ext4/{self.device}/trigger_fs_error").write_text("a test")

    def mend(self) -> None:
        self.unmount()
        assert subprocess.run(["fsck.ext4", "-p", self.image], capture_output=True).returncode in (0, 1)
        self.mount()

    def unmount(self) -> None:
        subprocess.run(["umount", self.place], check=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    """The folder of the lab's run ``a``, on a disk of its own."""
    lacking = [name for name in ("mkfs.ext4", "fsck.ext4", "mount", "findmnt") if shutil.which(name) is None]
    if lacking or os.geteuid() != 0:
        pytest.skip("NOT TESTED: a disk that becomes read-only: that needs root, to mount one, and e2fsprogs")
    disk = Disk(tmp_path / "disk.img", tmp_path / "a")
    with disk.image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", disk.image], check=True)
    try:
        disk.mount()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"NOT TESTED: a disk that becomes read-only: nothing can be mounted here ({error})")
    yield disk
    disk.unmount()


def test_a_disk_that_becomes_read_only_warns_training_goes_on_and_mended_it_is_the_same_run(
    lab, disk: Disk, monkeypatch, capsys
):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.02)

    class Breaking(Line):
        def training_step(self, batch, step):
            while step == 8 and not checkpoint.steps(run.checkpoints):
                time.sleep(0.01)  # the one of step 5 is being written
            if step == 8:
                disk.break_it()
            return super().training_step(batch, step)

        def sample(self, batch, folder, step):
            (folder / "made").touch()

    run, trainer = lab(kind=Breaking, sample_every=4)
    with pytest.raises(RunFailed, match="last checkpoint could not be written"):
        trainer.fit()
    assert trainer.at.step == 20, "it trained to its end"
    told = capsys.readouterr().err
    assert told.count("attempt_001.jsonl: Read-only file system; metrics are lost from here on") == 1
    assert told.count("cannot be written (Read-only file system); training goes on") == 5, (
        "the heartbeat once, each sample"
    )
    assert told.count("so it lacks: save_failed") == 3 and "so it lacks: end" in told
    assert checkpoint.steps(run.checkpoints) == [5]
    disk.mend()
    again, trainer = lab()
    assert trainer.fit() is Stop.NO
    whole, trainer = lab("whole")
    trainer.fit()
    assert final(again) == final(whole) and losses(again) == losses(whole)
