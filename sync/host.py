"""A cluster as the laptop reaches it: the user's own ssh, one connection for everything, requests, and rsync.

The first command opens the connection (and asks for a password or a second factor, once); it stays for ten minutes after the last
use, and every later command goes through it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.profiles import profile_file, profile_names
from pipeline.errors import RunFailed, UserError
from sync.session import Session

if TYPE_CHECKING:
    from sync.listing import Listing

KEPT = "10m"  # how long the connection stays after its last use

Hashed = tuple[str, list[Any] | None]  # a file's name and its [size, mtime, hash]; None where it is gone


class Host:
    """``name``: of the profile, which says the rest in its text ``profile``.

    ``address``: as ssh takes it. ``folder``: the project there; ``runs``: its run folders.
    """

    def __init__(self, name: str, address: str, folder: str, runs: str, profile: str = "") -> None:
        self.name, self.address, self.folder, self.runs, self.profile = name, address, folder, runs, profile
        self._session: Session | None = None

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

    def begin(self) -> None:
        """Start what answers there, through the connection if there is one, and wait for nothing."""
        self._session = self._session or Session(self.name, self.ssh, self.address, self.folder)

    def connect(self) -> Session:
        """Open the connection, and start what answers there. RunFailed where the host cannot be reached."""
        try:
            code, said = self._open()
        except FileNotFoundError:
            raise RunFailed("there is no ssh on this machine; install OpenSSH's client.") from None
        if code:
            raise RunFailed(f"ssh {self.address} does not connect: {said or f'exit code {code}'}")
        return Session(self.name, self.ssh, self.address, self.folder)

    def _open(self) -> tuple[int, str]:
        """ssh's exit code and its last words. Without a terminal nobody can answer it: it fails where it would ask."""
        asking = [] if sys.stdin.isatty() else ["-o", "BatchMode=yes"]
        command = [*self.ssh, *asking, "-o", "ControlMaster=yes", "-o", f"ControlPersist={KEPT}", "-fN", self.address]
        if sys.stderr.isatty():  # what the cluster says of its second factor belongs to the question
            return subprocess.run(command, stdout=subprocess.DEVNULL).returncode, "see above"
        # Not through a pipe: the connection outlives this command and would hold it open.
        import tempfile

        with tempfile.TemporaryFile() as text:
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=text, stderr=text).returncode
            text.seek(0)
            return code, " ".join(text.read().decode(errors="replace").strip().splitlines()[-3:])

    def __enter__(self) -> Host:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        """End what answers there; the connection stays for the next command."""
        if self._session:
            self._session.close()
            self._session = None

    # -- requests -------------------------------------------------------------------------------------------------

    def ask(self, do: str, root: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Ask at once (``sync.far``); the lines of the answer are read as they come.

        With the first one the connection is opened where there was none. RunFailed where the far side cannot be reached, fails, or
        goes away.
        """
        self.begin()
        session, self._session = self._session, None
        assert session is not None
        request = {"do": do, "root": root, **facts}
        try:
            session.ask(request)
        except BaseException:
            session.close()
            raise
        return self._answers(session, request)

    def _answers(self, session: Session, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The session may be asked again when it has answered; one that failed in the middle is not."""
        try:
            if not session.ready():
                session.close()
                session = self.connect()
                session.ask(request)
            if not session.ready():
                raise RunFailed(f"ssh {self.address} does not keep its connection; look there for what ends it.")
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

        Returns a function that waits for the answer (``read_listing``): the cluster looks while this side does something else.
        """
        from sync.listing import read_listing  # late: it loads while the cluster looks

        lines = self.ask("list", self.runs, run=run, tops=tops, known=dict(known or {}))
        return lambda: read_listing(self.name, run, *lines)

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
