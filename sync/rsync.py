"""rsync through the kept connection. Only what macOS' openrsync knows is used: its flags and its protocol, 29."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable

from pipeline.errors import RunFailed, UserError

PLAIN = re.compile(r"/[\w/.+=@,~-]*")  # a path that no remote shell, of whatever rsync, takes apart
SILENCE = 60  # seconds without a byte after which rsync gives up
PARTIAL = ".partial"  # where rsync keeps what it has of a file when it is interrupted
# Flags that openrsync lacks must not appear here: it ends at the first it does not know.
FLAGS = ("-t", "-0", "--files-from=-", f"--partial-dir={PARTIAL}", f"--timeout={SILENCE}", "--progress")
PROGRESS = re.compile(rb"^\s+([\d,.']+)\s+\d+%")  # bytes of the present file so far
PARTLY = {23, 24}  # rsync's exit codes for files that vanished or could not be read; what arrived is looked at anyway


def rsync(name: str, ssh: list[str], words: list[str], names: Iterable[str], told: Callable[[int], None]) -> None:
    """Run rsync with ``words`` over the files ``names``; ``told`` the bytes of the present file so far.

    Args:
        name: of the host, for what goes wrong.

    Raises RunFailed where rsync is missing or fails; that some files could not be brought is no failure.
    """
    shell = " ".join(f"'{word}'" if " " in word else word for word in ssh)
    command = ["rsync", *FLAGS, "-e", shell, *words]
    with tempfile.TemporaryFile() as text, tempfile.TemporaryFile() as said:
        text.write(b"\0".join(os.fsencode(name) for name in names))
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
            f"rsync with {name} ended with exit code {process.returncode} ({' '.join(tail[-2:])}); "
            "type the same again: it goes on from where it stopped."
        )


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


def plain(root: str) -> str:
    """``root``, an absolute path there; UserError where a remote shell could read more in it than a path."""
    if not PLAIN.fullmatch(root):
        raise UserError(
            f"the folder {root!r} there has a name that cannot be given to rsync; use letters, digits, ./_+=@,~-"
        )
    return root
