"""Runs in MLflow's own pages: ``python monitoring/dashboard.py`` imports every run's journals into a local store and opens it.

Curves, parameters, pictures and sounds are there while a run trains: the import goes on every few seconds. The server answers on
this machine only (127.0.0.1), sends nothing outside, and ends with this command, whatever ends that.
"""

from __future__ import annotations

import argparse
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import EXIT_FAILED, EXIT_USER_ERROR, RunFailed, UserError, run_command
from pipeline.runs import runs_root

if TYPE_CHECKING:
    from monitoring.mirror import Mirror

Told = dict[str, tuple[str, str | None]]  # by run: the state and the trouble that a line was last printed for

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
PORT = 5000
PAUSE_SECONDS = (
    4.0  # between two imports; longer where an import is long, so that it never takes more than a tenth of a core
)
START_SECONDS = 180.0  # MLflow's server needs 5 to 30 s until it answers
GRACE_SECONDS = 5.0  # for the server, once told to end


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python monitoring/dashboard.py",
        description="Show runs in MLflow: imports their journals into a local store, keeps importing, and opens the page.",
        epilog="Its address (with --import-only: the store) is the last line on stdout. Ctrl-C ends it.",
    )
    parser.add_argument(
        "--runs", metavar="DIR", help="where run folders lie; default: SLURMPHONY_RUNS or runs/, and all of pulled/"
    )
    parser.add_argument(
        "--pull",
        metavar="HOST",
        action="append",
        default=[],
        help="bring its runs first (sync/pull.py), and what is new",
    )
    parser.add_argument(
        "--store", metavar="FILE", help="the MLflow store, made where it is missing; default: mlflow.db"
    )
    parser.add_argument("--port", type=int, metavar="N", help=f"default: {PORT}, or a free one where that is taken")
    parser.add_argument("--no-open", action="store_true", help="do not open a browser")
    parser.add_argument("--import-only", action="store_true", help="import once, start no server")
    args = parser.parse_args(words)
    if args.port is not None and not 1 <= args.port <= 65535:
        raise UserError(f"--port {args.port} is no port; give one from 1024 to 65535, or leave --port out.")
    args.pulled = Path(os.environ.get("SLURMPHONY_PULLED") or ROOT / "pulled").absolute() if not args.runs else None
    args.runs = runs_root(args.runs)
    args.store = Path(args.store or ROOT / "mlflow.db").absolute()
    if args.pull and args.pulled is None:
        raise UserError("--pull brings runs to pulled/, which --runs leaves out; leave one of them out.")
    if not args.runs.is_dir() and not args.pull and not roots_of(args):
        raise UserError(
            f"no folder {args.runs}; start a run with: python jobs/launch.py dismix_demo, or name it with --runs."
        )
    return args


def roots_of(args: argparse.Namespace) -> list[Path]:
    """The folders of runs that are there now: this machine's, and one for each cluster that was pulled."""
    pulled = sorted(args.pulled.iterdir()) if args.pulled and args.pulled.is_dir() else []
    return [root for root in (args.runs, *pulled) if root.is_dir()]


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    from monitoring.mirror import Mirror
    from monitoring.store import open_store

    for host in args.pull:
        pull(host)
    with stop_signals() as stopped, closing(open_store(args.store, say)) as store:
        # In a folder of the store's name: two stores in one folder do not share pictures.
        artifacts = args.store.parent / "mlartifacts" / args.store.stem
        mirror = Mirror(store, lambda: roots_of(args), artifacts)
        told: Told = {}
        if args.import_only:
            import_runs(mirror, stopped, told)
            say_if_none(told, args.runs)
            print(args.store)
            return EXIT_FAILED if any(error for _, error in told.values()) else 0
        port = choose_port(args.port)
        with Server(args.store, artifacts, port) as server, following(args.pull):  # starts while the first import runs
            import_runs(mirror, stopped, told)
            say_if_none(told, args.runs)
            if server.wait_until_it_answers(stopped):
                print(server.address, flush=True)
                page = f"{server.address}/{mirror.front_page()}"
                say(f"MLflow shows {', '.join(map(str, roots_of(args)))} at {page}  (Ctrl-C ends it)")
                if not args.no_open and has_display():
                    webbrowser.open(page)
                keep_importing(mirror, server, stopped, told)
    say("ended; the store stays.")
    return 0


def say_if_none(told: Told, runs: Path) -> None:
    if not told:
        say(f"no runs yet in {runs}; start one with: python jobs/launch.py dismix_demo")


# -- bringing runs from clusters --------------------------------------------------------------------------------


def pull_command(host: str, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "sync" / "pull.py"), host, *words]


def pull(host: str) -> None:
    """Bring what is new, once; ssh may ask for a password here. UserError or RunFailed where that command failed."""
    code = subprocess.run(pull_command(host), stdout=subprocess.DEVNULL).returncode
    if code == EXIT_USER_ERROR:
        raise UserError(f"nothing came from {host}; see above.")
    if code:
        say(f"nothing came from {host} (see above); showing what is here, and trying again.")


