"""A cluster as the laptop reaches it: the user's own ssh, one connection for everything, requests, and rsync.

The first command opens the connection (and asks for a password or a second factor, once); it stays for ten minutes after the last
use, and every later command goes through it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.profiles import profile_file, profile_names
from pipeline.errors import RunFailed, UserError, nearest
from sync.parts import Files
from sync.session import Session

KEPT = "10m"  # how long the connection stays after its last use

Hashed = tuple[str, list[Any] | None]  # a file's name and its [size, mtime, hash]; None where it is gone


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
    """``name``: of the profile, which says the rest in its text ``profile``.

    ``address``: as ssh takes it. ``folder``: the project there; ``runs``: its run folders.
    """

    name: str
    address: str
    folder: str
    runs: str
    profile: str = ""
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
        try:
            if subprocess.run([*self.ssh, "-O", "check", self.address], capture_output=True).returncode == 0:
                return
            code, said = self._open()
        except FileNotFoundError:
            raise RunFailed("there is no ssh on this machine; install OpenSSH's client.") from None
        if code:
            raise RunFailed(f"ssh {self.address} does not connect: {said or f'exit code {code}'}")

    def _open(self) -> tuple[int, str]:
        """ssh's exit code and its last words. Without a terminal nobody can answer it: it fails where it would ask."""
        asking = [] if sys.stdin.isatty() else ["-o", "BatchMode=yes"]
        command = [*self.ssh, *asking, "-o", "ControlMaster=yes", "-o", f"ControlPersist={KEPT}", "-fN", self.address]
        if sys.stderr.isatty():  # what the cluster says of its second factor belongs to the question
            return subprocess.run(command, stdout=subprocess.DEVNULL).returncode, "see above"
        # Not through a pipe: the connection outlives this command and would hold it open.
        with tempfile.TemporaryFile() as text:
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=text, stderr=text).returncode
            text.seek(0)
            return code, " ".join(text.read().decode(errors="replace").strip().splitlines()[-3:])

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
        """Ask at once (``sync.far``); the lines of the answer are read as they come. RunFailed where the far side fails or goes away."""
        self._session, session = None, self._session or Session(self.name, [*self.ssh, self.address], self.folder)
        try:
            session.ask({"do": do, "root": root, **facts})
        except BaseException:
            session.close()
            raise
        return self._answers(session)

    def _answers(self, session: Session) -> Iterator[dict[str, Any]]:
        """The session may be asked again when it has answered; one that failed in the middle is not."""
        try:
            yield from session.answers()
            self._session = session
        finally:
            if self._session is not session:
                session.close()

    def list_runs(
        self, run: str | None, tops: list[str], known: Mapping[str, str] | None = None
    ) -> Callable[[], Listing]:
        """Ask for the runs there and the files of those wanted: all, the one of that name, or the newest of that config.

        Args:
            known: by run the digest of a listing that need not be told again.

        Returns a function that waits for the answer: the cluster looks while this side does something else. It raises RunFailed where
        there is no folder of runs, UserError where none is called so.
        """
        lines = self.ask("list", self.runs, run=run, tops=tops, known=dict(known or {}))
        return lambda: self._listing(run, *lines)

    def _listing(self, run: str | None, head: dict[str, Any], names: dict[str, Any], *found: dict[str, Any]) -> Listing:
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

    def hashes(self, root: str, files: Iterable[tuple[str, int | None]]) -> tuple[str, Iterator[Hashed]]:
        """The algorithm there, and by it the hashes of files below ``root``, each up to a length if one is given, in any order.

        They are asked for at once: the cluster hashes while this side does something else.
        """
        lines = self.ask("hash", root, files=list(files))
        next(lines)
        return str(next(lines)["algorithm"]), ((line["file"], line["facts"]) for line in lines)

    # -- rsync ----------------------------------------------------------------------------------------------------

    def fetch(
        self, root: str, names: Iterable[str], into: Path, *, options: Iterable[str] = (), told: Callable[[int], None]
    ) -> None:
        """Bring the files ``names`` (relative to ``root`` there) to ``into``; ``told`` the bytes of the present file so far."""
        from sync.rsync import plain, rsync  # late, here and below: mostly nothing travels

        words = [*options, f"{self.address}:{plain(root)}/", f"{into}/"]
        rsync(self.name, self.ssh, words, names, told)

    def send(
        self, names: Iterable[str], source: Path, root: str, *, options: Iterable[str] = (), told: Callable[[int], None]
    ) -> None:
        """Bring files from ``source`` here to ``root`` there; each takes its name at the end, all together."""
        from sync.rsync import plain, rsync

        words = [*options, "-l", "-p", "-I", "--delay-updates", f"{source}/", f"{self.address}:{plain(root)}/"]
        rsync(self.name, self.ssh, words, names, told)


def _inside(name: str) -> bool:
    """Whether a name from there stays within the folder it is put in."""
    return all(part not in ("", ".", "..") for part in name.split("/"))


def find_host(name: str, seen: Mapping[str, Any] | None = None) -> Host:
    """The host of the profile ``name``; UserError where there is no such profile, or it has no ``ssh:``.

    Args:
        seen: what the profile said before (``sync.pulled``): of the same text it is not parsed again, which takes longer than most pulls.
    """
    text = profile_file(name).read_text()
    if seen and seen.get("profile") == text:
        return Host(name, seen["address"], seen["folder"], seen["runs"], text)
    from jobs.clusters import load_cluster

    cluster = load_cluster(name)
    if cluster.ssh is None:
        others = [other for other in profile_names() if load_cluster(other).ssh]
        known = f" Profiles with one: {', '.join(others)}." if others else ""
        raise UserError(
            f"configs/clusters/{name}.yaml says nothing of ssh; add a line such as "
            f"'ssh: {{host: login.mycluster.org, folder: /path/to/slurmphony}}'.{known}"
        )
    return Host(name, cluster.ssh.host, cluster.ssh.folder, cluster.runs or f"{cluster.ssh.folder}/runs", text)
