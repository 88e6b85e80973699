"""Daemons as processes: started, found again by pid and start time, and ended. Never by name: another cluster may run beside."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

_started: list[subprocess.Popen] = []  # kept, so that a daemon which ends is reaped by whoever started it


def start(command: list[str], record: Path, log: Path, env: dict[str, str] | None = None) -> psutil.Process:
    """Start a daemon that outlives us; ``record`` says from now on which process it is."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=env,
            start_new_session=True,
        )
    _started.append(child)
    process = psutil.Process(child.pid)
    half = record.with_name(f"{record.name}.half")  # never seen half written: commands in other processes read it
    half.write_text(f"{process.pid} {process.create_time()}")
    half.replace(record)
    return process


def recorded(record: Path) -> psutil.Process | None:
    """The process of a record if it still runs; a pid that has gone to another process since is not it."""
    try:
        pid, started = record.read_text().split()
        process = psutil.Process(int(pid))
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return process if process.create_time() == float(started) and alive(process) else None


def alive(process: psutil.Process) -> bool:
    """A zombie is dead: where pid 1 reaps late there are many."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def exists(pid: int) -> bool:
    """Whether a living process has this pid."""
    try:
        return alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def name_of(process: psutil.Process) -> str:
    """Its name, or the empty string where it is gone."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def offspring(process: psutil.Process) -> list[psutil.Process]:
    """All living descendants."""
    try:
        return [child for child in process.children(recursive=True) if alive(child)]
    except psutil.NoSuchProcess:
        return []


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.02) -> bool:
    """Whether ``condition`` came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL, and wait until they are dead."""
    victims = list(processes)
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:  # it was quicker
            continue
    wait_until(lambda: not any(alive(v) for v in victims), 10)
    _reap()


def kill_offspring(process: psutil.Process) -> None:
    """Kill every descendant, also those that were being born meanwhile."""
    while found := offspring(process):
        kill(found)


def stop(process: psutil.Process | None, seconds: float = 10) -> None:
    """SIGTERM, then SIGKILL after ``seconds``."""
    if process is None:
        return
    try:
        process.terminate()
    except psutil.NoSuchProcess:
        return
    if not wait_until(lambda: not alive(process), seconds):
        kill([process])
    _reap()


def with_environment(name: str, value: str) -> list[psutil.Process]:
    """Living processes of ours whose environment says ``name=value``."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(name) == value and alive(process):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended meanwhile, or another user's
            continue
    return found


def environment_has(process: psutil.Process, name: str) -> bool:
    try:
        return name in process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _reap() -> None:
    for child in _started:
        child.poll()
