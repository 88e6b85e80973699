"""One Python on the cluster for all questions of a command: a start there takes long, on a shared file system seconds."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
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


class Session:
    """``ssh``: the command up to what is to run there. ``name``: of the host, for what goes wrong."""

    def __init__(self, name: str, ssh: list[str], folder: str) -> None:
        self._name = name
        program = f"{FAR.read_text()}\nserve()\n".encode()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        self._process = subprocess.Popen(
            [*ssh, PYTHON.format(folder=folder, size=len(program))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        self._write(program)

    def ask(self, request: dict[str, Any]) -> None:
        """Send a request; its ``answers`` must be read before the next one. RunFailed where the far side has gone."""
        self._write(json.dumps(request).encode() + b"\n")

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
        self._process.stdin.close()
        self._said.close()

    def _write(self, payload: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(payload)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RunFailed(f"{self._name}: {self._last_words()}") from None

    def _last_words(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        tail = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
        return " ".join(tail) or f"ssh ended with exit code {code}"
