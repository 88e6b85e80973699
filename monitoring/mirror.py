"""Run folders -> a local MLflow store, point for point. The journals are the truth; the store only mirrors them.

A run keeps one id for ever, made from its name and the moment of its creation, so every import finds it again: over all its
attempts, wherever its folder was copied to. What the store has and the run has not goes, what it lacks comes, in one transaction
a run; where nothing changed nothing is written. MLflow's public API cannot do this (it chooses ids itself and needs minutes for
50,000 points), so rows are written as MLflow writes them: NaN as 0 with a mark, infinities as the largest double.

Left alone, because they are a person's: a run's name and notes once set, tags of other names, and whether it was deleted in MLflow.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monitoring.run_facts import STATUS, RunFacts, read_run
from monitoring.run_rows import Change, Row, RunRows, journals, milliseconds
from pipeline.errors import UserError
from pipeline.runs import RUN_ID, RunFolder

SHOWN = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"}
ARTIFACT_FOLDERS = ("samples", "figures")
OWN_TAGS = (
    "state", "message", "attempts", "resumed_after", "changes", "hosts", "job_ids", "nodes", "processes", "data", "folder", "cluster",
    "code_hash", "broken_lines", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit", "mlflow.source.git.dirty",
)  # fmt: skip
# The columns that the table of runs shows first. MLflow keeps those that somebody chose in his browser; what it keeps in the store
# is a view that somebody shared, under a key that the page's address names.
VIEW = "slurmphony"
COLUMNS = (
    "attributes.`Duration`", "tags.`state`", "tags.`cluster`", "tags.`attempts`", "metrics.`train/loss`", "metrics.`valid/loss`",
    "metrics.`time/steps_per_s`", "params.`optimizer.lr`", "params.`data.batch_size`",
)  # fmt: skip
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # without it MLflow's page first asks what kind of experiment this is
    f"mlflow.sharedViewState.{VIEW}": json.dumps({"selectedColumns": COLUMNS}),
}
# What a damaged run folder can raise while it is read; its store's troubles come as sqlite3.Error.
DAMAGED = (OSError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError, UserError, sqlite3.Error)


@dataclass(frozen=True)
class Outcome:
    """What one import did with one run; ``error`` where the run could not be read, which touches no other run."""

    name: str
    state: str = ""
    points: int = 0
    new: int = 0
    gone: int = 0
    artifacts: int = 0
    broken: int = 0
    changed: bool = False
    error: str | None = None

    def __str__(self) -> str:
        if self.error:
            return f"{self.name}  NOT IMPORTED: {self.error}"
        parts = [f"{self.points:,} points ({self.new:,} new, {self.points - self.new:,} unchanged)"]
        parts += [f"{self.gone:,} gone"] if self.gone else []
        parts += [f"{self.artifacts} pictures and sounds"] if self.artifacts else []
        parts += [f"{self.broken} broken lines left out"] if self.broken else []
        return f"{self.name}  {self.state}  {', '.join(parts)}"


@dataclass
class Mirror:
    """``store``: an open MLflow store. ``runs``: folders of runs, this machine's and those of clusters that were pulled.

    ``artifacts``: the folder for what MLflow's pages show of samples/ and figures/.
    """

    store: sqlite3.Connection
    runs: Callable[[], Iterable[Path]]
    artifacts: Path
    _seen: dict[Path, tuple[Any, Outcome]] = field(default_factory=dict)
    _readers: dict[Path, RunRows] = field(default_factory=dict)
    _version: int | None = None  # of the store, as it was after the last import: another one where others have written

    def update(self) -> Iterator[Outcome]:
        """Import every run under the roots; a run whose files are as they were at the last call is not read again."""
        for root in self.runs():
            for config in sorted(root.glob("*/*/config.yaml")):
                if RUN_ID.fullmatch(config.parent.name):
                    yield self._update_run(RunFolder(config.parent.absolute()))

    def front_page(self) -> str:
        """Where MLflow's pages are best entered: the runs of the only system there is, else the list of systems."""
        query = "SELECT experiment_id FROM experiments WHERE experiment_id <> 0 AND lifecycle_stage = 'active'"
        found = self.store.execute(query).fetchall()
        runs = f"/{found[0][0]}/runs?viewStateShareKey={VIEW}&compareRunsMode=TABLE&" if len(found) == 1 else "?"
        return f"#/experiments{runs}workflowType=machine_learning"  # its pages open on language models otherwise

    def _update_run(self, run: RunFolder) -> Outcome:
        try:
            before = _signature(run)
            seen, outcome = self._seen.get(run.path, (None, None))
            if outcome is None or before != seen:
                outcome = self._import_run(run)
                self._seen[run.path] = (before, replace(outcome, new=0, gone=0, changed=False))
            return outcome
        except DAMAGED as error:
            self._seen.pop(run.path, None)
            self._readers.pop(run.path, None)
            told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            return Outcome(run.name, error=told)

    def _import_run(self, run: RunFolder) -> Outcome:
        known = run.path in self._readers
        facts = read_run(run, self._readers.setdefault(run.path, RunRows(run)))
        folder = self.artifacts / facts.run_id
        shown = place_artifacts(run, folder)
        with _transaction(self.store) as store:
            before = store.total_changes
            write_run(store, facts, self.artifacts, folder.as_uri())
            alone = self._version == (version := store.execute("PRAGMA data_version").fetchone()[0])
            if not alone:  # others have written: what the store has of any run must be looked at again
                self._readers = {run.path: self._readers[run.path]}
            change = facts.change if known and alone else difference(store, facts.run_id, facts.rows)
            write_points(store, facts.run_id, facts.rows, change)
            changed = store.total_changes != before
        self._version = version
        new, gone = len(change.new), len(change.gone)
        return Outcome(run.name, facts.state, len(facts.rows), new, gone, shown, facts.broken, changed)


