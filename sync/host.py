"""A cluster as the laptop reaches it: the user's own ssh, one connection for everything, requests, and rsync.

The first command opens the connection (and asks for a password or a second factor, once); it stays for ten minutes after the last
use, and every later command goes through it. Of rsync only what macOS' openrsync knows is used: its flags and its protocol, 29.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.clusters import load_cluster, profile_names
from pipeline.errors import RunFailed, UserError, nearest
from sync.parts import Files
from sync.session import Session

PLAIN = re.compile(r"/[\w/.+=@,~-]*")  # a path that no remote shell, of whatever rsync, takes apart
KEPT = "10m"  # how long the connection stays after its last use
SILENCE = 60  # seconds without a byte after which rsync gives up
PARTIAL = ".partial"  # where rsync keeps what it has of a file when it is interrupted
# Flags that openrsync lacks must not appear here: it ends at the first it does not know.
FLAGS = ("-t", "-0", "--files-from=-", f"--partial-dir={PARTIAL}", f"--timeout={SILENCE}", "--progress")
PROGRESS = re.compile(rb"^\s+([\d,.']+)\s+\d+%")  # bytes of the present file so far
PARTLY = {23, 24}  # rsync's exit codes for files that vanished or could not be read; what arrived is looked at anyway


@dataclass(frozen=True)
class Listing:
    """What lies in the runs' folder ``root`` there at ``time``, by its clock: files of the runs asked for, and names of all runs.

    ``digests``: of each run's listing. ``same``: runs whose listing is the one that was known; their files are not told again.
    """

    root: str
    time: float
    files: dict[str, Files]
    names: list[str]
    digests: dict[str, str]
    same: list[str]


@dataclass
class Host:
    """``name``: of the profile. ``address``: as ssh takes it. ``folder``: the project there; ``runs``: its run folders."""

    name: str
    address: str
    folder: str
    runs: str
    _session: Session | None = None

    # -- the connection -------------------------------------------------------------------------------------------

    @cached_property
    def ssh(self) -> list[str]:
        """The ssh command that goes through the kept connection."""
        folder = Path.home() / ".ssh"
        folder.mkdir(mode=0o700, exist_ok=True)
        options = [
            f"ControlPath={folder}/sl-%C",
            "ConnectTimeout=20",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=4",
        ]
        return ["ssh", *(word for option in options for word in ("-o", option))]

    def connect(self) -> None:
        """Open the connection where there is none. RunFailed where the host cannot be reached."""
        asking = [] if sys.stdin.isatty() else ["-o", "BatchMode=yes"]  # nobody is there to answer
        try:
            if subprocess.run([*self.ssh, "-O", "check", self.address], capture_output=True).returncode == 0:
                return
            # Not through a pipe: the connection outlives this command and would hold it open.
            with tempfile.TemporaryFile() as said:
                command = [
                    *self.ssh,
                    *asking,
                    "-o",
                    "ControlMaster=yes",
                    "-o",
                    f"ControlPersist={KEPT}",
                    "-fN",
                    self.address,
                ]
                code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said).returncode
                said.seek(0)
                tail = said.read().decode(errors="replace").strip().splitlines()[-3:]
        except FileNotFoundError:
            raise RunFailed("there is no ssh on this machine; install OpenSSH's client.") from None
        if code:
            raise RunFailed(f"ssh {self.address} does not connect: {' '.join(tail) or f'exit code {code}'}")

    def __enter__(self) -> Host:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        """End what answers there; the connection stays for the next command."""
        if self._session:
            self._session.close()
            self._session = None

    # -- requests -------------------------------------------------------------------------------------------------

    def ask(self, do: str, root: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Lines of the answer to a request (``sync.far``), as they come; RunFailed where the far side fails or goes away."""
        self.begin()
        session, self._session = (
            self._session,
            None,
        )  # until it has answered: what fails in the middle is not asked again
        assert session is not None
        try:
            yield from session.ask({"do": do, "root": root, **facts})
            self._session = session
        finally:
            if self._session is None:
                session.close()

    def begin(self) -> None:
        """Have the Python there start while we are at something else."""
        self._session = self._session or Session(self.name, [*self.ssh, self.address], self.folder)

    def list_runs(self, run: str | None, tops: list[str], known: Mapping[str, str] | None = None) -> Listing:
        """The runs there and the files of those asked for: all, the one of that name, or the newest of that config.

        Args:
            known: by run the digest of a listing that need not be told again.

        Raises RunFailed where there is no folder of runs, UserError where none is called so.
        """
        head, names, *found = self.ask("list", self.runs, run=run, tops=tops, known=dict(known or {}))
        if not head["exists"]:
            raise RunFailed(f"{self.name} has no folder {head['root']} (profile '{self.name}': runs, or ssh.folder).")
        if run is not None and not found:
            near = nearest(run, names["runs"] if "/" in run else {name.partition("/")[0] for name in names["runs"]})
            shown = ", ".join(names["runs"][-10:]) or "none yet"
            raise UserError(f"{self.name} has no run '{run}'.{near} Runs there: {shown}.")
        told = {line["run"]: line["files"] for line in found if line["files"] is not None}
        files = {name: {n: facts for n, facts in listed.items() if _inside(n)} for name, listed in told.items()}
        digests = {line["run"]: line["digest"] for line in found}
        return Listing(head["root"], head["time"], files, names["runs"], digests, sorted(digests.keys() - told.keys()))

    def hashes(self, root: str, files: Iterable[tuple[str, int | None]]) -> Iterator[tuple[str, str, list[Any] | None]]:
        """(name, algorithm, [size, mtime, hash] or None where it is gone) of files there, each hashed up to a length if one is given."""
        files = list(files)
        if not files:
            return
        algorithm = ""
        for line in self.ask("hash", root, files=files):
            algorithm = line.get("algorithm", algorithm)
            if "file" in line:
                yield line["file"], algorithm, line["facts"]

    # -- rsync ----------------------------------------------------------------------------------------------------

    def fetch(
        self, root: str, names: Iterable[str], into: Path, *, options: Iterable[str] = (), told: Callable[[int], None]
    ) -> None:
        """Bring the files ``names`` (relative to ``root`` there) to ``into``; ``told`` the bytes of the present file so far."""
        self._rsync([*options, f"{self.address}:{plain(root)}/", f"{into}/"], names, told)

    def send(
        self, names: Iterable[str], source: Path, root: str, *, options: Iterable[str] = (), told: Callable[[int], None]
    ) -> None:
        """Bring files from ``source`` here to ``root`` there; each takes its name at the end, all together."""
        words = [*options, "-l", "-p", "-I", "--delay-updates", f"{source}/", f"{self.address}:{plain(root)}/"]
        self._rsync(words, names, told)

    def _rsync(self, words: list[str], names: Iterable[str], told: Callable[[int], None]) -> None:
        shell = " ".join(f"'{word}'" if " " in word else word for word in self.ssh)
        command = ["rsync", *FLAGS, "-e", shell, *words]
        listed = b"\0".join(os.fsencode(name) for name in names)
        with tempfile.TemporaryFile() as text, tempfile.TemporaryFile() as said:
            text.write(listed)
            text.seek(0)
            try:
                # It inherits the folder's lock (``sync.pulled``): until it has ended, too, nobody else writes there.
                process = subprocess.Popen(command, stdin=text, stdout=subprocess.PIPE, stderr=said, close_fds=False)
            except FileNotFoundError:
                raise RunFailed("there is no rsync on this machine; install it.") from None
            try:
                _follow(process, told)
            except BaseException:
                process.terminate()  # it keeps what it has of the present file
                process.wait()
                raise
            said.seek(0)
            tail = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
        if process.returncode and process.returncode not in PARTLY:
            raise RunFailed(
                f"rsync with {self.name} ended with exit code {process.returncode} ({' '.join(tail[-2:])}); "
                "type the same again: it goes on from where it stopped."
            )