@contextmanager
def following(hosts: list[str]) -> Iterator[None]:
    """Within the block, what is new on the hosts comes as it appears."""
    pulls = [
        subprocess.Popen(
            pull_command(host, "--watch", "--until-closed"),
            stdin=subprocess.PIPE,  # it ends when we do, however that is
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        for host in hosts
    ]
    try:
        yield
    finally:
        for process in pulls:
            process.terminate()
            process.wait()


# -- importing --------------------------------------------------------------------------------------------------


def import_runs(mirror: Mirror, stopped: Callable[[], bool], told: Told) -> None:
    """Import every run once; a line for each that is new, stands otherwise than it was last told, or cannot be read."""
    for outcome in mirror.update():
        now = (outcome.state, outcome.error)
        if told.get(outcome.name) != now:
            say(str(outcome))
        told[outcome.name] = now
        if stopped():
            return


def keep_importing(mirror: Mirror, server: Server, stopped: Callable[[], bool], told: Told) -> None:
    """Import until stopped."""
    pause = PAUSE_SECONDS
    while sleep_until(stopped, pause):
        server.must_be_alive()
        began = time.monotonic()
        import_runs(mirror, stopped, told)
        pause = max(PAUSE_SECONDS, 9 * (time.monotonic() - began))


def sleep_until(stopped: Callable[[], bool], seconds: float) -> bool:
    """Sleep, in short naps so that Ctrl-C is answered at once; False where it was asked to stop."""
    deadline = time.monotonic() + seconds
    while not stopped() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not stopped()


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C, SIGTERM and a closed terminal only set a flag, so that a transaction and the server end in order."""
    received: list[int] = []
    # What was ignored stays ignored: `nohup` and `&` in a script mean it.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda got, _: received.append(got)) for number in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- the server -------------------------------------------------------------------------------------------------


def choose_port(asked: int | None) -> int:
    """The port that was asked for, which must be free; else MLflow's usual one, or any free one where that is taken."""
    for port in (asked or PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will: a port just left is free
            try:
                probe.bind((HOST, port))
            except OSError as error:
                if asked:
                    raise UserError(
                        f"--port {asked} cannot be used ({error.strerror}); leave --port out for a free one."
                    ) from error
                continue
            return int(probe.getsockname()[1])
    raise RunFailed(f"no port of {HOST} is free.")


def has_display() -> bool:
    """Whether a browser opened here would be seen; without this, webbrowser starts one in the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class Server:
    """MLflow's server in a process group of its own, started on entry and ended, all of it, on exit."""

    def __init__(self, store: Path, artifacts: Path, port: int) -> None:
        self.address = f"http://{HOST}:{port}"
        self._store, self._artifacts, self._port = store, artifacts, port
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed in __exit__)

    def __enter__(self) -> Server:
        from monitoring.store import mlflow_environment, store_uri

        words = ["ui", "--host", HOST, "--port", str(self._port), "--workers", "1", "--no-serve-artifacts"]
        words += ["--backend-store-uri", store_uri(self._store), "--default-artifact-root", self._artifacts.as_uri()]
        command = [sys.executable, "-c", "from monitoring.dashboard import serve; serve()", *words]
        # Its stdin is a pipe that only we hold: it closes when we are gone, also by SIGKILL, and `serve` sees that.
        self._process = subprocess.Popen(
            command,
            env=mlflow_environment(),
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C is for us, and the group can be ended as one
        )
        return self

    def __exit__(self, *_: object) -> None:
        end_group(self._process.pid, self._process.poll)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._log.close()

    def must_be_alive(self) -> None:
        if self._process.poll() is not None:
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 8192))
            tail = self._log.read().decode(errors="replace").strip().splitlines()[-8:]
            shown = "\n".join(f"  {line}" for line in tail)
            raise RunFailed(
                f"MLflow's server ended with exit code {self._process.returncode}. The end of its log:\n{shown}"
            )

    def wait_until_it_answers(self, stopped: Callable[[], bool]) -> bool:
        """False where it was asked to stop first; RunFailed where the server ends or stays silent."""
        deadline = time.monotonic() + START_SECONDS
        while sleep_until(stopped, 0.2):
            self.must_be_alive()
            if self._answers():
                return True
            if time.monotonic() > deadline:
                raise RunFailed(f"MLflow's server does not answer at {self.address} after {START_SECONDS:.0f} s.")
        return False

    def _answers(self) -> bool:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine is not behind the proxy
        try:
            with direct.open(f"{self.address}/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except (OSError, urllib.error.URLError):
            return False


def end_group(group: int, leader_ended: Callable[[], int | None]) -> None:
    """SIGTERM to all of a process group, SIGKILL to what is left of it after a grace."""
    for number, grace in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 1.0)):
        deadline = time.monotonic() + grace
        try:
            os.killpg(group, number)
            while time.monotonic() < deadline:
                leader_ended()  # reaps it: a zombie would count as alive
                os.killpg(group, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


def serve() -> None:
    """MLflow's command line, as the server process runs it: it ends with the dashboard, also where that was killed."""
    threading.Thread(target=_end_with_dashboard, daemon=True).start()
    runpy.run_module("mlflow", run_name="__main__", alter_sys=True)


def _end_with_dashboard() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass  # nobody writes there; the end of the pipe is the message
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(os.getpgid(0), number)
        time.sleep(GRACE_SECONDS)


if __name__ == "__main__":
    run_command(main)