def _signature(run: RunFolder) -> Any:
    """Changes whenever a file that is mirrored changes, or the run's writer comes or goes."""
    files = [run.config_file, run.history_file, run.lease_file, run.evaluation_file]
    files += [*journals(run), *(path for _, path in shown_files(run))]
    return [_stamp(path) for path in files], run.writer() is not None, run.pulled() is not None


def _stamp(path: Path) -> tuple[str, int, int, int]:
    with suppress(FileNotFoundError):
        found = path.stat()
        return str(path), found.st_ino, found.st_size, found.st_mtime_ns
    return str(path), 0, 0, 0


# -- pictures and sounds ----------------------------------------------------------------------------------------


def place_artifacts(run: RunFolder, folder: Path) -> int:
    """Give ``folder`` the pictures and sounds of the run, and nothing else; returns how many there are.

    MLflow serves whatever lies under a run's artifact folder, and its API may write and delete there. Pointed at the run folder
    it would serve code and checkpoints and could delete them; so it gets a folder of hard links: no second copy on the disk, and a
    file that is replaced or deleted there leaves the run's own as it is. On another file system they are copies. Symbolic links
    are left out, they could lead anywhere.
    """
    wanted = dict(shown_files(run))
    for name, source in wanted.items():
        _place(source, folder / name)
    for part in ARTIFACT_FOLDERS:
        for parent, folders, files in os.walk(folder / part, topdown=False):
            for name in files:
                path = Path(parent, name)
                if str(path.relative_to(folder)) not in wanted:
                    path.unlink()
            for name in folders:
                with suppress(OSError):  # not empty: it stays
                    Path(parent, name).rmdir()
    return len(wanted)


def shown_files(run: RunFolder) -> Iterator[tuple[str, Path]]:
    """Pictures and sounds as (path in the run, path), without symbolic links and without what is still being written."""
    for part in (run.samples, run.figures):
        if part.is_symlink():
            continue
        for parent, folders, files in os.walk(part):
            folders.sort()
            for name in sorted(files):
                path = Path(parent, name)
                if path.suffix.lower() in SHOWN and not name.startswith(".") and not path.is_symlink():
                    yield str(path.relative_to(run.path)), path


def _place(source: Path, target: Path) -> None:
    there = target.stat() if target.exists() else None
    here = source.stat()
    if there and (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".artifact.uploading.{target.name}")  # a name that MLflow does not list
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        if there and (there.st_size, there.st_mtime_ns) == (here.st_size, here.st_mtime_ns):
            return
        shutil.copy2(source, temporary)
    temporary.replace(target)


# -- writing the store ------------------------------------------------------------------------------------------