def _inside(name: str) -> bool:
    """Whether a name from there stays within the folder it is put in."""
    return all(part not in ("", ".", "..") for part in name.split("/"))


def plain(root: str) -> str:
    """``root``, an absolute path there; UserError where a remote shell could read more in it than a path."""
    if not PLAIN.fullmatch(root):
        raise UserError(
            f"the folder {root!r} there has a name that cannot be given to rsync; use letters, digits, ./_+=@,~-"
        )
    return root


def _follow(process: subprocess.Popen[bytes], told: Callable[[int], None]) -> None:
    """Read rsync's progress until it ends; lines that are none of it (names of files) are passed over."""
    assert process.stdout is not None
    line = b""
    while chunk := os.read(process.stdout.fileno(), 1 << 16):
        *whole, line = re.split(rb"[\r\n]", line + chunk)
        for text in whole:
            if found := PROGRESS.match(text):
                told(int(re.sub(rb"\D", b"", found[1])))
    process.wait()


def find_host(name: str) -> Host:
    """The host of the profile ``name``; UserError where there is no such profile, or it has no ``ssh:``."""
    cluster = load_cluster(name)
    if cluster.ssh is None:
        others = [other for other in profile_names() if load_cluster(other).ssh]
        known = f" Profiles with one: {', '.join(others)}." if others else ""
        raise UserError(
            f"configs/clusters/{name}.yaml says nothing of ssh; add a line such as "
            f"'ssh: {{host: login.mycluster.org, folder: /path/to/slurmphony}}'.{known}"
        )
    return Host(name, cluster.ssh.host, cluster.ssh.folder, cluster.runs or f"{cluster.ssh.folder}/runs")
