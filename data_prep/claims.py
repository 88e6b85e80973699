"""Who works on which shard, so that any number of processes may join and any may die.

A claim is a file made with O_EXCL, its owner's token inside, its modification time the owner's heartbeat. It spares work and guards
nothing: two processes that build the same shard write the same bytes under names of their own, and a rename is whole. So a claim
may be lost, stolen twice or left behind, and no lock (flock is unreliable on shared file systems) is needed.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

from pipeline import processes

HEARTBEAT = 5.0  # seconds
STALE = 60.0  # seconds without a heartbeat after which an owner on another host counts as dead


def is_dead(token: str, age: float) -> bool:
    """Whether the owner is gone: asked of the kernel on this host, judged by the heartbeat's ``age`` (seconds) elsewhere."""
    if not processes.TOKEN.fullmatch(token):
        return age > HEARTBEAT  # its owner did not live to write its name, a matter of microseconds
    return not processes.is_alive(token) if processes.is_here(token) else age > STALE


def enter(folder: Path) -> None:
    """Make the work folder and keep it: while a living process has a file in it, ``leave`` does not remove it."""
    stay(folder)
    sweep(folder)


def stay(folder: Path) -> None:
    """Say that this process is still there; who is silent for ``STALE`` seconds counts as dead on other hosts."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / f"{processes.token()}.here").touch()
            return
        except FileNotFoundError:
            continue  # removed in between, by one who has just finished


def depart(folder: Path) -> None:
    """Remove this process' files; the work may go on without it."""
    for path in folder.glob(f"{processes.token()}.*"):
        path.unlink(missing_ok=True)


def leave(folder: Path) -> None:
    """The work is done: remove this process' files and those of the dead; the last one to leave removes the folder."""
    sweep(folder)
    depart(folder)
    if not any("~" in path.name for path in folder.glob("*")):
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what dead processes left in a work folder: unfinished files and clocks (all named by token), and claims."""
    now = _file_system_now(folder)
    for path in folder.iterdir():
        try:
            age = now - path.stat().st_mtime
            token = path.read_text() if path.suffix == ".claim" else path.name.split(".", 1)[0]
            if (path.suffix == ".claim" or "~" in token) and is_dead(token, age):
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue  # its owner has just finished with it


def _file_system_now(folder: Path) -> float:
    """Hosts' clocks may differ by more than STALE; the file system has one."""
    clock = folder / f"{processes.token()}.clock"
    clock.touch()
    return clock.stat().st_mtime


class Claims:
    """The claims of one process on shards, as files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = processes.token()
        self._held: set[Path] = set()
        self._stop = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def take(self, shard: str) -> bool:
        """Claim ``shard``; False where a living process has it."""
        path = self.folder / f"{shard}.claim"
        for _ in range(2):
            try:
                with path.open("x") as file:
                    file.write(self.token)
                self._held.add(path)
                return True
            except FileExistsError:
                if not self._remove_if_dead(path):
                    return False
        return False

    def drop(self, shard: str) -> None:
        """Give ``shard`` back, done or not."""
        path = self.folder / f"{shard}.claim"
        path.unlink(missing_ok=True)
        self._held.discard(path)

    def close(self) -> None:
        """Give back whatever is still held."""
        self._stop.set()
        for path in tuple(self._held):
            self.drop(path.stem)
        (self.folder / f"{self.token}.clock").unlink(missing_ok=True)

    def _remove_if_dead(self, path: Path) -> bool:
        try:
            token, age = path.read_text(), _file_system_now(self.folder) - path.stat().st_mtime
        except FileNotFoundError:
            return True  # its owner has just finished
        if not is_dead(token, age):
            return False
        path.unlink(missing_ok=True)
        return True

    def _beat(self) -> None:
        here = self.folder / f"{self.token}.here"
        while not self._stop.wait(HEARTBEAT):
            for path in (*tuple(self._held), here):
                try:
                    os.utime(path)
                except FileNotFoundError:
                    continue  # finished in between, or never said


def living(folder: Path) -> dict[str, str]:
    """``{shard: owner's token}`` of the claims in ``folder`` whose owner is not known to be dead."""
    found = {}
    for path in sorted(folder.glob("*.claim")):
        try:
            token = path.read_text()
        except FileNotFoundError:
            continue
        if not is_dead(token, 0.0):
            found[path.stem] = token
    return found
