"""Which files are opened as a store, which are brought up to date, and which are refused with a sentence."""

from __future__ import annotations

import importlib.util
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from monitoring import store as store_module
from monitoring.store import open_store
from pipeline.errors import UserError
from tests.monitoring.conftest import Bench
from tests.monitoring.run_factory import expected, finished_run

OLDER = Path(__file__).with_name("mlflow_3_1_0.sql")  # a store that MLflow 3.1.0 made, with a run of its own
EARLY_MLFLOW_3 = "6953534de441"  # its schema, 37 migrations before that of MLflow 3.17.2


def refused(path) -> str:
    with pytest.raises(UserError) as error:
        open_store(path, print)
    return str(error.value)


def set_schema(path, schema: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (schema,))


def test_a_store_of_a_newer_mlflow_is_refused_untouched(bench: Bench):
    set_schema(bench.path, "feedfacecafe")
    before = bench.path.read_bytes()
    assert "schema feedfacecafe" in (said := refused(bench.path)) and "newer" in said and "--store" in said
    assert bench.path.read_bytes() == before


def test_other_layouts_and_other_files_are_refused(bench: Bench, tmp_path):
    with closing(sqlite3.connect(bench.path)) as connection, connection:
        connection.execute("ALTER TABLE params RENAME COLUMN value TO content")
    assert "params.value" in refused(bench.path)
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at as one" * 20)
    assert "is not an MLflow store" in refused(tmp_path / "text.db")
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE x (y)")
    assert "is not an MLflow store" in refused(tmp_path / "other.db")
    (tmp_path / "file").touch()
    assert "cannot be written to" in refused(tmp_path / "file" / "mlflow.db")


def test_without_mlflow_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "make setup" in refused(tmp_path / "mlflow.db")


@pytest.mark.soak
def test_an_older_store_is_upgraded_and_kept(bench: Bench):
    """What it had stays, what is mirrored comes to it, and the file as it was lies beside it."""
    bench.path.unlink()
    with closing(sqlite3.connect(bench.path)) as old:
        old.executescript(OLDER.read_text())
    as_it_was = bench.path.read_bytes()
    run = finished_run(bench.runs)
    bench.update()
    assert bench.points(bench.run().info.run_id) == expected(run)
    theirs = bench.run("by hand")
    assert theirs.data.metrics == {"x": 1.5} and theirs.data.params == {"p": "1"}
    assert {outcome.changed for outcome in bench.update().values()} == {False}
    assert bench.path.with_name(f"mlflow.db.{EARLY_MLFLOW_3}.bak").read_bytes() == as_it_was
    assert sorted(p.name for p in bench.path.parent.glob("*.db*")) == ["mlflow.db", f"mlflow.db.{EARLY_MLFLOW_3}.bak"]


def test_no_half_made_store_is_ever_left(tmp_path, monkeypatch):
    for rest in ("", "-journal", "-wal"):
        (tmp_path / f".mlflow.db.making_{2**22 + 1}{rest}").touch()  # of a process that was killed
    monkeypatch.setattr(store_module, "CREATE", "raise SystemExit('no space left on device')")
    with pytest.raises(Exception, match="no space left"):
        open_store(tmp_path / "mlflow.db", print)
    assert list(tmp_path.iterdir()) == []
