"""The local MLflow store as a file: made by MLflow itself, and opened only where its schema is the one the installed MLflow keeps.

MLflow is asked in processes of its own: importing it takes seconds and 180 MB, and an import that finds its store ready needs
nothing of it but the number of its schema, which stands in the package's migration scripts.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import psutil

from pipeline.errors import RunFailed, UserError

# What the mirror writes. A store whose tables lack one of these, or insist on another, is refused before anything is written.
COLUMNS = {
    "experiments": {"name", "artifact_location", "lifecycle_stage", "creation_time", "last_update_time"},
    "experiment_tags": {"key", "value", "experiment_id"},
    "runs": {"run_uuid", "name", "source_type", "source_name", "entry_point_name", "user_id", "status", "start_time"}
    | {"end_time", "deleted_time", "source_version", "lifecycle_stage", "artifact_uri", "experiment_id"},
    "metrics": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"},
    "latest_metrics": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"},
    "params": {"key", "value", "run_uuid"},
    "tags": {"key", "value", "run_uuid"},
}
CREATE = "import sys, mlflow; mlflow.MlflowClient(tracking_uri=sys.argv[1]).search_experiments()"
BUSY_SECONDS = 30.0  # how long to wait for a lock that MLflow's server or another import holds


def mlflow_environment() -> dict[str, str]:
    """The environment for MLflow's processes: no traffic to the outside, and nothing of a server that the user's own points to."""
    kept = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    lean = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # the job runner doubles the start
    return kept | quiet | lean | {"PYTHONSAFEPATH": "1"}  # our packages, not whatever lies in the current folder


def store_uri(path: Path) -> str:
    return f"sqlite:///{path}"


def open_store(path: Path, say: Callable[[str], None]) -> sqlite3.Connection:
    """A connection to the store at ``path``, which is made or brought up to the installed MLflow's schema first.

    Raises UserError where MLflow is missing, or the file is no MLflow store or one of another MLflow that cannot be used.
    """
    migrations = _migrations()
    head, known = _revisions(migrations)
    if "?" in str(path):
        raise UserError(f"--store {path}: a path with '?' in it cannot be told to MLflow; choose another.")
    if not path.exists():
        _create(path, say)
    found = _schema_of(path)
    if found != head and found in known:
        _upgrade(path, found, say)
    elif found != head:
        raise UserError(
            f"{path} has the MLflow schema {found}, which the installed MLflow does not know (its own is {head}): a newer one "
            "made it. Install that one, or let the mirror start afresh with --store FILE; the runs themselves are not touched."
        )
    connection = _connect(path)
    _check_columns(connection, path, head)
    return connection


def _migrations() -> Path:
    """The folder of the installed MLflow's schema migrations, found without importing MLflow."""
    spec = importlib.util.find_spec("mlflow")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [folder for folder in (Path(f) / "store/db_migrations/versions" for f in folders) if folder.is_dir()]
    if not found:
        raise UserError(
            "the dashboard needs MLflow, which is not installed here; type: make setup (pip install mlflow)."
        )
    return found[0]


def _revisions(migrations: Path) -> tuple[str, set[str]]:
    """The newest schema of the installed MLflow, and all it can upgrade from: each script names itself and the one before it."""
    own, before = set(), set()
    for script in migrations.glob("*.py"):
        text = script.read_text()
        own |= set(re.findall(r"^revision\b[^=\n]*=\s*[\"'](\w+)", text, re.MULTILINE))
        before |= set(re.findall(r"^down_revision\b[^=\n]*=\s*[\"'](\w+)", text, re.MULTILINE))
    heads = own - before
    if len(heads) != 1:
        raise UserError(
            f"the installed MLflow keeps its schema in a way this mirror does not know ({migrations}); make setup."
        )
    return heads.pop(), own


def _connect(path: Path) -> sqlite3.Connection:
    """Autocommit, so that the mirror says itself where a transaction begins; never creates a file."""
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None
    )
    connection.execute(
        "PRAGMA cache_size = -65536"
    )  # a large run is written at its commit, not spilled while readers wait
    return connection


def _schema_of(path: Path) -> str:
    """The schema a store has; UserError where the file is no MLflow store."""
    try:
        with closing(_connect(path)) as connection:
            rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error as error:
        raise UserError(f"{path} is not an MLflow store ({error}); name another file with --store.") from error
    if len(rows) != 1:
        raise UserError(f"{path} is an MLflow store that was left half made; remove it or name another with --store.")
    return str(rows[0][0])


def _check_columns(connection: sqlite3.Connection, path: Path, schema: str) -> None:
    for table, ours in COLUMNS.items():
        columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
        names = {name for _, name, *_ in columns}
        # Not null, no default, and no integer key that numbers itself: whoever inserts must give it.
        demanded = {c[1] for c in columns if c[3] and c[4] is None and not (c[5] and c[2] == "INTEGER")}
        if wrong := sorted(ours - names) + sorted(demanded - ours):
            shown = ", ".join(f"{table}.{name}" for name in wrong)
            raise UserError(
                f"{path}: MLflow's schema {schema} is not the one this mirror writes (see {shown}); make setup."
            )


def _create(path: Path, say: Callable[[str], None]) -> None:
    """Let MLflow make the store under a name of this process, then give it its own: nobody ever sees half of one."""
    say(f"making the MLflow store {path} (once, some seconds)...")
    temporary = _aside(path)
    try:
        _ask_mlflow(["-c", CREATE, store_uri(temporary)])
        os.link(temporary, path)
    except FileExistsError:
        say(f"{path} has just been made by another process; using that one.")
    finally:
        temporary.unlink()


def _upgrade(path: Path, found: str, say: Callable[[str], None]) -> None:
    """Bring an older store up with MLflow's own command, on a copy; the old file is kept, for an older MLflow cannot read the new."""
    kept = path.with_name(f"{path.name}.{found}.bak")
    say(f"{path} was made by an older MLflow (schema {found}): upgrading it; as it was it stays in {kept}.")
    temporary = _aside(path)
    try:
        with closing(_connect(path)) as old, closing(_connect(temporary)) as new:
            old.backup(new)
        _ask_mlflow(["-m", "mlflow", "db", "upgrade", store_uri(temporary)])
        kept.unlink(missing_ok=True)
        os.link(path, kept)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    """An empty file beside ``path`` under a name of this process; what processes that were killed left there is removed."""
    temporary = path.with_name(f".{path.name}.making_{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.making_*"):
            maker = re.match(
                r"\d+", left.name.rpartition("making_")[2]
            )  # SQLite's own files beside it have more in their names
            if maker and not psutil.pid_exists(int(maker[0])):
                left.unlink(missing_ok=True)
        temporary.touch()
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be written to: {error.strerror}; name another file with --store."
        ) from error
    return temporary


def _ask_mlflow(words: list[str]) -> None:
    # A session of its own: Ctrl-C ends the dashboard, not a migration in its middle.
    command = [sys.executable, *words]
    done = subprocess.run(
        command,
        env=mlflow_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    if done.returncode:
        tail = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-6:])
        raise RunFailed(f"MLflow could not make or upgrade its store. The end of what it said:\n{tail}")
