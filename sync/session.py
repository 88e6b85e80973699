"""One Python on the cluster for all questions of a command: a start there takes long, on a shared file system seconds."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import RunFailed

FAR = Path(__file__).with_name("far.py")
# The project's own Python there, for its fast hash, or whatever Python there is; in sh, whatever the login shell is. Without its
# installed packages until they are needed (-S), which halves its start. The program comes first on its stdin, then requests, a line each.
PYTHON = (
    'exec sh -c \'p={folder}/.venv/bin/python; [ -x "$p" ] || p=python3;'
    ' exec "$p" -S -c "import sys; exec(sys.stdin.buffer.read({size}))"\''
)
# Only through a connection that is there: else ssh would open one of its own, and ask. Looked at by a shell, so that nobody waits for it.
CHECKED = (
    'address=$1 program=$2; shift 2; "$@" -O check "$address" 2>/dev/null || exit {unconnected};'
    ' exec "$@" "$address" "$program"'
)
UNCONNECTED = 97


class Session:
    """A Python on the host ``address``, whose project lies in ``folder``.

    ``ssh``: the command up to the address. ``name``: of the host, for what goes wrong.
    """

    def __init__(self, name: str, ssh: list[str], address: str, folder: str) -> None:
        self._name = name
        program = f"{FAR.read_text()}\nserve()\n".encode()
        checked = ["sh", "-c", CHECKED.format(unconnected=UNCONNECTED), "sh", address]
        self._process = subprocess.Popen(
            [*checked, PYTHON.format(folder=folder, size=len(program)), *ssh],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._said = b""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._ready: bool | None = None
        self._send(program)

    def ready(self) -> bool:
        """Wait until it answers; False where there is no connection to go through. RunFailed where there is no Python."""
        if self._ready is None:
            try:
                self._ready = list(self.answers()) == []
            except RunFailed:
                if self._process.returncode != UNCONNECTED:
                    raise
                self._ready = False
        return self._ready

    def ask(self, request: dict[str, Any]) -> None:
        """Send a request, at any time; its ``answers`` must be read before the next one."""
        self._send(json.dumps(request).encode() + b"\n")

    def answers(self) -> Iterator[dict[str, Any]]:
        """Lines of the answer as they come; RunFailed where the far side fails or goes away."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.startswith(b"{"):
                continue  # a login script talks
            answer = json.loads(line)
            if "failed" in answer:
                raise RunFailed(f"{self._name}: {answer['failed']}")
            if "end" in answer:
                return
            yield answer
        raise RunFailed(f"{self._name}: {self._last_words()}")

    def close(self) -> None:
        """End it; the Python there ends with its stdin."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with suppress(BrokenPipeError):  # of what could not be sent
            self._process.stdin.close()

    def _send(self, payload: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # whoever waits for the answer is told why
            self._process.stdin.write(payload)
            self._process.stdin.flush()

    def _listen(self) -> None:
        """Keep the last line that ssh or the Python there says besides its answers."""
        assert self._process.stderr is not None
        with self._process.stderr as pipe:
            for line in pipe:
                self._said = line.strip() or self._said

    def _last_words(self) -> str:
        code = self._process.wait()
        self._listener.join(1)
        if code == UNCONNECTED:
            return "the connection has ended; type the same again"
        return self._said.decode(errors="replace") or f"ssh ended with exit code {code}"