@contextmanager
def _transaction(store: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All of it or nothing; the lock is taken at once, so that what is read in it stays true until it is written."""
    store.execute("BEGIN IMMEDIATE")
    try:
        yield store
        store.execute("COMMIT")
    finally:
        if store.in_transaction:
            store.execute("ROLLBACK")


def write_run(store: sqlite3.Connection, facts: RunFacts, artifacts: Path, artifact_uri: str) -> None:
    """The run's row, parameters and tags. Only what differs is written."""
    run = facts.run_id
    status = STATUS.get(facts.state, "KILLED")
    commit = facts.tags.get("mlflow.source.git.commit", "")
    store.execute(
        "INSERT OR IGNORE INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,"
        " source_version, lifecycle_stage, artifact_uri, experiment_id) VALUES (?, ?, 'UNKNOWN', '', '', '', ?, ?, '', 'active', ?, ?)",
        (run, facts.name, status, facts.start, artifact_uri, _experiment(store, facts.system, artifacts)),
    )
    now = {"status": status, "start_time": facts.start, "end_time": facts.end, "source_version": commit[:50]}
    for column, value in {**now, "artifact_uri": artifact_uri}.items():
        store.execute(f"UPDATE runs SET {column} = ? WHERE run_uuid = ? AND {column} IS NOT ?", (value, run, value))
    store.execute(
        "INSERT OR IGNORE INTO tags (key, value, run_uuid) VALUES ('mlflow.runName', ?, ?)", (facts.name, run)
    )
    _write_pairs(store, "params", run, facts.params)
    _write_pairs(store, "tags", run, facts.tags, only=OWN_TAGS)
    # A folder that was removed and made again is another run: the one that lay there before goes to MLflow's bin.
    store.execute(
        "UPDATE runs SET lifecycle_stage = 'deleted', deleted_time = ? WHERE lifecycle_stage = 'active' AND run_uuid <> ?"
        " AND run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'folder' AND value = ?)",
        (milliseconds(time.time()), run, facts.tags["folder"]),
    )


def _experiment(store: sqlite3.Connection, system: str, artifacts: Path) -> int:
    """The number of the system's experiment, made where it is not there yet."""
    found = store.execute("SELECT experiment_id FROM experiments WHERE name = ?", (system,)).fetchone()
    number = int(found[0]) if found else _make_experiment(store, system, artifacts)
    there = dict(store.execute("SELECT key, value FROM experiment_tags WHERE experiment_id = ?", (number,)))
    missing = [(key, value, number) for key, value in EXPERIMENT_TAGS.items() if there.get(key) != value]
    store.executemany("INSERT OR REPLACE INTO experiment_tags (key, value, experiment_id) VALUES (?, ?, ?)", missing)
    return number


def _make_experiment(store: sqlite3.Connection, system: str, artifacts: Path) -> int:
    now = milliseconds(time.time())
    made = store.execute(
        "INSERT INTO experiments (name, artifact_location, lifecycle_stage, creation_time, last_update_time)"
        " VALUES (?, ?, 'active', ?, ?)",
        (system, (artifacts / "experiments").as_uri(), now, now),
    ).lastrowid
    return int(made or 0)


def _write_pairs(
    store: sqlite3.Connection, table: str, run: str, wanted: dict[str, str], only: Iterable[str] | None = None
) -> None:
    """Make the run's rows in ``params`` or ``tags`` equal ``wanted``; with ``only``, other keys are somebody else's and stay."""
    there = dict(store.execute(f"SELECT key, value FROM {table} WHERE run_uuid = ?", (run,)))
    if only is not None:
        there = {key: there[key] for key in only if key in there}
    gone = there.keys() - wanted.keys()
    changed = [(key, value, run) for key, value in wanted.items() if there.get(key) != value]
    store.executemany(f"DELETE FROM {table} WHERE key = ? AND run_uuid = ?", [(key, run) for key in gone])
    store.executemany(f"INSERT OR REPLACE INTO {table} (key, value, run_uuid) VALUES (?, ?, ?)", changed)


def difference(store: sqlite3.Connection, run: str, wanted: set[Row]) -> Change:
    """What must come to the run's points in the store, and what must go, so that they equal ``wanted``."""
    there = set(store.execute("SELECT key, timestamp, step, value, is_nan FROM metrics WHERE run_uuid = ?", (run,)))
    return Change(wanted - there, there - wanted)


def write_points(store: sqlite3.Connection, run: str, rows: set[Row], change: Change) -> None:
    """Make ``change`` to the run's points, which are ``rows`` then, and to its latest values."""
    store.executemany(
        "DELETE FROM metrics WHERE key = ? AND timestamp = ? AND step = ? AND value = ? AND is_nan = ? AND run_uuid = ?",
        [(*row, run) for row in change.gone],
    )
    store.executemany(
        "INSERT OR IGNORE INTO metrics (key, timestamp, step, value, is_nan, run_uuid) VALUES (?, ?, ?, ?, ?, ?)",
        [(*row, run) for row in sorted(change.new)],  # sorted as the index is
    )
    _write_latest(store, run, rows, change)


def _write_latest(store: sqlite3.Connection, run: str, rows: set[Row], change: Change) -> None:
    """The newest value of each metric, by MLflow's own order: step, then time, then value."""
    query = "SELECT key, timestamp, step, value, is_nan FROM latest_metrics WHERE run_uuid = ?"
    there: dict[str, Row] = {row[0]: row for row in store.execute(query, (run,))}
    # Where nothing went, the newest is the one of before or one of the new.
    grown = bool(there) and not change.gone
    latest = dict(there) if grown else {}
    for row in change.new if grown else rows:
        best = latest.get(row[0])
        if best is None or (row[2], row[1], row[3]) > (best[2], best[1], best[3]):
            latest[row[0]] = row
    store.executemany(
        "DELETE FROM latest_metrics WHERE key = ? AND run_uuid = ?",
        [(key, run) for key in there.keys() - latest.keys()],
    )
    store.executemany(
        "INSERT OR REPLACE INTO latest_metrics (key, timestamp, step, value, is_nan, run_uuid) VALUES (?, ?, ?, ?, ?, ?)",
        [(*row, run) for key, row in latest.items() if there.get(key) != row],
    )
