"""A page on which people compare light shows: ``python monitoring/compare.py RUN`` serves the pairs of a run and writes the choices down.

    python jobs/generate.py RUN --pairs 200     makes the pairs
    python monitoring/compare.py RUN            opens the page; worked by keyboard alone

Each rater has a file, RUN/choices/NAME.jsonl, to which a line is added for every choice: who comes back goes on where they were,
whatever was closed or killed. Several may rate at once. It answers on this machine only (127.0.0.1); for a run on a cluster, start
it there and forward the port: ssh -L 5001:127.0.0.1:5001 CLUSTER.
"""

from __future__ import annotations

import argparse
import errno
import shlex
import socket
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from monitoring.dashboard import has_display, say, sleep_until, stop_signals
from pipeline.choices import check_rater, read_choices
from pipeline.errors import UserError, run_command
from pipeline.runs import RunFolder, find_run, runs_root

if TYPE_CHECKING:
    from monitoring.compare_server import Server, Table

HOST = "127.0.0.1"
PORT = 5001
TEMPLATE = Path(__file__).with_name("compare.html")
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python monitoring/compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The page's address is the last line on stdout. Ctrl-C ends it.",
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="a run folder, its name (cqtml/1f3a9c2e), or a config's name")
    parser.add_argument("--rater", metavar="NAME", help="the name that the page proposes")
    parser.add_argument("--port", type=int, metavar="N", help=f"default: {PORT}, or a free one where that is taken")
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default=HOST,
        help=f"answer there, to whoever reaches it, without a password; default: {HOST}",
    )
    parser.add_argument(
        "--next",
        metavar="COMMAND",
        help="what the page says to type when all is rated; default: the launch that learns from it",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.add_argument("--runs", metavar="DIR", help="where run folders lie; default: SLURMPHONY_RUNS or runs/")
    args = parser.parse_args(words)
    if args.port is not None and not 1 <= args.port <= 65535:
        raise UserError(f"--port {args.port} is no port; give one from 1024 to 65535, or leave --port out.")
    if args.rater is not None:
        check_rater(args.rater)
    args.runs = runs_root(args.runs)
    return args


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    run = find_run(args.run, args.runs)
    if seen := run.pulled():
        raise UserError(
            f"{run.name} was pulled from {seen['host']}, which would not learn of what is chosen here; "
            f"start this command there, and forward its port: ssh -L {PORT}:{HOST}:{PORT} {seen['host']}"
        )
    with stop_signals() as stopped, serve(run, args) as server:
        threading.Thread(target=server.serve_forever, name="compare", daemon=True).start()
        page = f"http://{_in_url(args.host)}:{server.server_port}/"
        say(f"{len(server.table.pairs.keys)} pairs of {run.name} to compare at {page}  (Ctrl-C ends it)")
        print(page, flush=True)
        if not args.no_browser and has_display():
            webbrowser.open(page)
        sleep_until(stopped, float("inf"))
        server.shutdown()
    say(f"ended. {standing(run)}")
    return 0


def serve(run: RunFolder, args: argparse.Namespace) -> Server:
    """The server, bound to its port; UserError where that or the pairs are not to be had."""
    from monitoring.compare_server import Table, is_loopback
    from monitoring.pairs import Pairs
    from pipeline.light_show.page import render

    server = bind(args.host, args.port, Table(run.path, Pairs(run.path, run.name), say))
    if not is_loopback(args.host):
        say(f"note: whoever reaches {args.host} may listen and choose, under any name: no password, no encryption.")
    server.page = render(
        TEMPLATE, "connect-src 'self'; media-src 'self'",
        run=run.name, rater=args.rater or "", data={"command": again(run, args.host, server.server_port)},
        next_words="What was chosen can be learned from now; when everyone is done, type:", next_command=args.next or learning(run),
    ).encode()  # fmt: skip
    return server


def bind(host: str, asked: int | None, table: Table) -> Server:
    """At the port that was asked for, else at the usual one, or any free one where that is taken."""
    from monitoring.compare_server import Server

    try:
        return Server(host, asked or PORT, table)
    except socket.gaierror as error:
        raise UserError(f"--host {host} is no address of this machine; leave --host out for {HOST}.") from error
    except OSError as error:
        if asked or error.errno != errno.EADDRINUSE:
            raise UserError(
                f"{host}:{asked or PORT} cannot be used ({error.strerror}); give another --port or --host."
            ) from error
    return Server(host, 0, table)


def again(run: RunFolder, host: str, port: int) -> str:
    """The command that serves the same page at the same address: what a page that waits for its server shows."""
    name = run.name if runs_root(None) / run.name == run.path else str(run.path)
    return shlex.join(
        ["python", "monitoring/compare.py", name, "--port", str(port), *(["--host", host] if host != HOST else [])]
    )


def _in_url(host: str) -> str:
    """``host`` as a browser is told it; where that means every address of this machine, its name."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def learning(run: RunFolder) -> str:
    """The command that learns from the choices: cqtml_demo's are for cqtml_demo_reward."""
    own = f"{run.path.parent.name}_reward"
    return f"python jobs/launch.py {own if (CONFIGS / f'{own}.yaml').is_file() else 'cqtml_reward'}"


def standing(run: RunFolder) -> str:
    """How many choices of each rater lie where."""
    chosen, _ = read_choices(run.path)
    raters = sorted({c.rater for c in chosen})
    counts = ", ".join(f"{rater} {sum(c.rater == rater for c in chosen)}" for rater in raters)
    return f"choices in {run.path / 'choices'}: {counts or 'none yet'}."


if __name__ == "__main__":
    run_command(main)
