"""A second outlet of the journal: a run's points to an MLflow server while it trains, from a process of its own.

Where ``MLFLOW_TRACKING_URI`` names a server, rank 0 starts this beside the training (``streaming``). It reads the journal, as every
reader does, so nothing that happens to it or to the server reaches the training: it may hang, die or never connect. A server that
was away gets what it missed. What a requeue repeats stays doubled there, for MLflow's API cannot take points back; the exact
picture is the mirror (``monitoring/dashboard.py``). By hand: ``python monitoring/stream.py RUN --to URI``.
"""

from __future__ import annotations

import argparse
import math
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from monitoring.run_facts import STATUS, RunFacts, read_run
from monitoring.run_rows import Row, RunRows
from monitoring.sidecar import beside, stand_back
from pipeline.errors import UserError, run_command
from pipeline.runs import RunFolder, find_run, runs_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

EVERY = 5.0  # seconds between two looks at the journal
LONGEST_PAUSE = 120.0  # while the server is away
BATCH = 1000  # points a request, MLflow's limit; of parameters and tags it takes 100
OWN_ID = "slurmphony.run_id"  # a tag: which run this is
SENT = "slurmphony.sent_until"  # a tag: the time of the newest point that the server has
QUICK = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Outlet:
    """One run on one server. ``send`` may be called again after any failure: it goes on where it was."""

    def __init__(self, client: MlflowClient, run: RunFolder) -> None:
        self._client, self._run = client, run
        self._reader: RunRows | None = None
        self._pending: set[Row] = set()
        self._id: str | None = None
        self._sent_until = 0
        self._said: dict[str, str] = {}

    def send(self) -> int:
        """Send what is new; returns the number of points. Raises what MLflow raises."""
        reader, self._reader = self._reader, None  # one that failed in its middle is not used again
        if reader is None:
            reader, self._id = RunRows(self._run), None
        facts = read_run(self._run, reader)
        self._reader = reader
        self._pending |= facts.change.new
        run_id = self._id or self._find(facts)
        rows = sorted((row for row in self._pending if row[1] >= self._sent_until), key=lambda row: (row[1], row))
        for at in range(0, len(rows), BATCH):
            batch = rows[at : at + BATCH]
            self._client.log_batch(run_id, metrics=[_metric(row) for row in batch])
            self._client.set_tag(run_id, SENT, str(batch[-1][1]))
            self._pending -= set(batch)
        self._pending.clear()
        self._sent_until = 0  # only for the first look: later ones send what they find
        self._tell(run_id, facts)
        return len(rows)

    def _find(self, facts: RunFacts) -> str:
        """The run on the server, made where it is not there yet."""
        experiment = self._client.get_experiment_by_name(facts.system)
        number = experiment.experiment_id if experiment else self._client.create_experiment(facts.system)
        found = self._client.search_runs([number], f"tags.`{OWN_ID}` = '{facts.run_id}'")
        if found:
            self._id, self._sent_until = found[0].info.run_id, int(found[0].data.tags.get(SENT, 0))
            there = found[0].data.params
        else:
            tags = {OWN_ID: facts.run_id}
            self._id = self._client.create_run(number, facts.start, tags, facts.name).info.run_id
            there = {}
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in facts.params.items() if key not in there]
        for at in range(0, len(params), 100):
            self._client.log_batch(self._id, params=params[at : at + 100])
        return self._id

    def _tell(self, run_id: str, facts: RunFacts) -> None:
        for key, value in facts.tags.items():
            if self._said.get(key) != value:
                self._client.set_tag(run_id, key, value)
        self._said = dict(facts.tags)
        status = STATUS.get(facts.state, "KILLED")
        if facts.end is None:
            self._client.update_run(run_id, status)
        else:
            self._client.set_terminated(run_id, status, facts.end)


def _metric(row: Row) -> Metric:
    from mlflow.entities import Metric

    key, at, step, value, is_nan = row
    return Metric(key, math.nan if is_nan else value, at, step)


# -- beside the training ----------------------------------------------------------------------------------------


@contextmanager
def streaming(run: RunFolder, uri: str | None) -> Iterator[None]:
    """Within the block a process streams ``run`` to the server at ``uri``, if that is one. Never raises, never waits."""
    if not uri or not uri.startswith(("http://", "https://")):
        yield
        return
    words = ["monitoring.stream", str(run.path), "--to", uri, "--until-closed"]
    with beside(words, run.logs / "stream.log", QUICK):
        yield


def follow(outlet: Outlet, *, until_closed: bool) -> None:
    """Send until the training is gone (or for ever), and then once more; a server that fails is tried again, ever more rarely."""
    from mlflow.exceptions import MlflowException

    pause, closed = EVERY, False
    while not closed:
        closed = until_closed and bool(select.select([sys.stdin], [], [], pause)[0])
        if not until_closed:
            select.select([], [], [], pause)
        try:
            outlet.send()
            pause = EVERY
        except (MlflowException, OSError, ValueError, LookupError, TypeError) as error:
            pause = min(2 * pause, LONGEST_PAUSE)
            print(f"not sent ({str(error).splitlines()[0][:200]}); again in {pause:.0f} s", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python monitoring/stream.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, its name, or a config's name (its newest run)")
    parser.add_argument("--to", metavar="URI", help="of an MLflow server; default: MLFLOW_TRACKING_URI")
    parser.add_argument("--once", action="store_true", help="send what is there and end")
    parser.add_argument("--until-closed", action="store_true", help="end when stdin is closed")
    parser.add_argument("--runs", metavar="DIR", help="where run folders lie; default: SLURMPHONY_RUNS or runs/")
    args = parser.parse_args()
    uri = args.to or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise UserError("where to? Name a server: --to http://HOST:PORT, or MLFLOW_TRACKING_URI.")
    run = find_run(args.run, runs_root(args.runs))
    os.environ.update(QUICK)
    try:
        from mlflow import MlflowClient
    except ImportError:
        raise UserError("a server is spoken to by MLflow, which is not installed here; type: make setup") from None
    outlet = Outlet(MlflowClient(tracking_uri=uri), run)
    if args.once:
        print(f"{outlet.send()} points sent", file=sys.stderr)
        return 0
    if args.until_closed:
        stand_back()
    follow(outlet, until_closed=args.until_closed)
    return 0


if __name__ == "__main__":
    run_command(main)
