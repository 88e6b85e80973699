"""A cluster's login node on loopback: a real sshd and rsync of this user's own, and a laptop that reaches them.

The sshd is an ordinary process on a free port with a host key, a user key and folders of its own; nothing of the machine's ssh
is read or changed. The laptop's rsync is a wrapper that speaks protocol 29 and refuses every flag that macOS' openrsync lacks.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
# Of the options in openrsync's synopsis those that one might use.
WRAPPER = """#!/bin/sh
for word in "$@"; do
  case "$word" in
    --bwlimit=*|--delay-updates|--files-from=*|--partial-dir=*|--timeout=*|--progress) ;;
    -l|-r|-t|-p|-z|-I|-i|-v|-n|-0|-e) ;;
    -*) echo "openrsync: unrecognized option $word" >&2; exit 1 ;;
  esac
done
exec {rsync} --protocol=29 --log-file={base}/rsync.log "$@"
"""
RUNNER = """
import sys
from pathlib import Path
import jobs.profiles
jobs.profiles.PROFILES = Path(sys.argv[1])
from importlib import import_module
from pipeline.errors import run_command
module = import_module(sys.argv[2])
del sys.argv[1:3]
run_command(module.main)
"""


@dataclass
class FarSide:
    """``there``: what the cluster has, with the project's folder in it. ``here``: the laptop."""

    base: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)

    there = property(lambda self: self.base / "there")
    project = property(lambda self: self.there / "slurmphony")
    runs = property(lambda self: self.project / "runs")
    here = property(lambda self: self.base / "here")
    pulled = property(lambda self: self.here / "pulled" / "faraway")
    profiles = property(lambda self: self.base / "profiles")

    def profile(self, name: str = "faraway", **facts: object) -> None:
        tree = {"scheduler": "slurm", "ssh": {"host": "faraway", "folder": str(self.project)}, **facts}
        (self.profiles / f"{name}.yaml").write_text(yaml.safe_dump(tree))

    def line(self, verb: str, *words: object) -> list[str]:
        return [sys.executable, "-c", RUNNER, str(self.profiles), f"sync.{verb}", *map(str, words)]

    def start(self, verb: str, *words: object, **options: object) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen(self.line(verb, *words), env=self.environment, cwd=ROOT, **{**pipes, **options})

    def type(self, verb: str, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        process = self.start(verb, *words)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code and "Traceback" not in err, f"exit code {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess([], code, out, err)

    def logins(self) -> int:
        """How many connections the cluster has accepted."""
        return (self.base / "ssh" / "log").read_text().count("Accepted publickey")

    def received(self) -> int:
        """How many bytes rsync has brought to the laptop so far, by its own count."""
        log = self.base / "rsync.log"
        return (
            sum(map(int, re.findall(r"received (\d+) bytes", log.read_text(errors="replace")))) if log.exists() else 0
        )

    def wait(self, what: Callable[[], object], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)

    def pull(self, *words: object, code: int = 0) -> str:
        return self.type("pull", "faraway", *words, "--to", self.here / "pulled", code=code).stderr


def needed() -> list[str]:
    programs = {"rsync": shutil.which("rsync"), "ssh": shutil.which("ssh"), "sshd": SSHD}
    return [name for name, path in programs.items() if path is None]


def require() -> None:
    """Skip where there is no sshd or rsync, saying what to install; in CI that is a failure."""
    if lacking := needed():
        text = f"NOT TESTED: sync ({', '.join(lacking)} missing); install it: openssh-server openssh-client rsync"
        if os.environ.get("CI"):
            pytest.fail(text, pytrace=False)
        pytest.skip(text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.with_name(f"{path.name}.pub").read_text()


def login_node() -> Iterator[FarSide]:
    """A login node that runs until the end of the block."""
    require()
    base = Path(tempfile.mkdtemp(prefix="sync-"))  # short: sockets lie in it
    far = FarSide(base, free_port())
    for folder in (far.runs, far.here / "home" / ".ssh", far.profiles, base / "bin", base / "ssh"):
        folder.mkdir(parents=True)
    far.profile()
    host_key, user_key = make_key(base / "ssh" / "host"), make_key(base / "ssh" / "user")
    (base / "ssh" / "authorized").write_text(user_key)
    (base / "ssh" / "known").write_text(f"[127.0.0.1]:{far.port} {host_key}")
    (base / "ssh" / "sshd_config").write_text(
        f"Port {far.port}\nListenAddress 127.0.0.1\nHostKey {base}/ssh/host\nAuthorizedKeysFile {base}/ssh/authorized\n"
        f"PidFile {base}/ssh/pid\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n"
    )
    (base / "ssh" / "config").write_text(
        f"Host faraway\n  HostName 127.0.0.1\n  Port {far.port}\n  User {getpass.getuser()}\n  IdentityFile {base}/ssh/user\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {base}/ssh/known\n  StrictHostKeyChecking yes\n"
    )
    programs = {
        "ssh": f'#!/bin/sh\nexec {shutil.which("ssh")} -F {base}/ssh/config "$@"\n',
        "rsync": WRAPPER.format(rsync=shutil.which("rsync"), base=base),
    }
    for name, text in programs.items():
        (base / "bin" / name).write_text(text)
        (base / "bin" / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURMPHONY", "SSH_"))}
    far.environment = {**kept, "HOME": str(far.here / "home"), "PATH": f"{base}/bin:{os.environ['PATH']}"}
    far.environment["PYTHONPATH"] = str(ROOT)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd of root locks itself in
    with (base / "ssh" / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", base / "ssh" / "sshd_config"], stderr=log)
    try:
        wait_for_port(far.port, base / "ssh" / "log")
        yield far
    finally:
        subprocess.run(["ssh", "-o", f"ControlPath={far.here}/home/.ssh/sl-%C", "-O", "exit", "faraway"],
                       env=far.environment, capture_output=True)  # fmt: skip
        server.terminate()
        server.wait(10)
        shutil.rmtree(base)


def wait_for_port(port: int, log: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
